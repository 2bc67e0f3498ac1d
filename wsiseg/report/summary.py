"""The figures of a report: sizes and counts by class, and which objects to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from wsiseg.geojson import Annotation
from wsiseg.qupath import Color
from wsiseg.review import REVIEW, REVIEWS, is_kept


@dataclass(frozen=True)
class ClassSummary:
    """One class. areas: (n,) of its objects that were not rejected, in µm², or in px² where there is no scale.

    mean_probability: theirs, NaN where none states one. reviews: decision → number of objects, the rejected too.
    """

    name: str
    color: Color
    areas: np.ndarray
    mean_probability: float
    reviews: dict[str, int]


def summarize(annotations: Sequence[Annotation], mpp: tuple[float, float] | None) -> list[ClassSummary]:
    """The classes, in the order in which they first appear.

    Areas are those of the outlines as they are, not what the file says of them.
    """
    um2_per_px = mpp[0] * mpp[1] if mpp else 1.0
    groups: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        groups.setdefault(annotation.classification, []).append(annotation)
    return [_summary(name, group, um2_per_px) for name, group in groups.items()]


def _summary(name: str, group: Sequence[Annotation], um2_per_px: float) -> ClassSummary:
    kept = [a for a in group if is_kept(a.metadata)]
    return ClassSummary(
        name=name or "no class",
        color=(kept or group)[0].color,
        areas=shapely.area(np.array([a.geometry for a in kept], object)) * um2_per_px,
        mean_probability=_mean([p for a in kept if (p := probability(a)) is not None]),
        reviews={
            decision: count
            for decision in REVIEWS[1:]
            if (count := sum(a.metadata.get(REVIEW) == decision for a in group))
        },
    )


def probability(annotation: Annotation) -> float | None:
    return annotation.measurements.get("Mean probability")


def extremes(annotations: Sequence[Annotation], count: int) -> tuple[list[Annotation], list[Annotation]]:
    """The `count` objects of the highest mean probability, and those of the lowest; none is in both."""
    stated = [a for a in annotations if probability(a) is not None]
    by_doubt = sorted(stated, key=lambda a: probability(a) or 0.0)
    count = min(count, len(by_doubt) // 2 or len(by_doubt))
    doubtful = by_doubt[:count] if len(by_doubt) > 1 else []
    return by_doubt[::-1][:count], doubtful


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
