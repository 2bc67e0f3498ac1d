"""Changes that nobody has saved yet, kept beside the file that they go to: a server that dies costs none of them.

A GeoJSON of what was found since the start; `draft` in its member `wsiseg` has the edits, and says of what. Not in
the browser's storage: that is one for each port, and the server has another port each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import shapely

from wsiseg.errors import WsisegError
from wsiseg.files import atomic_write
from wsiseg.geojson import Annotation, read_collection, write_geojson
from wsiseg.viewer.edits import Edits, parse_edits


@dataclass(frozen=True)
class Draft:
    """found: annotations after those that were opened. run: what made all of them."""

    found: list[Annotation]
    run: dict[str, Any]
    edits: Edits


def draft_path(out: Path) -> Path:
    return out.with_name(f".{out.name[:200]}.draft.geojson")


def basis_of(slide_fingerprint: str, annotations: Sequence[Annotation]) -> str:
    """What edits by index are good for: this slide, and these outlines in this order."""
    outlines = shapely.to_wkb(np.array([annotation.geometry for annotation in annotations], object))
    return hashlib.sha256(b"".join([slide_fingerprint.encode(), *outlines])).hexdigest()


def write_draft(path: Path, draft: Draft, basis: str) -> None:
    """Raises OutputError: it cannot be written."""
    run = {**draft.run, "draft": {"of": basis, "edits": draft.edits.to_json()}}
    with atomic_write(path) as file:
        write_geojson(draft.found, file, run=run)


def read_draft(path: Path, basis: str, opened: int) -> Draft | None:
    """The draft of what `basis` says, `opened` annotations; None if there is none, or one of something else."""
    if not path.is_file():
        return None
    try:
        found, run = read_collection(path)
        kept = run.pop("draft")
        if kept["of"] != basis:
            return None
        return Draft(found, run, parse_edits(orjson.dumps(kept["edits"]), opened + len(found)))
    except (WsisegError, KeyError, TypeError):
        return None
