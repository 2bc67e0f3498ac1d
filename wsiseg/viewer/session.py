"""What one `wsiseg view` holds: the slide, the annotations as read and as found, and where to save them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import shapely

from wsiseg import __version__
from wsiseg.belonging import misplaced, origin_of, take_scale
from wsiseg.errors import MissingMppError, OutputError, ViewerError
from wsiseg.files import ABANDONED_S, packed_write, remove_leftovers
from wsiseg.geojson import Annotation, read_collection, safe_polygons, write_geojson
from wsiseg.inference import Segmenter
from wsiseg.mask.regions import Origin, l0_origin
from wsiseg.qupath import DESCRIPTION, clean_text, words_of
from wsiseg.result import Result
from wsiseg.slide import Slide
from wsiseg.viewer.deepzoom import OVERLAP_PX, TILE_PX, DeepZoom
from wsiseg.viewer.draft import Draft, basis_of, draft_of, draft_path, read_draft, write_draft
from wsiseg.viewer.edits import Edits, apply, as_seen, is_of_outline
from wsiseg.viewer.packing import pack

_SAME = 0.5  # shared part of the larger of two outlines, from which they outline the same thing


@dataclass(frozen=True)
class Asking:
    """How queries from the page are answered: as `wsiseg.segment` takes it."""

    model: Segmenter | str | None = None
    device: str | None = None


class Session:
    """One open slide and its annotations; methods may be called from several threads.

    Annotations are never changed: edits lie beside them, and are laid on when saving.
    """

    def __init__(
        self,
        slide: Slide,
        geojson: Path | None = None,
        *,
        out: Path | None = None,
        origin: Origin | None = None,
        asking: Asking | None = None,
    ) -> None:
        stamp = _stamp(geojson)
        self.annotations, self.run = read_collection(geojson) if geojson else ([], {})
        self.slide, self.origin = slide, origin or origin_of(self.run)
        self.deepzoom = DeepZoom(slide)
        self.edits = Edits()
        # What somebody else made is never written over unless the person says so.
        self.out = out or (geojson if "version" in self.run else None)
        self.warning = misplaced(self.annotations, self.run, slide, self.origin)
        self.asking = asking or Asking()
        take_scale(slide, self.run)
        self._beside = geojson or Path(_geojson_name(Path(slide.source).name))
        # A file that was there and was not read is as one that somebody else has changed.
        self._stamp = stamp if out is None or (geojson and out.exists() and out.samefile(geojson)) else None
        self._saves, self._unsaved = 0, False
        self._written = len(self.annotations)  # the first so many are in the file, with `edits` laid on them
        self._basis = basis_of(slide.fingerprint, np.array([a.geometry for a in self.annotations], object))
        self._draft_path = draft_path(self.out or free_name(self._beside), self._basis)
        self._draft = read_draft(self._draft_path, self._basis, self._written)  # of a session that ended without saving
        self._drafter: str | None = None  # the page whose changes the draft holds
        self._lock = threading.Lock()

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Microns per level-0 pixel, (x, y), in which it measures and asks; None where nobody knows them."""
        try:
            return self.slide.mpp
        except MissingMppError:
            return None

    def describe(self) -> dict[str, Any]:
        """What the page needs to know before it draws anything."""
        left, top, width, height = self.slide.l0_bounds or (0, 0, *self.slide.dimensions)
        if self.origin == "slide":
            left, top, width, height = 0, 0, *self.slide.dimensions
        return {
            "name": clean_text(Path(self.slide.source).name),
            "width": self.slide.dimensions[0],
            "height": self.slide.dimensions[1],
            "origin": l0_origin(self.slide.l0_bounds, self.origin),
            "shown": [left, top, width, height],
            "mpp": self.mpp,
            "objective": self.slide.objective_power,
            "tile": TILE_PX,
            "overlap": OVERLAP_PX,
            "firstLevel": self.deepzoom.first_level,
            "lastLevel": self.deepzoom.last_level,
            "objects": len(self.annotations),
            "out": clean_text(str(self.out)) if self.out else None,
            "edits": self.edits.to_json(),
            "saves": self._saves,
            "unsaved": self._unsaved,
            "warning": self.warning,
            "hasDraft": self._draft is not None,
            "version": __version__,
        }

    def packed(self, first: int = 0) -> bytes:
        """The annotations from index `first` on, for the page to draw."""
        with self._lock:
            return pack(self.annotations[first:], class_numbers(self.annotations), first)

    def details(self, index: int) -> dict[str, Any] | None:
        """What is known of one annotation, as it was read or found; its description as words."""
        if not 0 <= index < len(self.annotations):
            return None
        annotation = self.annotations[index]
        said = {key: words_of(text) for key, text in annotation.metadata.items() if key == DESCRIPTION}
        return {
            "id": str(annotation.id),
            "name": annotation.name,
            "classification": annotation.classification,
            "measurements": annotation.measurements,
            "ofOutline": [name for name in annotation.measurements if is_of_outline(name)],
            "metadata": {**annotation.metadata, **said},
        }

    def add(self, result: Result) -> int:
        """Take in what a query found, and return how many of it are new.

        The same outline found again (a query that was asked twice, or on a region that overlaps an earlier one)
        is one object, the earlier one; one that was deleted or moved is found anew, as another object.
        """
        with self._lock:
            new = not_outlined(list(result.annotations), as_seen(self.annotations, self._latest))
            taken = {annotation.id for annotation in self.annotations}
            new = [replace(one, id=uuid4()) if one.id in taken else one for one in new]
            self.annotations = [*self.annotations, *new]
            self.run = merged_run(self.run, result.run)
            if new:
                self._unsaved = True
                self._keep_found()
        return len(new)

    def save(self, edits: Edits, *, page: str = "", after: int | None = None) -> dict[str, Any]:
        """Write the annotations with `edits` laid on them, whole or not at all.

        A file that somebody else has changed since it was opened or saved is left as it is; a new one is written
        beside it. page: who asks. after: how many saves it knows of.

        Raises:
            ViewerError: a changed outline has no area, or another page has saved, or changes that are not saved.
            OutputError: the file cannot be written.
        """
        with self._lock:
            self._check_turn(page, after)
            out, note = self.out or free_name(self._beside), ""
            if self.out and _stamp(out) not in (None, self._stamp):
                note = f"{out.name} has changed since it was opened, and was left as it is"
                out = free_name(out)
            run = {"version": __version__, **self.run, "origin": self.origin}
            kept = list(apply(self.annotations, edits, self.mpp))
            with packed_write(out) as file:
                write_geojson(kept, file, run=run)
            remove_leftovers(out, older_s=ABANDONED_S)
            self.edits, self.out, self._stamp = edits, out, _stamp(out)
            self._saves, self._unsaved = self._saves + 1, False
            saves = self._saves
            self._drop_draft()
            # From here on a draft is of the new file.
            self._written, self._basis = len(self.annotations), basis_of(self.slide.fingerprint, safe_polygons(kept))
            self._draft_path = draft_path(out, self._basis)
        return {"out": clean_text(str(out)), "written": len(kept), "saves": saves, "note": clean_text(note)}

    def keep_draft(self, edits: Edits, *, page: str = "", after: int | None = None) -> None:
        """Keep what is not saved yet, for whoever opens these files next; `page` and `after` as for `save`.

        Raises:
            ViewerError: another page has saved, or has changes that are not saved.
            OutputError: it cannot be written.
        """
        with self._lock:
            self._check_turn(page, after)
            if edits.to_json() == self.edits.to_json():
                self._drop_draft()
                return
            self._write_draft(edits)
            # For this page when it is loaded anew: it has what was found.
            self._draft, self._drafter = Draft([], self.run, edits), page

    def take_draft(self, *, page: str = "") -> dict[str, Any]:
        """Take up what was not saved, and return its edits and how many were found. From here on it is `page`'s.

        Raises:
            ViewerError: there is nothing, or more was found meanwhile, which took the place of what was found then.
        """
        with self._lock:
            draft = self._draft
            if draft is None or (draft.found and len(self.annotations) > self._written):
                raise ViewerError("there are no earlier changes that could be taken up any more")
            if self._drafter is None and len(self.annotations) == self._written:  # else this session knows more
                self.run = draft.run
            self.annotations = [*self.annotations, *draft.found]
            self._unsaved = True
            self._draft, self._drafter = Draft([], self.run, draft.edits), page
        return {"edits": draft.edits.to_json(), "found": len(draft.found)}

    def drop_draft(self) -> None:
        with self._lock:
            self._drop_draft()

    @property
    def _latest(self) -> Edits:
        """The changes that the page shows: not those that an ended session has left."""
        return self._draft.edits if self._draft is not None and self._drafter is not None else self.edits

    def _check_turn(self, page: str, after: int | None) -> None:
        """Two pages would take back what the other one did. ViewerError: it is not the turn of `page`."""
        if after is not None and after != self._saves:
            raise ViewerError(
                "another page of this session has saved meanwhile: reload this page (its changes are lost)"
            )
        if self._draft is not None and page != self._drafter:
            raise ViewerError(
                "another page of this session has changes that are not saved: save them there, or reload this page "
                "to take them up (its own changes are lost)"
            )

    def _write_draft(self, edits: Edits) -> None:
        draft = draft_of(self.annotations, self.run, edits, written=self._written, saved=self.edits)
        write_draft(self._draft_path, draft, self._basis)

    def _keep_found(self) -> None:
        """What was found is kept though the page may be closed by now; where it cannot be, saving is told."""
        if self._draft is not None and self._drafter is None:
            return  # the file holds what a session that ended has left, until a person says what becomes of it
        with suppress(OutputError):
            self._write_draft(self._latest)

    def _drop_draft(self) -> None:
        self._draft = self._drafter = None
        self._draft_path.unlink(missing_ok=True)
        if self._unsaved:
            self._keep_found()


def not_outlined(found: Sequence[Annotation], known: Sequence[Annotation]) -> list[Annotation]:
    """Those of `found` that share at most half of the larger area with each of the `known` of their class."""
    is_new = np.ones(len(found), bool)
    for name in {annotation.classification for annotation in found}:
        members = np.flatnonzero([annotation.classification == name for annotation in found])
        theirs = np.array([found[i].geometry for i in members.tolist()], dtype=object)
        ours = np.array([annotation.geometry for annotation in known if annotation.classification == name], object)
        i, j = shapely.STRtree(ours).query(theirs, predicate="intersects")
        shared = shapely.area(shapely.intersection(theirs[i], ours[j]))
        is_same = shared > _SAME * np.maximum(shapely.area(theirs[i]), shapely.area(ours[j]))
        is_new[members[i[is_same]]] = False
    return [annotation for annotation, new in zip(found, is_new, strict=True) if new]


def merged_run(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What made a file that holds the objects of two runs: the later one, with the queries and cautions of both."""
    cautions = list(dict.fromkeys([*_texts(before.get("cautions")), *now.get("cautions", ())]))
    queries = list(dict.fromkeys([*_texts(before.get("queries")), *now["queries"]]))
    parameters = before.get("parameters")
    mpp = parameters.get("mpp") if isinstance(parameters, dict) else None
    asked_at = {**(mpp if isinstance(mpp, dict) else {}), **now["parameters"]["mpp"]}
    kept = {key: value for key, value in now["parameters"].items() if key != "region"}
    both = {"queries": queries, "parameters": {**kept, "mpp": asked_at}} | ({"cautions": cautions} if cautions else {})
    return {**before, **now, **both}


def class_numbers(annotations: Sequence[Annotation]) -> dict[str, int]:
    """name → number, in the order in which classes first come: those that are known keep theirs as more come."""
    names = dict.fromkeys(annotation.classification for annotation in annotations)
    return {name: number for number, name in enumerate(names)}


def free_name(wanted: Path) -> Path:
    """A GeoJSON file that does not exist yet, named after `wanted` and in its folder."""
    plain = wanted.with_name(_geojson_name(wanted.name.removesuffix(".gz")))
    name, number = plain, 1
    while name.exists():
        name, number = plain.with_name(f"{plain.stem}-{number}.geojson"), number + 1
    return name


def _geojson_name(name: str) -> str:
    return f"{name.rpartition('.')[0] or name}.geojson"


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """What changes when somebody writes the file; None where there is no file."""
    if path is None or not path.is_file():
        return None
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
