"""Annotations as one block of bytes, which the page draws without parsing text.

    uint32    length of the header
    header    JSON: classes [{name, color}], first, objects, rings, vertices; spaces up to a multiple of 4
    uint32    (objects + 1)  at which ring each object begins
    uint32    (rings + 1)    at which vertex each ring begins
    float32   (vertices, 2)  x, y in the coordinates of the file; the closing vertex of a ring is left out
    float32   (objects)      mean probability, NaN where it is not known
    float32   (objects)      area in µm², NaN where it is not known
    uint32    (objects)      index of the class
    uint8     (objects)      REVIEWS

All little-endian. Shells run one way and holes the other, so that nonzero filling leaves holes open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import shapely

from wsiseg.geojson import Annotation
from wsiseg.mask.shapes import rings_of
from wsiseg.qupath import Color
from wsiseg.review import REVIEW, REVIEWS

_BATCH = 1024  # annotations at once: a copy of a million outlines takes gigabytes


def pack(annotations: Sequence[Annotation], classes: Mapping[str, int], first: int = 0) -> bytes:
    """The bytes described above.

    classes: name → index, at least of the classes of the annotations. first: index of the first annotation.
    """
    blocks = [_vertices(annotations[start : start + _BATCH]) for start in range(0, len(annotations), _BATCH)]
    rings = np.concatenate([[0], *(rings for rings, _, _ in blocks)])  # of each object, after a 0
    vertices = np.concatenate([[0], *(vertices for _, vertices, _ in blocks)])  # of each ring, likewise
    colors: dict[str, Color] = {}
    for a in annotations:
        colors.setdefault(a.classification, a.color)
    header = orjson.dumps(
        {
            "classes": [{"index": classes[name], "name": name, "color": colors[name]} for name in colors],
            "first": first,
            "objects": len(annotations),
            "rings": len(vertices) - 1,
            "vertices": int(vertices.sum()),
        }
    )
    header += b" " * (-len(header) % 4)
    reviews = [REVIEWS.index(r) if (r := a.metadata.get(REVIEW, "")) in REVIEWS else 0 for a in annotations]
    columns: list[tuple[str, Any]] = [
        ("<u4", np.cumsum(rings)),
        ("<u4", np.cumsum(vertices)),
        *(("<f4", xy) for _, _, xy in blocks),
        ("<f4", [a.measurements.get("Mean probability", np.nan) for a in annotations]),
        ("<f4", [a.measurements.get("Area µm^2", np.nan) for a in annotations]),
        ("<u4", [classes[a.classification] for a in annotations]),
        ("u1", reviews),
    ]
    return b"".join([len(header).to_bytes(4, "little"), header, *(np.asarray(c, kind).data for kind, c in columns)])


def _vertices(annotations: Sequence[Annotation]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rings of each annotation (n,), vertices of each ring (r,), and these (v, 2) float32, no closing ones."""
    polygons = shapely.orient_polygons(np.array([a.geometry for a in annotations], object))
    rings, owner, _ = rings_of(polygons)
    lengths = shapely.get_num_coordinates(rings)
    xy = np.delete(shapely.get_coordinates(rings), np.cumsum(lengths) - 1, axis=0)
    return np.bincount(owner, minlength=len(annotations)), lengths - 1, xy.astype("<f4")
