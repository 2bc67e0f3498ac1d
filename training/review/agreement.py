"""How far reviewers agree: Cohen's κ of two, Krippendorff's α of more, Dice of their masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.review.journal import VERDICTS, load_mask, read_reviews, review_folder
from wsiseg.training.review.subjects import MASK, PARTS, Subject, Subjects
from wsiseg.training.review.votes import Votes, mask_dice, standing


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """κ = (p_o − p_e) / (1 − p_e) of two raters' verdicts on the same things, in order (Cohen 1960).

    None where it is not defined: nothing was rated, or both always said the same one thing.

    >>> round(cohen_kappa("yyyn", "yynn"), 6)
    0.5
    """
    n = len(first)
    a, b = Counter(first), Counter(second)
    by_chance = sum(a[verdict] * b[verdict] for verdict in a)  # n² · p_e
    if n * n == by_chance:
        return None
    observed = sum(x == y for x, y in zip(first, second, strict=True))
    return (n * observed - by_chance) / (n * n - by_chance)


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """α = 1 − D_o / D_e of any number of raters, nominal, each unit with the verdicts that it has.

    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C. Units with one verdict do not count.
    None where it is not defined: nobody shares a unit, or all said one thing.

    >>> krippendorff_alpha(["aa", "bb", "a"])
    1.0
    """
    shared = [Counter(unit) for unit in units if len(unit) > 1]
    totals = sum(shared, Counter())
    n = totals.total()
    expected = n * n - sum(count * count for count in totals.values())
    if expected == 0:
        return None
    observed = 0.0
    for unit in shared:
        m = unit.total()
        observed += (m * m - sum(count * count for count in unit.values())) / (m - 1)
    return 1 - (n - 1) * observed / expected


@dataclass(frozen=True)
class Tally:
    """What one reviewer did."""

    name: str
    verdicts: dict[str, dict[str, int]]  # part → verdict → how many
    changed: int  # decisions about what has changed since: they count nowhere else
    first: str
    last: str


@dataclass(frozen=True)
class Agreement:
    """Of one part: over the `shared` subjects that at least two people judged."""

    part: str
    reviewers: int
    shared: int
    same: float | None  # share on which all who judged said the same
    measure: str
    value: float | None


@dataclass(frozen=True)
class MaskPair:
    """Two people's masks of one structure, at least one of them corrected."""

    subject: Subject
    names: tuple[str, str]
    dice: float


@dataclass(frozen=True)
class Report:
    store: str
    tallies: list[Tally]
    agreements: list[Agreement]
    mask_pairs: list[MaskPair]
    disagreements: list[tuple[Subject, dict[str, str]]]  # who said what


def report_of(store: QuadrupletStore) -> Report:
    """All that was decided beside `store`. Raises DataError: a file beside it cannot be read."""
    folder, subjects = review_folder(store.path), Subjects(store)
    reviews = read_reviews(folder)
    votes, changed = standing(subjects, reviews)
    tallies = []
    for name, own in reviews.items():
        counts = Counter((s.part, by[name].verdict) for s, by in votes.items() if name in by)
        times = sorted(decision.time for decision in own.values())
        verdicts = {part: {verdict: counts[part, verdict] for verdict in VERDICTS[1:]} for part in PARTS}
        tallies.append(Tally(name, verdicts, changed[name], times[0], times[-1]))
    said = {subject: {name: decision.verdict for name, decision in by.items()} for subject, by in votes.items()}
    return Report(
        str(store.path),
        tallies,
        [agreement(part, {s: by for s, by in said.items() if s.part == part}) for part in PARTS],
        _mask_pairs(store, folder, votes),
        sorted((subject, by) for subject, by in said.items() if len(set(by.values())) > 1),
    )


def agreement(part: str, said: dict[Subject, dict[str, str]]) -> Agreement:
    """Of the verdicts on one part, by subject and reviewer."""
    shared = [by for by in said.values() if len(by) > 1]
    names = sorted({name for by in shared for name in by})
    if len(names) == 2:
        measure, value = "Cohen's κ", cohen_kappa(*([by[name] for by in shared] for name in names))
    else:
        measure, value = "Krippendorff's α", krippendorff_alpha([list(by.values()) for by in shared])
    same = float(np.mean([len(set(by.values())) == 1 for by in shared])) if shared else None
    return Agreement(part, len(names), len(shared), same, measure, value)


def _mask_pairs(store: QuadrupletStore, folder: Path, votes: Votes) -> list[MaskPair]:
    index = {record.name: i for i, record in enumerate(store.records)}
    pairs = []
    for subject, by in sorted(votes.items()):
        kept = {name: decision for name, decision in by.items() if decision.verdict != "rejected"}
        if subject.part != MASK or len(kept) < 2 or not any(decision.mask for decision in kept.values()):
            continue
        sample = store.sample(index[subject.image])
        shape = sample.image.shape[:2]
        original = sample.layers.get(subject.concept, np.zeros(shape, np.uint16))
        masks = {name: load_mask(folder, d.mask, shape) if d.mask else original for name, d in kept.items()}
        for a, b in combinations(sorted(kept), 2):
            if kept[a].mask or kept[b].mask:
                pairs.append(MaskPair(subject, (a, b), mask_dice(masks[a], masks[b])))
    return pairs
