"""Tiles straight from the slide, in grid order, read ahead of the consumer in a bounded queue."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from wsiseg.errors import PixelError
from wsiseg.slide.patience import NoAnswerError, no_answer, patiently
from wsiseg.slide.resample import WHITE
from wsiseg.tiles.ahead import map_ahead, read_ahead
from wsiseg.tiles.grid import Grid, mirror_beyond
from wsiseg.tiles.native import native_tiles, open_native_level

if TYPE_CHECKING:
    from wsiseg.slide import Slide

log = logging.getLogger(__name__)

READ_AHEAD_BATCHES = 2
WORKERS = min(4, os.cpu_count() or 1)
MAX_TOLD = 5  # tiles left out that are named one by one

# What to do with a tile that cannot be decoded: end with an error, or leave it out.
OnBadTile = Literal["stop", "skip"]

# Indices (B,) int64 and tiles (B, H, W, 3) uint8; closing it early stops the reading.
Batches = Generator[tuple[np.ndarray, np.ndarray], None, None]


class TileSource(Protocol):
    """What the model reads from: a slide, or a store of tiles."""

    grid: Grid

    def batches(self, size: int, first: int = 0) -> Batches:
        """Yield (indices (B,) int64, tiles (B, H, W, 3) uint8) in grid order, from tile `first` on.

        Batches begin at multiples of `size`, wherever the first begins; what cannot be decoded is left out of them.
        """
        ...


class SlideTiles:
    """A `TileSource` straight from an open slide; the slide must stay open while batches are drawn."""

    def __init__(self, slide: Slide, grid: Grid, on_bad_tile: OnBadTile = "stop") -> None:
        self.slide = slide
        self.grid = grid
        self.on_bad_tile = on_bad_tile
        self._told = 0

    def batches(self, size: int, first: int = 0) -> Batches:
        """As `TileSource.batches`. Memory: at most four batches, whatever the slide.

        Raises:
            PixelError: a tile cannot be decoded, and none may be left out.
            SlideError: the slide is gone, or does not answer.
        """
        return read_ahead(self._batches(size, first), READ_AHEAD_BATCHES)

    def tiles(self, indices: Sequence[int]) -> Generator[np.ndarray | None, None, None]:
        """The tiles (H, W, 3) uint8 with these indices, in this order; None for one that is left out.

        Raises:
            PixelError, SlideError: as `batches`.
        """
        return self._fill(indices, (np.empty(self._shape, np.uint8) for _ in indices))

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.grid.spec.tile_size, self.grid.spec.tile_size, 3

    def _batches(self, size: int, first: int) -> Batches:
        begun: deque[tuple[np.ndarray, np.ndarray]] = deque()

        def places() -> Iterator[np.ndarray]:  # tiles are read into their batch, never copied there
            for indices in batch_indices(len(self.grid), size, first):
                begun.append((indices, np.empty((len(indices), *self._shape), np.uint8)))
                yield from begun[-1][1]

        with closing(self._fill(range(first, len(self.grid)), places())) as filled:
            for tile in filled:
                indices, tiles = begun.popleft()
                rest = islice(filled, len(indices) - 1)
                read = np.array([tile is not None, *(other is not None for other in rest)])
                if read.all():
                    yield indices, tiles
                elif read.any():
                    yield indices[read], tiles[read]

    def _fill(self, indices: Sequence[int], outs: Iterable[np.ndarray]) -> Generator[np.ndarray | None, None, None]:
        """Read the tiles with these indices into `outs`, and yield each as it is done, in order; None for bad ones."""
        slide, spec = self.slide, self.grid.spec
        bad: set[tuple[int, int]] = set()

        def read(m_x: int, m_y: int) -> np.ndarray:
            try:
                return slide.read_at_mpp(m_x, m_y, spec.tile_size, spec.tile_size, spec.mpp)
            except PixelError as error:
                if self.on_bad_tile == "stop":
                    raise PixelError(f"{error}, or leave such tiles out with --on-bad-tile skip") from error
                bad.add((m_x, m_y))
                self._tell(error)
                return np.full(3, WHITE, np.uint8)

        def fill(job: tuple[int, np.ndarray]) -> np.ndarray:
            index, out = job
            out[...] = read(*self._m_corner(index))
            return out

        native = patiently(slide.source, lambda: open_native_level(slide, slide.level_for_mpp(spec.mpp)[0]))
        if native is not None:
            filled = native_tiles(slide, self.grid, indices, outs, native, read=read, workers=WORKERS)
        else:
            filled = map_ahead(fill, zip(indices, outs, strict=False), workers=WORKERS, ahead=2 * WORKERS)
        with closing(filled):
            for index in indices:
                m_x, m_y = self._m_corner(index)
                try:
                    tile = next(filled)
                except NoAnswerError as error:
                    per_x, per_y = self.grid.l0_per_m
                    place = f" at level-0 pixel ({m_x * per_x:.0f}, {m_y * per_y:.0f})"
                    raise no_answer(slide.source, place) from error
                mirror_beyond(tile, (m_x, m_y), (self.grid.m_width, self.grid.m_height))
                yield None if (m_x, m_y) in bad else tile

    def _m_corner(self, index: int) -> tuple[int, int]:
        m_x, m_y = self.grid.m_xy[index].tolist()
        return m_x, m_y

    def _tell(self, error: PixelError) -> None:
        self._told += 1
        if self._told <= MAX_TOLD:
            more = "; further ones are counted only" if self._told == MAX_TOLD else ""
            log.warning("a tile is left out: %s%s", error, more)


def batch_indices(tiles: int, size: int, first: int = 0) -> Iterator[np.ndarray]:
    """Indices (B,) int64 of the tiles from `first` on, in batches that end at multiples of `size`."""
    for start in range(first - first % size, tiles if first < tiles else 0, size):
        yield np.arange(max(first, start), min(start + size, tiles), dtype=np.int64)
