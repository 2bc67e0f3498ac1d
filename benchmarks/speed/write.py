"""Writing GeoJSON: CPU seconds per gigabyte written. Peer: json.dumps of each feature."""

from __future__ import annotations

import json
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import shapely

from benchmarks.speed.probability import SIDE, probability_map
from benchmarks.speed.rows import Row, Setup, measure_cost, with_ratios
from wsiseg.geojson import Annotation, write_geojson
from wsiseg.mask import contour, repair

PEER = "json.dumps, one feature at a time"
MEASUREMENTS = {"Area um^2": 103.25, "Perimeter um": 41.75, "Solidity": 0.93125, "Mean probability": 0.84375}
METADATA = {"query": "outline the glands", "ANNOTATION_DESCRIPTION": "Round, 12 um wide, with a lumen."}


def measure(setup: Setup) -> list[Row]:
    source = probability_map(setup.folder / "probability.npy")
    outlines = setup.folder / "repaired.npy"
    np.save(outlines, shapely.to_wkb(repair(contour([(0, np.load(source))], SIDE, 128))), allow_pickle=True)
    rows = []
    for way, function in (
        ("wsiseg write_geojson, every geometry checked", with_wsiseg),
        ("orjson.dumps(shapely.geometry.mapping)", with_orjson),
        (PEER, with_json),
    ):
        # The first run of a process also makes the annotations.
        cost = measure_cost(function, outlines, setup.folder / "out.geojson", repeat=setup.repeat + 1)
        rows.append(Row("write", way, cost.cpu_s / (cost.result / 1e9), "GB", cost.peak_mb))
    return with_ratios(rows, PEER)


@cache
def _annotations(outlines: Path) -> list[Annotation]:
    polygons = shapely.from_wkb(np.load(outlines, allow_pickle=True))
    shared = ("glands", "glands", (0, 150, 100), MEASUREMENTS, METADATA)
    return [Annotation(uuid.UUID(int=i), polygon, *shared) for i, polygon in enumerate(polygons)]


def with_wsiseg(outlines: Path, out: Path) -> int:
    with open(out, "wb") as file:
        write_geojson(_annotations(outlines), file)
    return out.stat().st_size


def with_orjson(outlines: Path, out: Path) -> int:
    with open(out, "wb") as file:
        for annotation in _annotations(outlines):
            file.write(orjson.dumps(_feature(annotation)) + b",\n")
    return out.stat().st_size


def with_json(outlines: Path, out: Path) -> int:
    with open(out, "w") as file:
        for annotation in _annotations(outlines):
            file.write(json.dumps(_feature(annotation)) + ",\n")
    return out.stat().st_size


def _feature(annotation: Annotation) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": str(annotation.id),
        "geometry": shapely.geometry.mapping(annotation.geometry),
        "properties": {
            "objectType": annotation.object_type,
            "name": annotation.name,
            "classification": {"name": annotation.classification, "color": annotation.color},
            "measurements": annotation.measurements,
            "metadata": annotation.metadata,
        },
    }
