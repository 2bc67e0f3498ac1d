"""What several people's decisions come to: which still stand, what is kept, and whose correction is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from wsiseg.training.metrics import dice, overlap
from wsiseg.training.review.journal import Decision, Reviews
from wsiseg.training.review.subjects import Subject, Subjects

Votes = dict[Subject, dict[str, Decision]]
"""Subject → reviewer → decision."""

T = TypeVar("T")


def standing(subjects: Subjects, reviews: Reviews) -> tuple[Votes, Counter[str]]:
    """Decisions about what is in the store as it was judged; and by reviewer how many are about what has changed."""
    votes: Votes = {}
    changed: Counter[str] = Counter()
    for name, own in reviews.items():
        for subject, decision in own.items():
            if decision.judged == subjects.fingerprint(subject):
                votes.setdefault(subject, {})[name] = decision
            else:
                changed[name] += 1
    return votes, changed


def is_kept(votes: Mapping[str, Decision]) -> bool:
    """Whether more than half do not reject: of two who disagree, the careful one counts."""
    return 2 * len(keepers(votes)) > len(votes)


def keepers(votes: Mapping[str, Decision]) -> list[Decision]:
    return [decision for decision in votes.values() if decision.verdict != "rejected"]


def most_agreed(
    decisions: Sequence[Decision], value: Callable[[Decision], T], likeness: Callable[[T, T], float]
) -> T:
    """The value that is most like the others' on average; of equals a correction, and of those the latest."""
    values = [value(decision) for decision in decisions]

    def rank(i: int) -> tuple[float, bool, str]:
        others = [likeness(values[i], other) for j, other in enumerate(values) if j != i]
        mean = float(np.mean(others)) if others else 0.0
        return round(mean, 9), decisions[i].verdict == "corrected", decisions[i].time

    return values[max(range(len(values)), key=rank)]


def same_text(a: str, b: str) -> float:
    return float(a == b)


def mask_dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two label maps, whatever the labels."""
    return dice(overlap(a, b))
