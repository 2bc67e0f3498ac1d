"""Tiles in a Zarr v3 store, read many times; `write.py` writes it.

    slide.zarr/zarr.json          group; attribute `wsiseg`: slide, grid, software, complete
    slide.zarr/pixels             (N, H, W, 3) uint8, shards of 64 patches, one zstd-1 chunk per patch
    slide.zarr/m_xy               (N, 2) int64, corners in model pixels
    slide.zarr/tissue             (N,) float32

A store without pixels holds coordinates only, and reads the slide again when tiles are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from wsiseg.errors import SlideError, StoreError
from wsiseg.slide.source import is_url
from wsiseg.tiles.ahead import read_ahead
from wsiseg.tiles.attributes import StoreAttributes, explain_difference, read_attributes
from wsiseg.tiles.grid import Grid, SlideIdentity
from wsiseg.tiles.shard import decode_chunk, read_chunk, read_index
from wsiseg.tiles.stream import READ_AHEAD_BATCHES, Batches, OnBadTile, SlideTiles, batch_indices

if TYPE_CHECKING:
    import zarr

    from wsiseg.slide import Slide

SHARD_TILES = 64


class TileStore:
    """A `TileSource` over a finished store. Open it with `TileStore.open`."""

    def __init__(
        self, path: Path, grid: Grid, attributes: StoreAttributes, on_bad_tile: OnBadTile = "stop"
    ) -> None:
        self.path = path
        self.grid = grid
        self.attributes = attributes
        self._on_bad_tile = on_bad_tile

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, grid: Grid | None = None, on_bad_tile: OnBadTile = "stop"
    ) -> TileStore:
        """Open a finished store; with `grid`, only if it holds exactly that grid of that slide.

        on_bad_tile: what to do with tiles that could not be read when it was made.

        Raises:
            StoreError: no store, incomplete, malformed, or of another slide or grid.
        """
        folder = Path(path)
        attributes = read_attributes(folder)
        if not attributes.complete:
            raise StoreError(f"{folder} is incomplete: run `wsiseg tile` again, it goes on where it stopped")
        if grid is not None:
            require_same(folder, attributes, grid)
        return cls(folder, _read_grid(folder, attributes), attributes, on_bad_tile)

    @property
    def pixels(self) -> zarr.Array[Any]:
        """The Zarr array (N, H, W, 3) uint8, for readers who want it as such."""
        import zarr

        return zarr.open_array(self.path / "pixels", mode="r")

    def batches(self, size: int, first: int = 0) -> Batches:
        """As `TileSource.batches`.

        Raises:
            StoreError: a shard is missing or damaged; a tile could not be read when the store was made, and none
                may be left out; or the slide is gone or changed, where it has to be read.
        """
        if not self.attributes.pixels:
            return self._slide_batches(size, first)
        left_out = self.attributes.left_out
        if left_out and self._on_bad_tile == "stop":
            raise StoreError(
                f"{self.path} lacks {len(left_out)} tiles that could not be read from the slide: "
                "leave them out with --on-bad-tile skip, or mend the slide and tile it again"
            )

        def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for indices in batch_indices(len(self.grid), size, first):
                there = np.setdiff1d(indices, left_out)
                if len(there):
                    yield there, self.tiles(there)

        return read_ahead(read(), READ_AHEAD_BATCHES)

    def tiles(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The tiles (n, H, W, 3) uint8 with these indices, in any order.

        Raises:
            StoreError: as `batches`.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        size = self.grid.spec.tile_size
        out = np.empty((len(wanted), size, size, 3), np.uint8)
        if not self.attributes.pixels:
            with self._open_slide() as slide, closing(SlideTiles(slide, self.grid).tiles(wanted.tolist())) as tiles:
                for i, tile in enumerate(tiles):
                    assert tile is not None  # none is left out here
                    out[i] = tile
            return out
        runs = np.flatnonzero(np.diff(wanted // SHARD_TILES, prepend=-1, append=-1))
        for first, stop in pairwise(runs):
            shard = int(wanted[first]) // SHARD_TILES
            file = shard_file(self.path, shard)
            try:
                with open(file, "rb") as opened:
                    index = shard_index(opened, shard_tiles(shard, len(self.grid)))
                    for place, tile in zip(wanted[first:stop] % SHARD_TILES, out[first:stop], strict=True):
                        decode_chunk(read_chunk(opened, index, place), tile)
            except (OSError, RuntimeError, ValueError) as error:
                raise StoreError(
                    f"{file} is missing or damaged ({error}): delete it and run `wsiseg tile` again"
                ) from error
        return out

    def _slide_batches(self, size: int, first: int) -> Batches:
        with self._open_slide() as slide:
            source = SlideTiles(slide, self.grid, self._on_bad_tile)
            with closing(source.batches(size, first)) as batches:
                yield from batches

    def _open_slide(self) -> Slide:
        """The slide that the store was made from: where it lay then, or beside the store."""
        from wsiseg.slide import open_slide

        identity = self.grid.slide
        written_on_windows = bool(PureWindowsPath(identity.source).drive)
        name = (PureWindowsPath if written_on_windows else Path)(identity.source).name
        beside = str(self.path.parent / name)
        reason = f"it lies neither at {identity.source} nor at {beside}"
        for source in (identity.source, beside):
            if not is_url(source) and not Path(source).exists():
                continue
            try:
                slide = open_slide(source, backend=self.attributes.backend, slide_mpp=(identity.mpp_x, identity.mpp_y))
            except SlideError as error:  # here; it may lie in the other place
                reason = str(error)
                continue
            if replace(SlideIdentity.of(slide), source=identity.source) == identity:
                return slide
            slide.close()
            reason = f"{source} has changed, or is another slide"
        raise StoreError(
            f"{self.path} holds no pixels and its slide cannot be read: {reason}; "
            "put the slide back, or run `wsiseg tile` on it with another --out"
        )


def shard_file(folder: Path, shard: int) -> Path:
    return folder / "pixels" / "c" / str(shard) / "0" / "0" / "0"


def shard_index(file: IO[bytes], tiles: int) -> np.ndarray:
    """As `read_index`, of an open shard of so many `tiles`: (tiles, 2). ValueError: it is none."""
    index = read_index(file, SHARD_TILES)
    if index is None or (index[tiles:] != -1).any():
        raise ValueError("its index is not that of a whole shard")
    return index[:tiles]


def shard_tiles(shard: int, total: int) -> int:
    """How many of the `total` tiles of a store lie in a shard."""
    return min(SHARD_TILES, total - shard * SHARD_TILES)


def _read_grid(folder: Path, attributes: StoreAttributes) -> Grid:
    import zarr

    try:
        m_xy = np.asarray(zarr.open_array(folder / "m_xy", mode="r")[...])
        tissue = np.asarray(zarr.open_array(folder / "tissue", mode="r")[...])
    except Exception as error:  # zarr's errors for broken metadata and chunks have no common root
        raise StoreError(f"{folder} is damaged (its coordinates): delete it and run `wsiseg tile`") from error
    grid = Grid(attributes.spec, attributes.slide, attributes.m_width, attributes.m_height, m_xy, tissue)
    if (
        m_xy.shape != (attributes.tiles, 2)
        or tissue.shape != (attributes.tiles,)
        or grid.fingerprint != attributes.grid_fingerprint
    ):
        raise StoreError(f"{folder} is damaged: its coordinates are not those that its attributes name")
    return grid


def require_same(folder: Path, stored: StoreAttributes, grid: Grid) -> None:
    """StoreError unless the store in `folder` is of this grid of this slide."""
    wanted = StoreAttributes.of(grid, level=stored.level, software=stored.software)
    if reason := explain_difference(stored, wanted):
        raise StoreError(f"{folder} cannot be used: {reason}; choose another store, or delete this one")
