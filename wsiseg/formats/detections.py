"""GeoJSON whose objects are QuPath's detections: lighter than annotations, for many small objects such as nuclei."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

from wsiseg.geojson import Annotation, write_geojson


def write(annotations: Sequence[Annotation], run: Mapping[str, Any], file: IO[bytes]) -> None:
    write_geojson((replace(a, object_type="detection") for a in annotations), file, run=run)
