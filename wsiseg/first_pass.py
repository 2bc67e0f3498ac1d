"""A first look from farther away: tiles in which it draws nothing are not asked.

What it saves and loses depends on the structure: docs/speed.md, measured by `python -m benchmarks.quality.first_pass`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from wsiseg.errors import StoreError
from wsiseg.inference import Segmenter
from wsiseg.inference.answers import answers
from wsiseg.slide.scale import m_size
from wsiseg.tiles import Grid, SlideTiles, TileSource
from wsiseg.tiles.grid import tile_starts

FACTOR = 2  # µm per pixel of the first look, over those of the second
_THRESHOLD = 0.1  # of its probability: it may be unsure
_CELL = 16  # of its pixels: it says of squares of this side, and of their neighbours, whether they are worth asking


def worth_asking(
    tiles: TileSource,
    queries: Sequence[str],
    model: Segmenter,
    batch_size: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> SlideTiles:
    """The same tiles without those in which a look at `FACTOR` times their µm per pixel finds nothing of any query.

    What cannot be read from afar is kept.

    Raises:
        StoreError: a tile store has one resolution. SlideError, QueryError: as `answers`.
    """
    if not isinstance(tiles, SlideTiles):
        raise StoreError("a tile store holds one resolution: a first pass needs the slide itself")
    grid = tiles.grid
    far = coarser(grid)
    found = _empty_map(far)
    unread = np.ones(len(far), bool)
    seen = SlideTiles(tiles.slide, far, tiles.on_bad_tile)
    with closing(answers(seen, queries, model, batch_size, cache=False)) as answered:
        for indices, masks in answered:
            for of_query in masks.values():
                for i, mask in zip(indices, of_query, strict=True):
                    if mask.probability is not None:
                        _mark(found, far.m_xy[i], mask.probability > _THRESHOLD)
            unread[indices] = False
            if progress:
                progress(int(indices[-1]) + 1, len(far) + len(grid))
    for m_xy in far.m_xy[unread]:
        found[_cells(m_xy, far.spec.tile_size)] = True
    kept = np.array([found[_cells(m_xy / FACTOR, grid.spec.tile_size / FACTOR, 1)].any() for m_xy in grid.m_xy], bool)
    return SlideTiles(tiles.slide, grid.only(kept), tiles.on_bad_tile)


def coarser(grid: Grid) -> Grid:
    """Tiles of `FACTOR` times the µm per pixel that cover those of `grid`."""
    spec, slide = replace(grid.spec, mpp=FACTOR * grid.spec.mpp), grid.slide
    l0_per_x, l0_per_y = (FACTOR * per for per in grid.l0_per_m)
    m_width, m_height = m_size(slide.l0_width, l0_per_x), m_size(slide.l0_height, l0_per_y)
    far = Grid(spec, slide, m_width, m_height, np.empty((0, 2), np.int64), np.empty(0, np.float32))
    wanted = _empty_map(far)
    for m_xy in grid.m_xy:
        wanted[_cells(m_xy / FACTOR, spec.tile_size / FACTOR)] = True
    m_x, m_y = (tile_starts(length, spec.tile_size, spec.overlap) for length in (m_width, m_height))
    lattice = np.stack(np.meshgrid(m_x, m_y), axis=-1).reshape(-1, 2)  # row by row
    kept = np.array([wanted[_cells(m_xy, spec.tile_size)].any() for m_xy in lattice], bool)
    return replace(far, m_xy=lattice[kept], tissue=np.ones(int(kept.sum()), np.float32))


def _empty_map(far: Grid) -> np.ndarray:
    """(rows, columns) bool, one for each square of `_CELL` pixels."""
    return np.zeros((math.ceil(far.m_height / _CELL), math.ceil(far.m_width / _CELL)), bool)


def _cells(m_xy: np.ndarray, tile_size: float, margin: int = 0) -> tuple[slice, slice]:
    """The squares that a tile touches, and `margin` more on each side."""
    x, y = (
        slice(max(0, math.floor(start / _CELL) - margin), math.ceil((start + tile_size) / _CELL) + margin)
        for start in m_xy.tolist()
    )
    return y, x


def _mark(found: np.ndarray, m_xy: np.ndarray, drawn: np.ndarray) -> None:
    """Set the squares in which something is drawn on a tile (S, S) bool at `m_xy`."""
    rows, columns = np.nonzero(drawn)
    rows, columns = (rows + m_xy[1]) // _CELL, (columns + m_xy[0]) // _CELL
    inside = (rows >= 0) & (rows < found.shape[0]) & (columns >= 0) & (columns < found.shape[1])
    found[rows[inside], columns[inside]] = True
