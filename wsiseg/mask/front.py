"""Outlines while a raster is still being scanned: those that lie whole above the front are handed over.

A ring that no later row can touch is finished, and what it took is forgotten; only rings that reach the front wait
for more rows, and holes whose shell does. So memory follows the outlines that are open at once, not all of them.
What waits is looked at again only when as much again has come, so that the work stays proportional to the outlines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from wsiseg.mask.rings import column_order, follow, gather, link, polygons, without_small

SETTLE = 1 << 21
"""Corners and crossings after which rings are closed: about a quarter of a gigabyte while that lasts."""


@dataclass(frozen=True)
class Scanned:
    """The outlines in some rows of a raster.

    vertex: (k,) i · (m_width + 1) + j, ascending: every lattice vertex with an odd number of foreground pixels, and
        every checkerboard, twice. code: (k,) uint8 as in `rings`.
    horizontal: (h, 2) where the level is crossed on horizontal edges, once for every pixel of their length, in row
        order. vertical: (v, 2) likewise; once joined, by column, then row. Both empty for outlines along pixel edges.
    """

    vertex: np.ndarray
    code: np.ndarray
    horizontal: np.ndarray
    vertical: np.ndarray

    def __len__(self) -> int:
        return len(self.vertex) + len(self.horizontal) + len(self.vertical)


Finished = tuple[np.ndarray, np.ndarray]
"""(n,) int64 vertex of each polygon's topmost, leftmost corner, ascending, and (n,) shapely Polygons."""


def finished(
    scan: Iterable[tuple[int, Scanned]], m_width: int, min_area: float, *, smooth: bool
) -> Iterator[Finished]:
    """Polygons, batch by batch, as the scan passes them.

    Args:
        scan: from top to bottom, (line below the rows, outlines in them); rows left out hold none.
        min_area: shells and holes that enclose less are left out.
        smooth: through the crossings; else along the pixel edges.
    """
    waiting = _joined([])
    new: list[Scanned] = []
    for m_below, scanned in scan:
        new.append(scanned)
        if sum(map(len, new)) >= max(SETTLE, len(waiting)):
            waiting, done = _settled(_joined([waiting, *new]), m_below, m_width, min_area, smooth)
            new.clear()
            if len(done[0]):
                yield done
    rest = _joined([waiting, *new])
    if len(rest.vertex):
        done, _ = _closed(rest, m_width, min_area, smooth)
        yield done


def _settled(
    scanned: Scanned, m_below: int, m_width: int, min_area: float, smooth: bool
) -> tuple[Scanned, Finished]:
    """What has to wait for the rows from line `m_below` on, and what need not."""
    y, x = (a.astype(np.int32) for a in np.divmod(scanned.vertex, m_width + 1))
    # Down each column, corners pair up into vertical edges; one that is left over hangs into the rows to come.
    down = column_order(x, scanned.vertex, scanned.code)
    column = x[down]
    last = np.append(column[1:] != column[:-1], True)
    first = np.flatnonzero(np.append(True, last[:-1]))
    lengths = np.diff(np.append(first, len(down)))
    upper = np.flatnonzero((np.arange(len(down)) - np.repeat(first, lengths)) % 2 == 0)
    hangs, top, bottom = last[upper], down[upper], down[np.minimum(upper + 1, len(down) - 1)]
    height = np.where(hangs, m_below, y[bottom]) - y[top]

    # Two corners in a row are a horizontal edge; vertical edges tie these together.
    edges = len(x) // 2
    ties = (top[~hangs] >> 1, bottom[~hangs] >> 1)
    graph = coo_matrix((np.ones(len(ties[0]), np.int8), ties), (edges, edges))
    chains, chain = connected_components(graph, directed=False)
    waits = np.zeros(chains, bool)
    waits[chain[top[hangs] >> 1]] = True

    def taken(edge: np.ndarray) -> Scanned:
        """The outlines along some of the horizontal edges, (edges,) bool."""
        corner = np.repeat(edge, 2)
        horizontal, vertical = scanned.horizontal, scanned.vertical
        if smooth:
            horizontal = horizontal[np.repeat(edge, x[1::2] - x[0::2])]
            vertical = vertical[np.repeat(edge[top >> 1], height)]
        return Scanned(scanned.vertex[corner], scanned.code[corner], horizontal, vertical)

    closed = np.flatnonzero(~waits[chain])
    if not len(closed):
        return scanned, (np.empty(0, np.int64), np.empty(0, object))
    done, alone = _closed(taken(~waits[chain]), m_width, min_area, smooth)
    waits[chain[closed[alone]]] = True
    return taken(waits[chain]), done


def _closed(scanned: Scanned, m_width: int, min_area: float, smooth: bool) -> tuple[Finished, np.ndarray]:
    """The polygons of closed rings; and the horizontal edges of holes whose shell is not among them."""
    # Smooth outlines do not touch at vertices.
    rings = link(scanned.vertex, scanned.code, m_width, split_touching=not smooth)
    rings = without_small(rings, min_area)
    if not len(rings.start):
        return (np.empty(0, np.int64), np.empty(0, object)), np.empty(0, np.int64)
    if smooth:
        crossings = np.concatenate([scanned.horizontal, scanned.vertical])
        xy, offsets = follow(rings, crossings, len(scanned.horizontal))
    else:
        corner = np.stack([rings.start, rings.start ^ 1], axis=1).ravel()  # each horizontal edge's two ends
        xy, offsets = np.stack([rings.x[corner], rings.y[corner]], axis=1).astype(np.float64), 2 * rings.offsets
    found, shell, alone = polygons(rings, xy, offsets, min_area)
    place = scanned.vertex[rings.start[rings.offsets[shell]]]
    edges = rings.start[gather(rings.offsets[alone], np.diff(rings.offsets)[alone])] >> 1
    return (place, found), edges


def _joined(parts: list[Scanned]) -> Scanned:
    nothing = Scanned(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty((0, 2)), np.empty((0, 2)))
    parts = [nothing, *parts]
    vertex, code, horizontal, vertical = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("vertex", "code", "horizontal", "vertical")
    )
    by_column = np.argsort(np.rint(vertical[:, 0]).astype(np.int32), kind="stable")
    return Scanned(vertex, code, horizontal, vertical[by_column])
