"""Overlapping tiles become one image, row by row, holding no more than one tile's height at a time.

Every tile is weighted by a trapezoid along each axis, wy(y)·wx(x): 1 in the middle, falling linearly over
the overlap. The blend is Σ w·p / Σ w, so a constant stays a constant wherever any tile lies, slide edges
included. Because the weights are separable and the tiles of a row share their y, Σ w needs one line per row
of tiles instead of a second image, and a silent tile costs nothing but its share of that line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_CACHE_ROWS = 64
"""Rows finished at once: few enough that the temporaries stay in the processor's cache."""


def tile_weights(tile_size: int, overlap: int) -> np.ndarray:
    """Blending weights along one axis of a tile, (tile_size,) float32, all > 0."""
    if overlap == 0:
        return np.ones(tile_size, np.float32)
    distance = np.arange(tile_size, dtype=np.float32) + np.float32(0.5)  # of a pixel's centre from the edge
    return np.minimum(1, np.minimum(distance, tile_size - distance) / np.float32(overlap))


@dataclass(frozen=True)
class _TileRow:
    m_y: int
    weight: np.ndarray  # (m_width,) float32: Σ wx over the tiles of this row
    spoken: np.ndarray  # (m_width,) bool: where a tile of this row brought a probability


class RollingBand:
    """The weighted sum of the tiles that reach below the last finished row: (tile_size, m_width) float32."""

    def __init__(self, m_width: int, tile_size: int, overlap: int) -> None:
        self._tile_size = tile_size
        self._weights = tile_weights(tile_size, overlap)
        self._weights_2d = np.outer(self._weights, self._weights)
        self._scratch = np.empty((tile_size, tile_size), np.float32)
        self._sum = np.zeros((tile_size, m_width), np.float32)
        self._m_y0 = 0
        self._rows: list[_TileRow] = []

    def add(self, m_x: int, m_y: int, probability: np.ndarray | None) -> None:
        """Blend one tile in; `finished(m_y)` must have been exhausted before.

        `probability` is (tile_size, tile_size) in [0, 1]; None counts as 0 everywhere. What hangs over the
        canvas's edges is cut off.
        """
        size, m_width = self._tile_size, self._sum.shape[1]
        if max(m_y, 0) != self._m_y0 or not -size < m_x < m_width:
            raise ValueError(f"tile at ({m_x}, {m_y}) is out of order or off the canvas: rows start at {self._m_y0}")
        if not self._rows or self._rows[-1].m_y != m_y:
            self._rows.append(_TileRow(m_y, np.zeros(m_width, np.float32), np.zeros(m_width, bool)))
        row, above = self._rows[-1], max(-m_y, 0)
        columns = slice(max(m_x, 0), min(m_x + size, m_width))
        inside = slice(columns.start - m_x, columns.stop - m_x)  # of the tile's own columns
        row.weight[columns] += self._weights[inside]
        if probability is None:
            return
        row.spoken[columns] = True
        weighted = np.multiply(probability, self._weights_2d, out=self._scratch)
        self._sum[: size - above, columns] += weighted[above:, inside]

    def finished(self, m_y: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Give out, and forget, the rows above `m_y`, as blocks (m_x0, m_y0, (h, w) float32 probability).

        Blocks cover only the columns where a tile spoke; elsewhere the probability is 0.
        """
        height = min(m_y - self._m_y0, self._tile_size)
        if height < 0:
            raise ValueError(f"tiles must come in row-major order: row {m_y} after row {self._m_y0}")
        if self._rows and height:
            weight_x = np.stack([row.weight for row in self._rows])  # (tile rows, m_width)
            for start, stop in _runs(np.logical_or.reduce([row.spoken for row in self._rows])):
                for top in range(0, height, _CACHE_ROWS):
                    bottom = min(top + _CACHE_ROWS, height)
                    weight = self._weights_y(top, bottom) @ weight_x[:, start:stop]
                    # Where no tile lies both sums are 0.
                    np.maximum(weight, np.finfo(np.float32).tiny, out=weight)
                    yield (
                        start,
                        self._m_y0 + top,
                        np.divide(self._sum[top:bottom, start:stop], weight, out=weight),
                    )
                columns = self._sum[:, start:stop]
                columns[: self._tile_size - height] = columns[height:]
                columns[self._tile_size - height :] = 0
        self._m_y0 = m_y
        self._rows = [row for row in self._rows if row.m_y + self._tile_size > m_y]

    def _weights_y(self, top: int, bottom: int) -> np.ndarray:
        """Each tile row's wy at the band's rows top..bottom: (bottom - top, tile rows)."""
        y = np.arange(self._m_y0 + top, self._m_y0 + bottom)[:, None] - [row.m_y for row in self._rows]
        inside = (y >= 0) & (y < self._tile_size)
        return np.where(inside, self._weights[np.where(inside, y, 0)], np.float32(0))


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Half-open intervals in which `flags` (n,) is True."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
