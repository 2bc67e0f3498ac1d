"""What a person changed: a value that, laid on the annotations as they were, gives those to be saved.

The page sends all of its changes each time, never the last one alone: undoing after a save is just another
save.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import shapely

from wsiseg.errors import ViewerError
from wsiseg.geojson import Annotation
from wsiseg.mask.shapes import repair, rings_of
from wsiseg.qupath import Color
from wsiseg.review import EDITED, REVIEW, REVIEWS

_OF_OUTLINE = re.compile(
    r"(Cell: )?(Area|Perimeter|Length|Solidity|Circularity|Eccentricity|M(ax|in) (diameter|caliper))"
    r"( (µm|mm|px)(\^2)?)?|Nucleus/Cell area ratio|Mean probability"
)
_FARTHEST = 2.0**31  # pixels; no slide is larger


@dataclass(frozen=True)
class Edits:
    """By index of the annotation: the deleted, the decisions, and the new rings (n, 2) of changed outlines.

    colors: by name of the class, for all that are of it.
    """

    deleted: frozenset[int] = frozenset()
    review: Mapping[int, str] = field(default_factory=dict)
    rings: Mapping[int, Sequence[np.ndarray]] = field(default_factory=dict)
    colors: Mapping[str, Color] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "deleted": sorted(self.deleted),
            "review": {str(i): decision for i, decision in self.review.items()},
            "rings": {str(i): [ring.tolist() for ring in rings] for i, rings in self.rings.items()},
            "colors": self.colors,
        }


def parse_edits(data: bytes, count: int) -> Edits:
    """Edits of `count` annotations, from JSON as `Edits.to_json` has it. ViewerError: malformed."""
    try:
        body = orjson.loads(data)
        edits = Edits(
            frozenset(_index(i, count) for i in body.get("deleted", [])),
            {_index(i, count): _decision(value) for i, value in body.get("review", {}).items()},
            {_index(i, count): [_ring(xy) for xy in rings] for i, rings in body.get("rings", {}).items()},
            {str(name): _color(value) for name, value in body.get("colors", {}).items()},
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ViewerError(f"the changes cannot be read: {error}") from error
    return edits


def apply(annotations: Sequence[Annotation], edits: Edits, mpp: tuple[float, float] | None) -> Iterator[Annotation]:
    """The annotations with the edits laid on them. ViewerError: an outline has no area any more.

    mpp: microns per pixel, to measure changed outlines; None leaves what is in microns out.
    """
    for i, annotation in enumerate(annotations):
        if i in edits.deleted:
            continue
        if i in edits.rings:
            annotation = _with_outline(annotation, edits.rings[i], mpp)
        if i in edits.review:
            others = {key: value for key, value in annotation.metadata.items() if key != REVIEW}
            decided = {REVIEW: edits.review[i]} if edits.review[i] else {}
            annotation = replace(annotation, metadata={**others, **decided})
        color = edits.colors.get(annotation.classification, annotation.color)
        yield annotation if color == annotation.color else replace(annotation, color=color)


def as_seen(annotations: Sequence[Annotation], edits: Edits) -> list[Annotation]:
    """Those that are not deleted, with their changed outlines: what a new one is compared with.

    A change that leaves no area is left out.
    """
    seen = []
    for i, annotation in enumerate(annotations):
        if i in edits.deleted:
            continue
        if i in edits.rings:
            with suppress(ViewerError):
                annotation = _with_outline(annotation, edits.rings[i], None)
        seen.append(annotation)
    return seen


def is_of_outline(measurement: str) -> bool:
    """Whether it is one of an object's shape, by wsiseg's or QuPath's names, or the model's mean probability in it."""
    return _OF_OUTLINE.fullmatch(measurement) is not None


def _with_outline(
    annotation: Annotation, rings: Sequence[np.ndarray], mpp: tuple[float, float] | None
) -> Annotation:
    """The same object with another outline, measured anew. What else was measured of the old one is dropped."""
    before, _, _ = rings_of(np.array([annotation.geometry], object))
    if len(before) != len(rings):
        raise ViewerError(f'the changed outline of "{annotation.name}" has {len(rings)} rings, not {len(before)}')
    parts, left = [], list(rings)
    for part in shapely.get_parts(annotation.geometry):
        holes = shapely.get_num_interior_rings(part)
        shell, inner, left = left[0], left[1 : holes + 1], left[holes + 1 :]
        parts.append(shapely.Polygon(shell, inner))
    (geometry,) = repair(np.array([shapely.MultiPolygon(parts)], object))
    if geometry.is_empty:
        raise ViewerError(f'the changed outline of "{annotation.name}" has no area: undo the change, or delete it')
    measurements = {key: value for key, value in annotation.measurements.items() if not is_of_outline(key)}
    if mpp is not None:
        um = shapely.transform(geometry, lambda xy: xy * mpp)
        measurements |= {
            "Area µm^2": um.area,
            "Perimeter µm": um.length,
            "Solidity": min(um.area / um.convex_hull.area, 1.0),
        }
    return replace(
        annotation,
        geometry=geometry,
        measurements=measurements,
        metadata={**annotation.metadata, EDITED: "by hand"},
    )


def _index(value: Any, count: int) -> int:
    index = int(value)
    if not 0 <= index < count:
        raise ValueError(f"there is no object {index}")
    return index


def _decision(value: Any) -> str:
    if value not in REVIEWS:
        raise ValueError(f"{value!r} is none of {', '.join(REVIEWS[1:])}")
    return str(value)


def _color(value: Any) -> Color:
    red, green, blue = value
    if not all(type(v) is int and 0 <= v < 256 for v in (red, green, blue)):
        raise ValueError("a color is not three numbers from 0 to 255")
    return red, green, blue


def _ring(value: Any) -> np.ndarray:
    xy = np.array(value, np.float64)
    if xy.ndim != 2 or xy.shape[1:] != (2,) or len(xy) < 3 or not (np.abs(xy) < _FARTHEST).all():
        raise ValueError("a ring is not a list of three or more points")
    return xy
