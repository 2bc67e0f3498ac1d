"""From the corners of a raster's outlines to closed rings, and from rings to polygons with holes.

Lattice vertex (i, j) is the top-left corner of pixel (row i, column j). Its four pixels are a b / c d, and
its code is a | b << 1 | c << 2 | d << 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components

_BC = 0b0110  # a checkerboard with foreground b and c
_AD = 0b1001
_D = 3  # the bit of pixel d


@dataclass(frozen=True)
class Rings:
    """Closed chains of alternating horizontal and vertical edges, one after another.

    Corners 2t and 2t + 1 are the left and right end of horizontal edge t, numbered in row order. Foreground
    lies to the right of the direction of travel (y down), so shells run clockwise on the screen and holes
    against it.
    """

    x: np.ndarray  # (2m,) of each corner
    y: np.ndarray  # (2m,)
    column_order: np.ndarray  # (2m,) corners by column, then row: entries 2u and 2u + 1 end vertical edge u
    start: np.ndarray  # (m,) the corner where each horizontal edge begins, in ring order
    offsets: np.ndarray  # (n + 1,) of each ring in `start`; a ring begins with its topmost, leftmost edge
    area: np.ndarray  # (n,) in pixels: > 0 for a shell, < 0 for a hole


def link(vertex: np.ndarray, code: np.ndarray, m_width: int, *, split_touching: bool) -> Rings:
    """Link the corners of a raster into rings.

    Args:
        vertex: (k,) i · (m_width + 1) + j, ascending: every vertex with an odd number of foreground pixels,
            and every checkerboard, twice, or once where only one of its two outlines is asked for.
        code: (k,) uint8.
        split_touching: cut a ring where it passes a vertex twice, as OGC validity of pixel outlines demands.
    """
    y, x = (a.astype(np.int32) for a in np.divmod(vertex, m_width + 1))
    down = column_order(x, vertex, code)
    vertical_partner = np.empty(len(x), np.int32)
    vertical_partner[down[0::2]] = down[1::2]
    vertical_partner[down[1::2]] = down[0::2]

    edge = np.arange(len(x) // 2, dtype=np.int32)
    foreground_below = (code[0::2] >> _D & 1).astype(bool)
    start = 2 * edge + ~foreground_below
    successor = vertical_partner[start ^ 1] >> 1
    label = _cycles(successor)
    if split_touching:
        first = np.flatnonzero(vertex[1:] == vertex[:-1])
        touching = first[label[first >> 1] == label[(first + 1) >> 1]]
        if len(touching):
            successor = _split(successor, touching, code[touching] == _AD)
            label = _cycles(successor)

    order, lengths = _walk(successor, label)
    start = start[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    area = np.add.reduceat((x[start].astype(np.int64) - x[start ^ 1]) * y[start], offsets[:-1])
    return Rings(x, y, down, start, offsets, area)


def without_small(rings: Rings, min_area: float) -> Rings:
    """The rings that may enclose `min_area`, though their vertices may move by half a pixel.

    Cheap, and before any vertex is placed: dust on a large slide makes millions of rings that nobody wants.
    """
    # Wherever a ring turns, a horizontal edge begins in the same column, and one in the same row.
    first = rings.offsets[:-1]
    width, height = (
        np.maximum.reduceat(at, first).astype(np.int64) - np.minimum.reduceat(at, first)
        for at in (rings.x[rings.start], rings.y[rings.start])
    )
    kept = (width + 1) * (height + 1) >= min_area
    lengths = np.diff(rings.offsets)
    offsets = np.concatenate([[0], np.cumsum(lengths[kept])])
    return replace(rings, start=rings.start[np.repeat(kept, lengths)], offsets=offsets, area=rings.area[kept])


def follow(rings: Rings, crossings: np.ndarray, verticals: int) -> tuple[np.ndarray, np.ndarray]:
    """Put the crossings in ring order.

    Args:
        crossings: (c, 2): those of the horizontal edges in row order, then, from index `verticals` on,
            those of the vertical edges in column order. Edges in the same order own one for every pixel of
            their length.

    Returns:
        xy (c, 2) and offsets (n + 1,) of the rings in it, unclosed.
    """
    x, y, start = rings.x, rings.y, rings.start
    end = start ^ 1
    rank = np.empty(len(x), np.int64)  # of each corner in column order
    rank[rings.column_order] = np.arange(len(x))
    length_h = x[1::2] - x[0::2]
    length_v = y[rings.column_order[1::2]] - y[rings.column_order[0::2]]
    first_h = np.cumsum(length_h) - length_h
    first_v = np.cumsum(length_v) - length_v + verticals

    # Each horizontal edge, then the vertical one that follows it; from the last crossing back when run
    # backwards.
    edge = np.stack([start >> 1, rank[end] >> 1], axis=1)
    backwards = np.stack([start & 1, rank[end] & 1], axis=1)
    length = np.stack([length_h[edge[:, 0]], length_v[edge[:, 1]]], axis=1).astype(np.int64)
    first = np.stack([first_h[edge[:, 0]], first_v[edge[:, 1]]], axis=1) + backwards * (length - 1)
    xy = crossings[gather(first.ravel(), length.ravel(), 1 - 2 * backwards.ravel())]
    ends = np.concatenate([[0], np.cumsum(length.sum(axis=1))])
    return xy, ends[rings.offsets]


def polygons(
    rings: Rings, xy: np.ndarray, offsets: np.ndarray, min_area: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shells with their holes.

    Args:
        xy: (v, 2) the vertices of all rings, unclosed, of which ring r owns offsets[r]:offsets[r + 1].
        min_area: rings that enclose less are left out, shells and holes; no hole loses its shell, which is larger.

    Returns:
        (N,) shapely Polygons, (N,) the rings that are their shells, ascending, and the rings that are holes of none.
    """
    large = np.flatnonzero(_enclosed(xy, offsets) >= min_area)
    xy, offsets = _taken(xy, offsets, large)
    ring_area, ring_top = rings.area[large], rings.start[rings.offsets[:-1][large]]
    closed = np.insert(xy, offsets[1:], xy[offsets[:-1]], axis=0)
    offsets = offsets + np.arange(len(offsets))
    shell, hole = np.flatnonzero(ring_area > 0), np.flatnonzero(ring_area < 0)
    shells = _from_rings(closed, offsets, shell, np.ones(len(shell), np.int64))
    if not len(hole):
        return shells, large[shell], hole

    # The pixel above a hole's topmost edge is foreground of the polygon around it: of all shells that
    # contain its centre that polygon's is the smallest, as shells nest.
    top = ring_top[hole]
    m_x = np.minimum(rings.x[top], rings.x[top ^ 1]) + 0.5
    m_y = rings.y[top] - 0.5
    h, s = shapely.STRtree(shells).query(shapely.points(m_x, m_y))
    shapely.prepare(shells[np.unique(s)])
    inside = shapely.contains_xy(shells[s], m_x[h], m_y[h])
    h, s = h[inside], s[inside]
    smallest_first = np.lexsort((ring_area[shell[s]], h))
    housed, first = np.unique(h[smallest_first], return_index=True)
    parent = s[smallest_first][first]  # (housed,)
    alone = np.delete(hole, housed)

    counts = 1 + np.bincount(parent, minlength=len(shell))
    is_hole = np.ones(counts.sum(), bool)
    is_hole[np.cumsum(counts) - counts] = False
    sequence = np.empty(len(is_hole), np.int64)
    sequence[~is_hole] = shell
    sequence[is_hole] = hole[housed][np.argsort(parent, kind="stable")]
    return _from_rings(closed, offsets, sequence, counts), large[shell], large[alone]


def _enclosed(xy: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Area within each unclosed ring, (n,)."""
    following = np.arange(1, len(xy) + 1)
    following[offsets[1:] - 1] = offsets[:-1]
    # Shoelace formula, from each ring's own corner: far from the origin the products would lose digits.
    x, y = (xy - np.repeat(xy[offsets[:-1]], np.diff(offsets), axis=0)).T
    return np.abs(np.add.reduceat(x * y[following] - x[following] * y, offsets[:-1])) / 2


def _taken(xy: np.ndarray, offsets: np.ndarray, rings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices of some rings, and where each of these begins."""
    if len(rings) == len(offsets) - 1:
        return xy, offsets
    lengths = np.diff(offsets)[rings]
    return xy[gather(offsets[rings], lengths)], np.concatenate([[0], np.cumsum(lengths)])


def gather(start: np.ndarray, length: np.ndarray, step: np.ndarray | int = 1) -> np.ndarray:
    """Indices of ragged slices: start, start + step, … (length of them), one slice after another."""
    before = np.cumsum(length) - length
    return np.repeat(start - before * step, length) + np.arange(length.sum()) * np.repeat(
        np.broadcast_to(step, length.shape), length
    )


def column_order(x: np.ndarray, vertex: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Corners (k,) by column, then row; at a checkerboard the one whose vertical edge goes up comes first."""
    upper_first = np.arange(len(x), dtype=np.int32)
    swap = np.flatnonzero((vertex[1:] == vertex[:-1]) & (code[1:] == _BC)) + 1
    upper_first[swap], upper_first[swap - 1] = swap - 1, swap
    # Stable sorting of 16-bit keys is a radix sort, several times as fast.
    key = x.astype(np.uint16) if x.max() < 2**16 else x
    return upper_first[np.argsort(key, kind="stable")]


def twice_at_checkerboards(vertex: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Foreground is 4-connected: at a checkerboard two outlines meet, each turning around its own pixel."""
    times = 1 + ((code == _AD) | (code == _BC))
    return np.repeat(vertex, times), np.repeat(code, times)


def _cycles(successor: np.ndarray) -> np.ndarray:
    """Number the cycles of a permutation: (m,) labels."""
    return connected_components(_graph(successor), directed=True, connection="weak")[1]


def _split(successor: np.ndarray, touching: np.ndarray, ad: np.ndarray) -> np.ndarray:
    """Let the two passes of a ring through one vertex exchange their continuations: the ring falls in two.

    `touching`: the first corner of each such vertex. Passes of one ring never interleave (outlines do not
    cross), so all can be exchanged at once.
    """
    before = np.arange(len(successor), dtype=np.int32)
    after = before.copy()
    for swap, corner in ((after, touching[ad]), (before, touching[~ad])):
        swap[corner >> 1], swap[(corner + 1) >> 1] = (corner + 1) >> 1, corner >> 1
    return after[successor[before]]


def _walk(successor: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List every cycle from its first element on: order (m,), lengths (n,), cycles by their first element."""
    m = len(successor)
    first = np.empty(label.max() + 1, np.int64)
    first[label[::-1]] = np.arange(m)[::-1]  # the last assignment stays
    lengths = np.bincount(label)
    by_first = np.argsort(first)
    first, lengths = first[by_first], lengths[by_first]
    # All cycles are cut open and tied into one path, which SciPy walks in compiled code.
    predecessor = np.empty(m, np.int32)
    predecessor[successor] = np.arange(m, dtype=np.int32)
    path = successor.copy()
    path[predecessor[first[:-1]]] = first[1:]
    order = breadth_first_order(_graph(path), first[0], directed=True, return_predecessors=False)
    return order, lengths


def _graph(successor: np.ndarray) -> csr_matrix:
    m = len(successor)
    return csr_matrix((np.ones(m, np.int8), successor, np.arange(m + 1, dtype=np.int32)), shape=(m, m))


def _from_rings(xy: np.ndarray, offsets: np.ndarray, sequence: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Polygons of `counts` rings each, taken in `sequence` from closed rings."""
    lengths = np.diff(offsets)[sequence]
    ring_offsets = np.concatenate([[0], np.cumsum(lengths)])
    polygon_offsets = np.concatenate([[0], np.cumsum(counts)])
    taken = xy[gather(offsets[sequence], lengths)]
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, taken, (ring_offsets, polygon_offsets))
