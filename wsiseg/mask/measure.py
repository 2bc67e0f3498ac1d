"""The mean of a raster inside each of many polygons, in one pass over the raster.

A pixel belongs to a polygon when its centre does. In a row of pixels, the sum over a polygon's interior is
the sum of the row's running total at each place where the outline crosses the row of centres, signed by the
crossing's direction (Green's theorem on a pixel grid). So no polygon is ever rasterised, and the cost is
that of the outlines.
"""

from __future__ import annotations

import numpy as np
import shapely

from wsiseg.mask.shapes import rings_of
from wsiseg.mask.trace import Bands


def mean_inside(bands: Bands, polygons: np.ndarray, m_left: int = 0) -> np.ndarray:
    """Mean raster value inside each polygon.

    Args:
        bands: (m_y0, (h, m_width) uint8), as `Canvas.bands` gives them.
        polygons: (N,) shapely Polygons or MultiPolygons, valid, in the plane of the raster.
        m_left: the column of that plane in which the bands begin.

    Returns:
        (N,) float64; NaN where no pixel centre of the bands is inside.
    """
    owner, x, y = edges(polygons)
    first, stop = rows_crossed(y)
    by_first = np.argsort(first, kind="stable")
    by_first = by_first[first[by_first] < stop[by_first]]
    sums, counts = np.zeros(len(polygons)), np.zeros(len(polygons))
    waiting, seen = by_first[:0], np.intp(0)
    for m_y0, band in bands:
        m_y1 = m_y0 + len(band)
        until = np.searchsorted(first[by_first], m_y1)
        active = np.concatenate([waiting, by_first[seen:until]])
        active = active[stop[active] > m_y0]
        waiting, seen = active[stop[active] > m_y1], until
        if not len(active):
            continue
        top = np.maximum(first[active], m_y0)
        rows = np.minimum(stop[active], m_y1) - top
        edge, row, crossing = crossings(x[active], y[active], top, rows)
        edge = active[edge]
        left = np.clip(np.ceil(crossing - 0.5) - m_left, 0, band.shape[1]).astype(np.int64)  # pixel centres left of it
        sign = np.where(y[edge, 1] > y[edge, 0], 1, -1)
        start, end = left.min(), left.max()
        running = np.zeros((len(band), end - start + 1), np.uint32)
        np.cumsum(band[:, start:end], axis=1, dtype=np.uint32, out=running[:, 1:])
        total = running[row - m_y0, left - start]
        sums += np.bincount(owner[edge], sign * total.astype(np.float64), len(polygons))
        counts += np.bincount(owner[edge], sign * left, len(polygons))
    with np.errstate(invalid="ignore"):
        return sums / counts


def rows_crossed(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of pixels whose centres, at r + ½, each edge crosses: the first, and the one after the last."""
    first, stop = np.ceil(y.min(axis=1) - 0.5), np.ceil(y.max(axis=1) - 0.5)
    return first.astype(np.int64), stop.astype(np.int64)


def crossings(
    x: np.ndarray, y: np.ndarray, top: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where edges (e, 2) cross `rows` (e,) rows of pixel centres, from `top` (e,) on: edge, row and x of each place."""
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows - top, rows)
    (x0, x1), (y0, y1) = x[edge].T, y[edge].T
    return edge, row, x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))


def edges(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All edges of all rings, holes running against their shell: owner (e,), x (e, 2), y (e, 2)."""
    rings, owner, _ = rings_of(shapely.orient_polygons(polygons))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    inner = np.flatnonzero(ring[1:] == ring[:-1])
    ends = np.stack([inner, inner + 1], axis=1)
    return owner[ring[inner]], xy[ends, 0], xy[ends, 1]
