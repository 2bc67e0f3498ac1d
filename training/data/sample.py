"""A small store out of a large one, or a sheet of pictures: for review, for a demonstration, for a test."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from wsiseg.training.data.store import Quadruplet, QuadrupletStore, write_quadruplets


def draw_questions(store: QuadrupletStore, count: int, *, split: str | None = None, seed: int = 0) -> list[Quadruplet]:
    """`count` questions (all, where there are fewer): in turn from each source, structure, and of there and not there.

    Within these strata images that have no question yet come first, in an order that `seed` shuffles.
    """
    rng = np.random.default_rng(seed)
    strata: dict[tuple[str, str, bool], list[Quadruplet]] = defaultdict(list)
    for i in rng.permutation(len(store.quadruplets)):
        question = store.quadruplets[i]
        record = store.records[question.image]
        if split in (None, record.split):
            # All that is absent is one stratum of its source: there are hundreds of names for it.
            strata[record.source, question.concept if question.present else "", question.present].append(question)
    drawn: list[Quadruplet] = []
    used: set[int] = set()
    while len(drawn) < count and any(strata.values()):
        for key in sorted(strata):
            if strata[key] and len(drawn) < count:
                at = next((i for i, question in enumerate(strata[key]) if question.image not in used), 0)
                drawn.append(strata[key].pop(at))
                used.add(drawn[-1].image)
    return drawn


def sample_store(store: QuadrupletStore, out: str | Path, questions: list[Quadruplet]) -> QuadrupletStore:
    """Write the images of these questions, with these questions only, and with the chains about them.

    Raises OutputError: `out` exists or cannot be written.
    """
    asked: dict[str, list[Quadruplet]] = defaultdict(list)
    for question in questions:
        asked[store.records[question.image].name].append(question)
    samples = (store.sample(i) for i in sorted({question.image for question in questions}))
    return write_quadruplets(out, samples, store.sources, asked, store.chains.values())
