"""Polygons to labels: the exact opposite of tracing. A pixel belongs to a polygon when its centre does."""

from __future__ import annotations

import numpy as np

from wsiseg.mask.measure import crossings, edges, rows_crossed


def paint(polygons: np.ndarray, values: np.ndarray, out: np.ndarray, x0: int = 0, y0: int = 0) -> None:
    """Write into `out` the value of the polygon that covers each pixel; of several that of the last.

    The cost is that of the outlines and of the pixels painted: an outline crosses the centres of a row of pixels
    an even number of times, and between the first and the second of them, the third and the fourth, … it is inside.

    Args:
        polygons: (N,) shapely Polygons or MultiPolygons, valid, in the plane of the raster.
        values: (N,) what to write.
        out: (h, w), C-contiguous; its pixel [0, 0] has its centre at (x0 + ½, y0 + ½).
    """
    paint_edges(*edges(polygons), values, out, x0, y0)


def paint_edges(
    owner: np.ndarray, x: np.ndarray, y: np.ndarray, values: np.ndarray, out: np.ndarray, x0: int = 0, y0: int = 0
) -> None:
    """As `paint`, of the `edges` of polygons; those that cross no row of `out` may be left out."""
    height, width = out.shape
    first, stop = (np.clip(row, y0, y0 + height) for row in rows_crossed(y))
    edge, row, crossing = crossings(x, y, first, stop - first)
    row -= y0
    column = np.clip(np.ceil(crossing - x0 - 0.5), 0, width).astype(np.int64)  # pixel centres left of it
    key = np.sort((owner[edge] * height + row) * (width + 1) + column)
    line, begin = np.divmod(key[0::2], width + 1)
    length = key[1::2] - key[0::2]
    start = line % height * width + begin
    pixel = np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
    out.reshape(-1)[pixel] = np.repeat(values[line // height], length)
