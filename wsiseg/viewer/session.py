"""What one `wsiseg view` holds: the slide, the annotations as read and as found, and where to save them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiseg import __version__
from wsiseg.errors import MissingMppError
from wsiseg.files import atomic_write
from wsiseg.geojson import Annotation, read_collection, write_geojson
from wsiseg.inference import Segmenter
from wsiseg.mask.regions import Origin, l0_origin
from wsiseg.result import Result
from wsiseg.slide import Slide
from wsiseg.viewer.deepzoom import OVERLAP_PX, TILE_PX, DeepZoom
from wsiseg.viewer.edits import Edits, apply
from wsiseg.viewer.packing import pack


@dataclass(frozen=True)
class Asking:
    """How queries from the page are answered: as `wsiseg.segment` takes it."""

    model: Segmenter | str | None = None
    device: str | None = None
    slide_mpp: float | tuple[float, float] | None = None


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
        self.annotations, self.run = read_collection(geojson) if geojson else ([], {})
        if origin is None:
            origin = "slide" if self.run.get("origin") == "slide" else "qupath"
        self.slide, self.origin, self.asking = slide, origin, asking or Asking()
        self.deepzoom = DeepZoom(slide)
        self.edits = Edits()
        self.out = out or geojson
        self._classes = with_classes({}, self.annotations)
        self._ids = {annotation.id for annotation in self.annotations}
        self._lock = threading.Lock()

    @property
    def mpp(self) -> tuple[float, float] | None:
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
            "name": Path(self.slide.source).name,
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
            "out": str(self.out) if self.out else None,
            "edits": self.edits.to_json(),
            "version": __version__,
        }

    def packed(self, first: int = 0) -> bytes:
        """The annotations from index `first` on, for the page to draw."""
        with self._lock:
            return pack(self.annotations[first:], self._classes, first)

    def details(self, index: int) -> dict[str, Any] | None:
        """What is known of one annotation, as it was read or found."""
        if not 0 <= index < len(self.annotations):
            return None
        annotation = self.annotations[index]
        return {
            "id": str(annotation.id),
            "name": annotation.name,
            "classification": annotation.classification,
            "measurements": annotation.measurements,
            "metadata": annotation.metadata,
        }

    def add(self, result: Result) -> int:
        """Take in what a query found, and return how many of it are new.

        The same outline found again (a query that was asked twice) is one object.
        """
        with self._lock:
            new = [annotation for annotation in result.annotations if annotation.id not in self._ids]
            self._ids.update(annotation.id for annotation in new)
            self._classes = with_classes(self._classes, new)
            self.annotations = [*self.annotations, *new]
            self.run = merged_run(self.run, result.run)
        return len(new)

    def save(self, edits: Edits) -> dict[str, Any]:
        """Write the annotations with `edits` laid on them, whole or not at all.

        Raises:
            ViewerError: a changed outline has no area.
            OutputError: the file cannot be written.
        """
        with self._lock:
            out = self.out or free_name(Path(self.slide.source).name)
            run = {"version": __version__, **self.run, "origin": self.origin}
            with atomic_write(out) as file:
                written = write_geojson(apply(self.annotations, edits, self.mpp), file, run=run)
            self.edits, self.out = edits, out
        return {"out": str(out), "written": written}


def merged_run(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What made a file that holds the objects of two runs: the later one, with the queries of both."""
    queries = list(dict.fromkeys([*_texts(before.get("queries")), *now["queries"]]))
    parameters = before.get("parameters")
    mpp = parameters.get("mpp") if isinstance(parameters, dict) else None
    asked_at = {**(mpp if isinstance(mpp, dict) else {}), **now["parameters"]["mpp"]}
    kept = {key: value for key, value in now["parameters"].items() if key != "region"}
    return {**before, **now, "queries": queries, "parameters": {**kept, "mpp": asked_at}}


def with_classes(known: dict[str, int], annotations: Sequence[Annotation]) -> dict[str, int]:
    """name → index of the known classes, and after them those that `annotations` bring."""
    names = dict.fromkeys([*known, *(annotation.classification for annotation in annotations)])
    return {name: index for index, name in enumerate(names)}


def free_name(slide_name: str) -> Path:
    """A file in the working folder that is named after the slide and does not exist yet."""
    stem = slide_name.rpartition(".")[0] or slide_name
    name, number = Path(f"{stem}.geojson"), 1
    while name.exists():
        name, number = Path(f"{stem}-{number}.geojson"), number + 1
    return name


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
