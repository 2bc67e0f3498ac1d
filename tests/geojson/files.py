"""Annotations and files of them for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import shapely

from wsiseg.geojson import Annotation, annotation_id, write_geojson

SQUARE = shapely.box(0, 0, 10, 10)
RING = SQUARE - shapely.box(2, 2, 4, 4)
TWO = shapely.MultiPolygon([SQUARE, shapely.box(20, 0, 30, 10)])


def annotation(geometry: shapely.Geometry = SQUARE, **changes) -> Annotation:
    values = {"id": annotation_id(geometry), "geometry": geometry, "name": "n", "classification": "c"}
    return Annotation(**{**values, "color": (1, 2, 3), **changes})


def written(annotations: list[Annotation], path: Path, **options) -> Path:
    with open(path, "wb") as file:
        assert write_geojson(annotations, file, **options) == len(annotations)
    return path


def edited(path: Path, *keys: str | int, value: object = ...) -> Path:
    """The file with one member replaced, or without it."""
    root = json.loads(path.read_text())
    parent = root
    for key in keys[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[keys[-1]]
    else:
        parent[keys[-1]] = value
    path.write_text(json.dumps(root))
    return path
