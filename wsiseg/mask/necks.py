"""Cells that touch are drawn as one: cut their common outline where it is narrow.

In the distance to the outline, each cell is a hill and a neck between two is a saddle. Hills are told apart by their
steepest ascents and joined, from the highest saddle down, while the saddle is nearly as high as the lower summit
(what h-maxima do; Soille 2003, Morphological Image Analysis, 6.3). Where they are not joined, the outline
is cut from its nearest point to the nearest one across. Only these cuts come from a raster: pieces keep the outline.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely
from scipy import ndimage
from scipy.spatial import KDTree

from wsiseg.mask.measure import edges
from wsiseg.mask.raster import paint_edges

# Chosen on nuclei of NuInsSeg's training organs, drawn by the bundled model (benchmarks/quality/touching.py).
_ROUND = 0.95  # an outline that fills this much of its convex hull has no neck
_LEAST_UM = 1.1  # a cell's inner radius
# In model pixels: the outline is as rough as they are.
_DROP = 0.5  # from the lower of two summits to the saddle between them
_BLUR = 1.0  # of the distance
# Necks are looked for in windows, so that memory stays flat however many cells touch; in model pixels.
_WINDOW, _HALO = 1024, 128
_ACROSS = 4.0  # how far the outline may lie from a neck, of what its nearest point does
_BEYOND = 0.02  # model pixels that a cut goes over the outline, so that they do cross

_FORWARD = ((0, 1), (1, -1), (1, 0), (1, 1))  # (dy, dx): each pair of neighbouring pixels once


def cut_at_necks(m_polygons: np.ndarray, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Polygons (N,) in model pixels of `mpp` µm, apart where they have a neck as between two round cells.

    Returns:
        The pieces (M,) and which polygon each is of (M,), in the order of these; pieces of one from top to bottom.
        They are the polygon, without overlaps.
    """
    pieces: list[np.ndarray] = []
    fill = shapely.area(m_polygons) / np.maximum(shapely.area(shapely.convex_hull(m_polygons)), np.finfo(float).tiny)
    for polygon, is_round in zip(m_polygons, fill >= _ROUND, strict=True):
        cuts = [] if is_round else list(_cuts(polygon, mpp))
        pieces.append(_apart(polygon, cuts) if cuts else np.array([polygon], object))
    counts = [len(p) for p in pieces]
    return np.concatenate([np.empty(0, object), *pieces]), np.repeat(np.arange(len(pieces)), counts)


def _cuts(polygon: shapely.Polygon, mpp: float) -> Iterator[shapely.LineString]:
    left, top, *_ = np.floor(polygon.bounds).astype(int).tolist()
    *_, right, bottom = np.ceil(polygon.bounds).astype(int).tolist()
    owner, x, y = edges(np.array([polygon]))
    x_min, x_max, y_min, y_max = x.min(axis=1), x.max(axis=1), y.min(axis=1), y.max(axis=1)
    # The windows lie where they lie for all of a slide, so that a part of it is cut as the whole is.
    for m_y in range(top - top % _WINDOW, bottom, _WINDOW):
        y0, y1 = max(m_y - _HALO, top - 1), min(m_y + _WINDOW + _HALO, bottom + 1)
        rows = np.flatnonzero((y_min < y1) & (y_max > y0))
        for m_x in range(left - left % _WINDOW, right, _WINDOW):
            x0, x1 = max(m_x - _HALO, left - 1), min(m_x + _WINDOW + _HALO, right + 1)
            near = rows[(x_min[rows] < x1) & (x_max[rows] > x0)]
            if not len(near):
                continue
            mask = np.zeros((y1 - y0, x1 - x0), bool)
            paint_edges(owner[rows], x[rows], y[rows], np.array([True]), mask, x0, y0)
            distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), _BLUR) * mask
            middle = KDTree(np.stack([x[near].mean(axis=1), y[near].mean(axis=1)], axis=1))
            longest = np.hypot(np.diff(x[near]), np.diff(y[near])).max()
            for row, column in _saddles(distance, _LEAST_UM / mpp):
                neck = np.array([x0 + column + 0.5, y0 + row + 0.5])
                if m_x <= neck[0] < m_x + _WINDOW and m_y <= neck[1] < m_y + _WINDOW:
                    reach = _ACROSS * max(distance[row, column], 1) + longest / 2
                    around = near[middle.query_ball_point(neck, reach, return_sorted=True)]
                    cut = _shortest_cut(neck, x[around], y[around])
                    if cut is not None:
                        yield cut


def _saddles(height: np.ndarray, least: float) -> Iterator[tuple[int, int]]:
    """(row, column) of the highest pass between each two neighbouring hills of (H, W) that stay apart."""
    summit, index = _summits(height), np.arange(height.size).reshape(height.shape)
    flat, width = height.ravel(), height.shape[1]
    lower_of, pairs = [], []
    for here, there in _neighbours(height.shape):
        a, b = summit[here], summit[there]
        between = (a != b) & (height[here] > 0) & (height[there] > 0)
        pairs.append(np.sort(np.stack([a[between], b[between]], axis=1), axis=1))
        lower_of.append(np.where(height[here] < height[there], index[here], index[there])[between])
    pair, saddle = np.concatenate(pairs), np.concatenate(lower_of)  # (n, 2), (n,)
    by_height = np.argsort(-flat[saddle], kind="stable")
    pair, saddle = pair[by_height], saddle[by_height]
    _, first = np.unique(pair, axis=0, return_index=True)

    joined_to: dict[int, int] = {}

    def hill(at: int) -> int:
        while (to := joined_to.get(at, at)) != at:
            at = to
        return at

    passes: list[tuple[int, int, int]] = []
    for k in np.sort(first).tolist():
        high, low = sorted((hill(int(pair[k, 0])), hill(int(pair[k, 1]))), key=lambda at: (-flat[at], at))
        if flat[saddle[k]] > flat[low] - _DROP or flat[low] < least:
            joined_to[low] = high
        else:
            passes.append((high, low, int(saddle[k])))
    cut: set[tuple[int, int]] = set()
    for one, other, at in passes:  # the highest first
        hills = (hill(one), hill(other))
        apart = (min(hills), max(hills))
        if apart[0] != apart[1] and apart not in cut:
            cut.add(apart)
            yield divmod(at, width)


def _summits(height: np.ndarray) -> np.ndarray:
    """Where the steepest ascent from each pixel of (H, W) ends: (H, W) indices into the raveled array."""
    index = np.arange(height.size).reshape(height.shape)
    best, up = height.copy(), index.copy()
    for pair in _neighbours(height.shape):
        for here, there in (pair, pair[::-1]):
            # Of equal ones the later: no ascent goes round in circles.
            better = (height[there] > best[here]) | ((height[there] == best[here]) & (index[there] > up[here]))
            best[here][better], up[here][better] = height[there][better], index[there][better]
    ends: np.ndarray = up.ravel()
    while ((further := ends[ends]) != ends).any():
        ends = further
    return ends.reshape(height.shape)


def _neighbours(shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Slices of an array and of itself moved, for each direction in which pixels are neighbours."""
    height, width = shape
    for dy, dx in _FORWARD:
        here = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
        yield here, there


def _shortest_cut(neck: np.ndarray, x: np.ndarray, y: np.ndarray) -> shapely.LineString | None:
    """From the point of the edges x (e, 2), y (e, 2) that is nearest to `neck` to the nearest one across it."""
    start = np.stack([x[:, 0], y[:, 0]], axis=1) - neck  # (e, 2)
    along = np.stack([x[:, 1], y[:, 1]], axis=1) - neck - start
    t = np.clip(-(start * along).sum(axis=1) / (along**2).sum(axis=1), 0, 1)
    point = start + t[:, None] * along
    far = np.hypot(*point.T)
    if not len(far):
        return None
    one = point[far.argmin()]
    across = np.flatnonzero(point @ one < -0.2 * (one @ one))
    if not len(across):
        return None
    other = point[across[far[across].argmin()]]
    beyond = (other - one) * (_BEYOND / np.hypot(*(other - one)))
    return shapely.LineString([neck + one - beyond, neck + other + beyond])


def _apart(polygon: shapely.Polygon, cuts: list[shapely.LineString]) -> np.ndarray:
    lines = shapely.node(shapely.union_all([polygon.boundary, *cuts]))
    faces = shapely.get_parts(shapely.polygonize([lines]))
    points = shapely.point_on_surface(faces)
    shapely.prepare(polygon)
    faces = faces[shapely.contains_xy(polygon, shapely.get_x(points), shapely.get_y(points))]  # holes are faces too
    left, top, *_ = shapely.bounds(faces).T
    found: np.ndarray = faces[np.lexsort((left, top))]
    return found
