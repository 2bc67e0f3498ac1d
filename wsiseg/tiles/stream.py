"""Tiles straight from the slide, in grid order, read ahead of the consumer in a bounded queue."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
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


# Indices (B,) int64 and tiles (B, H, W, 3) uint8; closing it early stops the reading.
Batches = Generator[tuple[np.ndarray, np.ndarray], None, None]


class TileSource(Protocol):
    """What the model reads from: a slide, or a store of tiles."""

    grid: Grid

    def batches(self, size: int) -> Batches:
        """Yield (indices (B,) int64, tiles (B, H, W, 3) uint8) in grid order; the last may be shorter."""
        ...


class SlideTiles:
    """A `TileSource` straight from an open slide; the slide must stay open while batches are drawn."""

    def __init__(self, slide: Slide, grid: Grid) -> None:
        self.slide = slide
        self.grid = grid

    def batches(self, size: int) -> Batches:
        """As `TileSource.batches`. Memory: at most four batches, whatever the slide.

        Raises:
            SlideError: the slide cannot be read at some tile.
        """
        return read_ahead(self._batches(size), READ_AHEAD_BATCHES)

    def tiles(self, indices: Sequence[int]) -> Generator[np.ndarray, None, None]:
        """The tiles (H, W, 3) uint8 with these indices, in this order."""
        return self._fill(indices, (np.empty(self._shape, np.uint8) for _ in indices))

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.grid.spec.tile_size, self.grid.spec.tile_size, 3

    def _batches(self, size: int) -> Batches:
        begun: deque[tuple[np.ndarray, np.ndarray]] = deque()

        def places() -> Iterator[np.ndarray]:  # tiles are read into their batch, never copied there
            for start in range(0, len(self.grid), size):
                indices = np.arange(start, min(start + size, len(self.grid)), dtype=np.int64)
                begun.append((indices, np.empty((len(indices), *self._shape), np.uint8)))
                yield from begun[-1][1]

        with closing(self._fill(range(len(self.grid)), places())) as filled:
            while any(True for _ in islice(filled, 1)):
                indices, tiles = begun.popleft()
                for _ in islice(filled, len(indices) - 1):
                    pass
                yield indices, tiles

    def _fill(self, indices: Sequence[int], outs: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Read the tiles with these indices into `outs`, and yield each as it is done, in order."""
        spec = self.grid.spec
        native = open_native_level(self.slide, self.slide.level_for_mpp(spec.mpp)[0])
        if native is not None:
            return native_tiles(self.slide, self.grid, indices, outs, native, workers=WORKERS)

        def read(job: tuple[int, np.ndarray]) -> np.ndarray:
            index, out = job
            m_x, m_y = (int(m) for m in self.grid.m_xy[index])
            out[...] = self.slide.read_at_mpp(m_x, m_y, spec.tile_size, spec.tile_size, spec.mpp)
            return out

        return map_ahead(read, zip(indices, outs, strict=False), workers=WORKERS, ahead=2 * WORKERS)
