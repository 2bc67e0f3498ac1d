"""Outlines of a raster larger than memory, without seams.

The raster is read once, in bands of rows. Of each band only the corners of its outlines are kept: the
lattice vertices whose 2×2 pixels hold one or three foreground pixels, or two on a diagonal (which count
twice). They are linked (`rings.py`) when enough have come (`front.py`): in row order the corners pair up into
horizontal edges, in column order into vertical ones, and following them alternately gives the rings. There are no
seams, so there is nothing to join.

Foreground is 4-connected, background 8-connected. Two kinds of outline share all of this:

- `trace` follows the pixel edges. Its area equals the pixel count.
- `contour` passes through the points where the probability crosses a level, linearly between pixel centres.
  Each unit of pixel edge separates a pixel above the level from one below and holds exactly one such point;
  moving it there turns the pixel outline into marching squares (Lorensen & Cline 1987, in 2-D) of the same
  topology.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from wsiseg.mask.front import Finished, Scanned, finished
from wsiseg.mask.rings import twice_at_checkerboards

Bands = Iterable[tuple[int, np.ndarray]]
"""(m_y0, (h, m_width)) from top to bottom, of any heights; rows left out count as 0."""

_CACHE_ROWS = 128
_NO_CROSSINGS = np.empty((0, 2))


def trace(bands: Bands, m_width: int, min_area: float = 0.0) -> np.ndarray:
    """All polygons of `traced` at once, ordered by their topmost, leftmost corner."""
    return _all(traced(bands, m_width, min_area))


def contour(bands: Bands, m_width: int, level: float, min_area: float = 0.0) -> np.ndarray:
    """All polygons of `contoured` at once, ordered by their topmost, leftmost corner."""
    return _all(contoured(bands, m_width, level, min_area))


def traced(bands: Bands, m_width: int, min_area: float = 0.0) -> Iterator[Finished]:
    """Polygons along the pixel edges of the non-zero pixels, batch by batch.

    Args:
        min_area: shells and holes that enclose less are left out.

    Returns:
        Where each one begins, and (N,) shapely Polygons in the plane of the raster (pixel (x, y) covers
        [x, x+1] × [y, y+1]), valid, with holes. Their areas add up to the pixel count.
    """

    def scan() -> Iterator[tuple[int, Scanned]]:
        for m_y0, sheet in _sheets(bands, m_width):
            corners = _corners(m_y0, _foreground(sheet, 1))
            yield m_y0 + len(sheet) - 1, Scanned(*corners, _NO_CROSSINGS, _NO_CROSSINGS)

    return finished(scan(), m_width, min_area, smooth=False)


def contoured(bands: Bands, m_width: int, level: float, min_area: float = 0.0) -> Iterator[Finished]:
    """Smooth polygons around the pixels whose value is at least `level`, with sub-pixel vertices, batch by batch.

    Args:
        bands: uint8 values at the pixels' centres (x + ½, y + ½); outside the raster the value is 0.
        level: in (0, 255]. It is taken as the half below its ceiling, which changes no pixel's side and keeps
            every vertex off the pixel centres, so that all polygons are valid.
        min_area: shells and holes that enclose less are left out.

    Returns:
        As `traced`, except that vertices may lie up to half a pixel off the raster.
    """
    lowest = int(np.ceil(level))
    if not 0 < lowest <= 255:
        raise ValueError(f"level {level} is not in (0, 255]")

    def scan() -> Iterator[tuple[int, Scanned]]:
        for m_y0, sheet in _sheets(bands, m_width):
            mask = _foreground(sheet, lowest)
            corners, crossings = _corners(m_y0, mask), _crossings(m_y0, sheet, mask, lowest - 0.5)
            yield m_y0 + len(sheet) - 1, Scanned(*corners, *crossings)

    return finished(scan(), m_width, min_area, smooth=True)


def _all(batches: Iterable[Finished]) -> np.ndarray:
    places, found = [np.empty(0, np.int64)], [np.empty(0, object)]
    for place, polygons in batches:
        places.append(place)
        found.append(polygons)
    in_order: np.ndarray = np.concatenate(found)[np.argsort(np.concatenate(places))]
    return in_order


def _sheets(bands: Bands, m_width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cut bands into sheets that repeat the last row of the one before, bordered by zeros.

    Yields (m_y0, (h + 1, m_width + 2)): pixel rows m_y0 - 1 … m_y0 + h - 1. Sheets of zeros are left out.
    """
    nothing = np.zeros((1, m_width), np.uint8)
    last, below = nothing, 0  # `below`: the row after the last one seen

    def sheet(m_y0: int, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        if last.any() or rows.any():
            padded = np.zeros((len(rows) + 1, m_width + 2), rows.dtype)
            padded[0, 1:-1], padded[1:, 1:-1] = last, rows
            yield m_y0, padded

    for m_y0, band in bands:
        if m_y0 > below:
            yield from sheet(below, nothing)
            last = nothing
        for top in range(0, len(band), _CACHE_ROWS):
            rows = band[top : top + _CACHE_ROWS]
            yield from sheet(m_y0 + top, rows)
            last = rows[-1:]
        below = m_y0 + len(band)
    yield from sheet(below, nothing)


def _foreground(sheet: np.ndarray, lowest: int) -> np.ndarray:
    return (sheet >= lowest).view(np.uint8)


def _corners(m_y0: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a 0/1 sheet: vertex (k,) int64 and code (k,) uint8, as `Scanned` wants them."""
    edges = mask[1:] ^ mask[:-1]  # on each line, above each column: does the outline run here?
    corner = edges[:, 1:] ^ edges[:, :-1]  # where a run begins or ends
    checkerboard = edges[:, 1:] & edges[:, :-1]
    checkerboard &= mask[1:, 1:] ^ mask[1:, :-1]
    corner |= checkerboard
    vertices = corner.shape[1]
    flat = np.flatnonzero(corner.ravel().view(bool))
    i, j = np.divmod(flat, vertices)
    code = mask[i, j] | mask[i, j + 1] << 1 | mask[i + 1, j] << 2 | mask[i + 1, j + 1] << 3
    return twice_at_checkerboards(flat + m_y0 * vertices, code)


def _crossings(m_y0: int, sheet: np.ndarray, mask: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the level is crossed, once per unit of pixel edge.

    Returns:
        (n, 2) x, y on horizontal edges and (m, 2) on vertical ones, each in row order.
    """

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float32), b.astype(np.float32)
        return (a - np.float32(level)) / (a - b) - np.float32(0.5)

    i, j = np.nonzero((mask[1:] ^ mask[:-1]).view(bool))
    horizontal = np.stack([j - 0.5, m_y0 + i + between(sheet[i, j], sheet[i + 1, j])], axis=1)
    i, j = np.nonzero((mask[1:, 1:] ^ mask[1:, :-1]).view(bool))
    vertical = np.stack([j + between(sheet[i + 1, j], sheet[i + 1, j + 1]), m_y0 + i + 0.5], axis=1)
    return horizontal, vertical
