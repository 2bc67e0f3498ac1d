"""Changes that nobody has saved yet, kept beside the file that they go to: a server that dies costs none of them.

A GeoJSON of the outlines that the file does not have; `draft` in its member `wsiseg` has the edits of these and of
those in the file, and says of which file. Not in the browser's storage: that is one for each port, and the server
has another port each time.
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
from wsiseg.files import ABANDONED_S, atomic_write, remove_leftovers
from wsiseg.geojson import Annotation, read_collection, write_geojson
from wsiseg.review import REVIEW
from wsiseg.viewer.edits import Edits, parse_edits


@dataclass(frozen=True)
class Draft:
    """found: annotations after those in the file. run: what made all of them."""

    found: list[Annotation]
    run: dict[str, Any]
    edits: Edits


def draft_path(out: Path, basis: str) -> Path:
    """Where it is kept: not where that of another slide of the same name is, or of outlines that are others now."""
    return out.with_name(f".{out.name[:200]}.{basis[:8]}.draft.geojson")


def basis_of(slide_fingerprint: str, polygons: np.ndarray) -> str:
    """What edits by index are good for: this slide, and these outlines (N,) in this order."""
    digest = hashlib.sha256(slide_fingerprint.encode())
    for first in range(0, len(polygons), 1024):  # the bytes of all are as many as those of the file
        digest.update(b"".join(shapely.to_wkb(polygons[first : first + 1024])))
    return digest.hexdigest()


def draft_of(
    annotations: Sequence[Annotation], run: dict[str, Any], edits: Edits, *, written: int, saved: Edits
) -> Draft:
    """What is lost without `edits` of `annotations`, by index of the file.

    The file holds the first `written` of the annotations with `saved` laid on them. An outline that was deleted or
    changed in it, and is another now, follows as a new one.
    """
    in_file = [i for i in range(written) if i not in saved.deleted]
    outdated = {i for i in in_file if i in saved.rings and not _same(saved.rings[i], edits.rings.get(i))}
    missing = [*sorted(outdated | saved.deleted - edits.deleted), *range(written, len(annotations))]
    index = {i: j for j, i in enumerate(in_file)}
    deleted = {index.pop(i) for i in outdated}
    index |= {i: j for j, i in enumerate(missing, start=len(in_file))}

    def decision(i: int, laid_on: Edits) -> str:
        return laid_on.review.get(i, annotations[i].metadata.get(REVIEW, ""))

    def there(i: int) -> Edits:
        return saved if index[i] < len(in_file) else Edits()

    return Draft(
        [annotations[i] for i in missing],
        run,
        Edits(
            frozenset(deleted | {index[i] for i in edits.deleted & index.keys()}),
            {
                index[i]: decision(i, edits)
                for i in sorted(index.keys() & (edits.review.keys() | saved.review.keys()))
                if decision(i, edits) != decision(i, there(i))
            },
            {index[i]: rings for i, rings in edits.rings.items() if i in index and i not in there(i).rings},
            edits.colors,
        ),
    )


def _same(a: Sequence[np.ndarray], b: Sequence[np.ndarray] | None) -> bool:
    return b is not None and len(a) == len(b) and all(map(np.array_equal, a, b))


def write_draft(path: Path, draft: Draft, basis: str) -> None:
    """Raises OutputError: it cannot be written."""
    run = {**draft.run, "draft": {"of": basis, "edits": draft.edits.to_json()}}
    with atomic_write(path) as file:
        write_geojson(draft.found, file, run=run)
    remove_leftovers(path, older_s=ABANDONED_S)  # another process may be viewing the same file


def read_draft(path: Path, basis: str, written: int) -> Draft | None:
    """The draft of what `basis` says, a file of `written` annotations; None if there is none of it."""
    if not path.is_file():
        return None
    try:
        found, run = read_collection(path)
        kept = run.pop("draft")
        if kept["of"] != basis:
            return None
        return Draft(found, run, parse_edits(orjson.dumps(kept["edits"]), written + len(found)))
    except (WsisegError, KeyError, TypeError):
        return None
