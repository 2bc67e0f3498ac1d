"""A new store out of an old one and its decisions: what was rejected is left out, what was corrected is corrected."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsiseg.errors import DataError
from wsiseg.training.data.chains import Chain, Statement
from wsiseg.training.data.derived import lumen_of, stroma_of
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample, write_quadruplets
from wsiseg.training.review.journal import Decision, load_mask, read_reviews, review_folder
from wsiseg.training.review.subjects import CHAIN, MASK, Subject, Subjects
from wsiseg.training.review.votes import Votes, is_kept, keepers, mask_dice, most_agreed, same_text, standing

_DERIVED = {"lumen": lumen_of, "stroma": stroma_of}  # layers that importers measure off the picture and its glands


def apply_review(
    store: QuadrupletStore, out: str | os.PathLike[str], *, name: str | None = None
) -> tuple[QuadrupletStore, Counter[str]]:
    """Write the store that the decisions beside `store` come to, by majority, or as `name` alone decided.

    A mask that is rejected goes, with every question about it, and is unknown from then on. A question goes if
    its chain is rejected, or if its mask was corrected and nobody kept its chain, which was made for another mask.
    What nobody judged, or what has changed since, is taken as it is.

    Returns:
        The new store, and how many: questions; unseen (by everybody), dropped; masks corrected, masks dropped;
        chains corrected; images dropped; changed (decisions about what has changed since).

    Raises:
        DataError: there is no decision (of `name`), or a corrected mask is gone.
        OutputError: `out` exists or cannot be written.
    """
    folder, subjects = review_folder(store.path), Subjects(store)
    reviews = read_reviews(folder)
    if name is not None:
        reviews = {name: reviews[name]} if name in reviews else {}
    if not reviews:
        by = "" if name is None else f" by {name}"
        raise DataError(f"{folder} holds no decision{by}; decide with: wsiseg data review {store.path} --name NAME")
    votes, changed = standing(subjects, reviews)
    counts = Counter(changed=changed.total())
    asked: dict[str, list[Quadruplet]] = {}

    def samples() -> Iterator[Sample]:
        for i in range(len(store)):
            sample, kept = decided(store.sample(i), subjects.of_image[i], votes, folder, counts)
            if sample.present or sample.absent:
                asked[sample.name] = kept
                yield sample
            else:
                counts["images dropped"] += 1

    who = "Reviewed by " + ", ".join(reviews)
    sources = {key: replace(info, notes=f"{info.notes} {who}.".strip()) for key, info in store.sources.items()}
    chains = _chains(store, subjects, asked, ", ".join(reviews))
    return write_quadruplets(out, samples(), sources, asked, chains), counts


def _chains(
    store: QuadrupletStore, subjects: Subjects, asked: Mapping[str, list[Quadruplet]], who: str
) -> Iterator[Chain]:
    """Chains that training reads: those of the old store that were kept, and those that people wrote, once for each
    structure. To be drawn when `asked` is whole."""
    shown = {(q.image, q.concept, q.query): q.reasoning for q in subjects.asked}
    for image, questions in asked.items():
        found: dict[str, Chain] = {}
        for q in questions:
            old = store.chains.get((image, q.concept))
            if q.reasoning != shown[q.image, q.concept, q.query]:
                found[q.concept] = _by_people(image, q, who)
            elif old is not None and old.text == q.reasoning:
                found.setdefault(q.concept, old)
        yield from found.values()


def _by_people(image: str, question: Quadruplet, who: str) -> Chain:
    *sentences, closing = re.split(r"(?<=[.!?])\s+", question.reasoning.strip())
    statements = tuple(Statement(sentence, "unmeasured") for sentence in sentences)
    return Chain(image, question.concept, question.present, question.reasoning, closing, statements, who, who)


def decided(
    sample: Sample, questions: list[Quadruplet], votes: Votes, folder: Path, counts: Counter[str]
) -> tuple[Sample, list[Quadruplet]]:
    """A sample and its questions as the votes have them; adds to `counts`, which `apply_review` explains."""
    layers = dict(sample.layers)
    gone: set[str] = set()
    corrected: set[str] = set()
    for concept in dict.fromkeys(question.concept for question in questions):
        by = votes.get(Subject(MASK, sample.name, concept))
        if by is None:
            continue
        if not is_kept(by):
            layers.pop(concept, None)
            gone.add(concept)
            continue
        original = sample.layers.get(concept, np.zeros(sample.image.shape[:2], np.uint16))
        mask = _chosen_mask(by, original, folder)
        if not np.array_equal(mask, original):
            layers[concept] = mask
            corrected.add(concept)
    if "gland" in gone | corrected:
        for concept in _derived_layers(sample):
            if Subject(MASK, sample.name, concept) not in votes:
                del layers[concept]
                gone.add(concept)
    counts["masks dropped"] += len(gone)
    counts["masks corrected"] += len(corrected)
    kept = []
    for question in questions:
        mask_votes = votes.get(Subject(MASK, sample.name, question.concept))
        chain_votes = votes.get(Subject(CHAIN, sample.name, question.concept, question.query))
        counts["questions"] += 1
        counts["unseen"] += mask_votes is None and chain_votes is None
        answer = None
        if question.concept not in gone:
            answer = _answer(question, chain_votes, question.concept in corrected)
        if answer is None:
            counts["dropped"] += 1
            continue
        counts["chains corrected"] += answer != question.reasoning
        kept.append(replace(question, reasoning=answer, present=question.concept in layers))
    absent = tuple(concept for concept in sample.absent if concept not in gone | corrected)
    return replace(sample, layers=layers, present=tuple(layers), absent=absent), kept


def _chosen_mask(votes: Mapping[str, Decision], original: np.ndarray, folder: Path) -> np.ndarray:
    def mask_of(decision: Decision) -> np.ndarray:
        return load_mask(folder, decision.mask, original.shape) if decision.mask else original

    return most_agreed(keepers(votes), mask_of, mask_dice)


def _answer(question: Quadruplet, votes: Mapping[str, Decision] | None, mask_corrected: bool) -> str | None:
    """The chain to keep; None where the question has to go."""
    if votes is None:
        return None if mask_corrected else question.reasoning
    if not is_kept(votes):
        return None
    chain = most_agreed(keepers(votes), lambda decision: decision.text or question.reasoning, same_text)
    says_no = not question.present and chain == question.reasoning
    return None if mask_corrected and says_no else chain


def _derived_layers(sample: Sample) -> list[str]:
    """Layers of the sample that are nothing but what its glands make of the picture."""
    if "gland" not in sample.layers:
        return []
    return [
        key
        for key, measure in _DERIVED.items()
        if key in sample.layers
        and np.array_equal(sample.layers[key] > 0, measure(sample.image, sample.layers["gland"]) > 0)
    ]
