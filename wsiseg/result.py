"""What `wsiseg.segment` returns: annotations, and what the model said about every tile."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, overload

import orjson

from wsiseg import formats
from wsiseg.belonging import source_of
from wsiseg.errors import WsisegError
from wsiseg.files import atomic_write, check_apart
from wsiseg.geojson import Annotation, write_geojson

if TYPE_CHECKING:
    import geopandas

MAX_CHAIN = 20_000  # characters of one tile's reasoning: far above what any of our models writes


@dataclass(frozen=True)
class TileReasoning:
    """What the model said about one tile, and where that lies (level-0 pixels, from the slide's corner).

    segmented: whether the model asked for a mask. seg_probability: how sure it was of that. seg_position: how many
    tokens it wrote before it asked. polygons: ids of the outlines that reach into the tile, if it asked for a mask.
    """

    query: str
    l0_x: float
    l0_y: float
    l0_width: float
    l0_height: float
    segmented: bool
    seg_probability: float
    seg_position: int | None
    reasoning: str
    polygons: Sequence[uuid.UUID] = ()


class Ids(Sequence[uuid.UUID]):
    """Ids of outlines, 16 bytes each: a slide may have millions."""

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def __repr__(self) -> str:
        return f"<{len(self)} ids>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ids) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def __len__(self) -> int:
        return len(self.packed) // 16

    @overload
    def __getitem__(self, index: int) -> uuid.UUID: ...
    @overload
    def __getitem__(self, index: slice) -> list[uuid.UUID]: ...
    def __getitem__(self, index: int | slice) -> uuid.UUID | list[uuid.UUID]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        at = 16 * range(len(self))[index]
        return uuid.UUID(bytes=self.packed[at : at + 16])


@dataclass(frozen=True)
class Result:
    """The outlines on one slide, and the reasoning about every tile that was looked at.

    annotations: in the order of the queries, of each from top to bottom; kept on disk (`wsiseg.spill`).
    run: what made it (slide, model, queries, parameters, version): the member `wsiseg` of the GeoJSON.
    notes: sentences for whoever reads the outlines: which query has none, what was left out, what the model should
        not be trusted with.
    """

    annotations: Sequence[Annotation]
    reasoning: list[TileReasoning]
    run: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:  # short: a notebook shows it, and keeps what it shows
        return f"<Result: {len(self.annotations)} outlines, {len(self.reasoning)} answers about tiles>"

    def write_to(self, file: IO[bytes]) -> None:
        """Stream GeoJSON to an open binary file."""
        write_geojson(self.annotations, file, run=self.run)

    def write(self, path: str | os.PathLike[str], format: str | None = None) -> None:  # noqa: A002
        """Write the outlines to `path`, whole or not at all.

        format: a key of `wsiseg.formats.FORMATS`; None chooses by suffix, GeoJSON where that says nothing.

        Raises:
            OutputError: that fails, a package is missing, the format is not for this slide, or `path` is the slide.
        """
        check_apart(path, source_of(self.run))
        formats.write(self.annotations, self.run, path, format)

    def write_reasoning(self, path: str | os.PathLike[str]) -> None:
        """Write `reasoning` as JSON lines, one a tile. OutputError if that fails."""
        check_apart(path, source_of(self.run))
        with atomic_write(path) as file:
            for tile in self.reasoning:
                file.write(orjson.dumps(vars(tile), list) + b"\n")

    def to_geojson(self) -> dict[str, Any]:
        """The GeoJSON as Python values."""
        buffer = io.BytesIO()
        self.write_to(buffer)
        collection: dict[str, Any] = orjson.loads(buffer.getvalue())
        return collection

    def to_geodataframe(self) -> geopandas.GeoDataFrame:
        """One row an outline: id, name, classification, measurements, metadata, geometry.

        Geometry is in level-0 pixels, y downwards, counted as in the GeoJSON; lengths and areas carry their unit
        in the column's name. There is no crs. Needs geopandas.
        """
        try:
            import geopandas
        except ImportError as error:
            raise WsisegError('to_geodataframe needs geopandas: `pip install "wsiseg[geopandas]"`') from error
        rows = [
            {
                "id": str(a.id),
                "name": a.name,
                "classification": a.classification,
                **a.measurements,
                **a.metadata,
            }
            for a in self.annotations
        ]
        columns: Any = rows or {"id": [], "name": [], "classification": []}
        return geopandas.GeoDataFrame(columns, geometry=[a.geometry for a in self.annotations])
