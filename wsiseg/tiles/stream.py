"""Tiles straight from the slide, in grid order, read ahead of the consumer in a bounded queue."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from wsiseg.tiles.ahead import map_ahead, read_ahead
from wsiseg.tiles.grid import Grid
from wsiseg.tiles.native import native_tiles, open_native_level

if TYPE_CHECKING:
    from wsiseg.slide import Slide

READ_AHEAD_BATCHES = 2
WORKERS = min(4, os.cpu_count() or 1)


class TileSource(Protocol):
    """What the model reads from: a slide, or a store of tiles."""

    grid: Grid

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (indices (B,) int64, tiles (B, H, W, 3) uint8) in grid order; the last may be shorter."""
        ...


class SlideTiles:
    """A `TileSource` straight from an open slide; the slide must stay open while batches are drawn."""

    def __init__(self, slide: Slide, grid: Grid) -> None:
        self.slide = slide
        self.grid = grid

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `TileSource.batches`. Memory: at most four batches, whatever the slide.

        Raises:
            SlideError: the slide cannot be read at some tile.
        """
        indices = range(len(self.grid))
        return read_ahead(_stack(indices, self.tiles(indices), size), READ_AHEAD_BATCHES)

    def tiles(self, indices: Sequence[int]) -> Generator[np.ndarray, None, None]:
        """The tiles (H, W, 3) uint8 with these indices, in this order."""
        spec = self.grid.spec
        native = open_native_level(self.slide, self.slide.level_for_mpp(spec.mpp)[0])
        if native is not None:
            return native_tiles(self.slide, self.grid, indices, native, workers=WORKERS)

        def read(index: int) -> np.ndarray:
            m_x, m_y = (int(m) for m in self.grid.m_xy[index])
            return self.slide.read_at_mpp(m_x, m_y, spec.tile_size, spec.tile_size, spec.mpp)

        return map_ahead(read, indices, workers=WORKERS, ahead=2 * WORKERS)


def _stack(
    indices: Iterable[int], tiles: Iterable[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    pairs = zip(indices, tiles, strict=True)
    while batch := list(islice(pairs, size)):
        yield np.array([index for index, _ in batch], dtype=np.int64), np.stack([tile for _, tile in batch])
