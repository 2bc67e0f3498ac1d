"""Annotations by the million: on disk, and read as if they were a list."""

from __future__ import annotations

import mmap
import struct
import tempfile
import uuid
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import shapely

from wsiseg.files import no_room, write_all
from wsiseg.geojson import Annotation

_READ = 1024  # annotations at once
_HEAD = struct.Struct("<16sI")  # id, number of the kind
_NOTHING = shapely.Polygon()


class SpilledAnnotations(Sequence[Annotation]):
    """A list of annotations in an anonymous temporary file; in memory, some thirty bytes for each.

    They may be added in any order, and are read in that of (`group`, `place`). The file holds what differs (id,
    measurements, outline as WKB) and ends with the list. To another process it is sent as a plain list.

    Raises:
        OutputError: the temporary folder is unwritable or full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._kinds: dict[tuple[object, ...], int] = {}
        self._templates: list[Annotation] = []
        self._starts = array("q", [0])
        self._groups, self._places = array("i"), array("q")
        self._order: np.ndarray | None = None
        try:
            self._file = tempfile.TemporaryFile(prefix="wsiseg-outlines-", dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise no_room("the outlines", self._folder, error) from error
        weakref.finalize(self, self._file.close)

    def add(self, group: int, annotation: Annotation, place: int) -> None:
        """Keep one more."""
        outline = shapely.to_wkb(annotation.geometry)
        numbers = struct.pack(f"<{len(annotation.measurements)}d", *annotation.measurements.values())
        record = _HEAD.pack(annotation.id.bytes, self._kind(annotation)) + numbers + outline
        try:
            write_all(self._file, record)
        except OSError as error:
            raise no_room("the outlines", self._folder, error) from error
        self._starts.append(self._starts[-1] + len(record))
        self._groups.append(group)
        self._places.append(place)
        self._order = None

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Annotation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Annotation]: ...
    def __getitem__(self, index: int | slice) -> Annotation | list[Annotation]:
        if isinstance(index, slice):
            return self._read(self._sorted()[index])
        return self._read(self._sorted()[[index]])[0]

    def __iter__(self) -> Iterator[Annotation]:
        for first in range(0, len(self), _READ):
            yield from self[first : first + _READ]

    def __reduce__(self) -> tuple[type[list[Annotation]], tuple[list[Annotation]]]:
        return list, (list(self),)

    def _kind(self, annotation: Annotation) -> int:
        """The number of those that differ in id, outline and measured numbers only."""
        kind = (
            annotation.name,
            annotation.classification,
            annotation.color,
            annotation.object_type,
            annotation.is_locked,
            annotation.nucleus,
            tuple(annotation.measurements),
            tuple(annotation.metadata.items()),
        )
        if kind not in self._kinds:
            self._kinds[kind] = len(self._templates)
            self._templates.append(replace(annotation, geometry=_NOTHING))
        return self._kinds[kind]

    def _sorted(self) -> np.ndarray:
        """Which was added how early, in reading order: (N,) int64."""
        if self._order is None:
            self._order = np.lexsort((np.array(self._places), np.array(self._groups)))
        return self._order

    def _read(self, added: np.ndarray) -> list[Annotation]:
        if not len(added):
            return []
        # Mapped: a forked process shares the place in the file, and would read from where another has gone.
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as file:
            records = [file[self._starts[i] : self._starts[i + 1]] for i in added.tolist()]
        heads, outlines = [], []
        for record in records:
            identity, kind = _HEAD.unpack_from(record)
            like = self._templates[kind]
            numbers = struct.unpack_from(f"<{len(like.measurements)}d", record, _HEAD.size)
            heads.append((like, uuid.UUID(bytes=identity), dict(zip(like.measurements, numbers, strict=True))))
            outlines.append(record[_HEAD.size + 8 * len(numbers) :])
        return [
            replace(like, id=identity, geometry=outline, measurements=measurements)
            for (like, identity, measurements), outline in zip(heads, shapely.from_wkb(outlines), strict=True)
        ]
