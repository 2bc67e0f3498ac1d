"""GeoJSON as QuPath reads it: see `wsiseg.geojson`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from wsiseg.geojson import Annotation, write_geojson


def write(annotations: Sequence[Annotation], run: Mapping[str, Any], file: IO[bytes]) -> None:
    write_geojson(annotations, file, run=run)
