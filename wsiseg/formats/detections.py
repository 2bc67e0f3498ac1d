"""GeoJSON whose objects are QuPath's detections: lighter than annotations, for many small objects such as nuclei."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

from wsiseg.geojson import Annotation, write_geojson


def write(annotations: Sequence[Annotation], run: Mapping[str, Any], file: IO[bytes]) -> None:
    """Cells and tiles, which are detections of a kind, stay what they are."""
    detections = (replace(a, object_type="detection") if a.object_type == "annotation" else a for a in annotations)
    write_geojson(detections, file, run=run)
