"""From a canvas of probabilities to polygons in level-0 pixels, measured, and safe to write."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely

from wsiseg.mask.measure import mean_inside
from wsiseg.mask.necks import cut_at_necks
from wsiseg.mask.shapes import repair, simplify
from wsiseg.mask.trace import contoured

if TYPE_CHECKING:
    from wsiseg.mask.canvas import Canvas
    from wsiseg.tiles import Grid

Origin = Literal["qupath", "slide"]


@dataclass(frozen=True)
class Region:
    """One connected outline, or a piece of one.

    place: in the order of all from top to bottom; of the topmost, leftmost corner. Pieces of one outline share it.
    polygon: Polygon (or MultiPolygon, where rounding pinched one apart) in level-0 pixels, valid on the
        0.01 grid.
    perimeter_um: of the shell and all holes. solidity: area / area of the convex hull.
    mean_probability: of the canvas's pixels whose centres lie inside, 0 to 1.
    """

    place: int
    polygon: shapely.Polygon | shapely.MultiPolygon
    area_um2: float
    perimeter_um: float
    solidity: float
    mean_probability: float


def regions(
    canvas: Canvas,
    grid: Grid,
    *,
    threshold: float = 0.5,
    min_area_um2: float = 10.0,
    simplify_um: float | None = None,
    separate: bool = False,
    origin: Origin = "slide",
) -> Iterator[Region]:
    """Outline where the finished canvas reaches `threshold`: each outline when the scan has passed its end.

    Args:
        threshold: in (0, 1].
        min_area_um2: smaller regions are dropped and smaller holes filled.
        simplify_um: how far an outline may move to save vertices; each keeps its topology, neighbours may come to
            overlap by a sliver. None: a quarter of a model pixel.
        separate: cut apart what touches as cells do (`cut_at_necks`).
        origin: where (0, 0) of the polygons lies: the slide's level-0 corner, or where QuPath puts it.
    """
    m_min_area = min_area_um2 / grid.spec.mpp**2
    m_tolerance = 0.25 if simplify_um is None else simplify_um / grid.spec.mpp
    batches = contoured(canvas.bands(), canvas.m_width, threshold * 255, m_min_area)
    m_start = np.array([canvas.m_left, 0])
    for places, m_polygons in batches:
        m_polygons = simplify(shapely.transform(m_polygons, lambda m_xy: m_xy + m_start), m_tolerance)
        if separate:
            m_polygons, whole = cut_at_necks(m_polygons, grid.spec.mpp)
            places = places[whole]
        yield from _measured(canvas, grid, places, m_polygons, min_area_um2, origin)


def _measured(
    canvas: Canvas, grid: Grid, places: np.ndarray, m_polygons: np.ndarray, min_area_um2: float, origin: Origin
) -> Iterator[Region]:
    polygons = repair(_to_level0(m_polygons, grid, origin))
    um = shapely.transform(polygons, lambda l0_xy: l0_xy * (grid.slide.mpp_x, grid.slide.mpp_y))
    area = shapely.area(um)
    kept = np.flatnonzero(area >= max(min_area_um2, np.finfo(np.float64).tiny))
    m_polygons, polygons, um, area = m_polygons[kept], polygons[kept], um[kept], area[kept]
    columns = zip(
        places[kept].tolist(),
        polygons,
        area.tolist(),
        shapely.length(um).tolist(),
        np.minimum(area / shapely.area(shapely.convex_hull(um)), 1).tolist(),
        _mean_probability(canvas, m_polygons).tolist(),
        strict=True,
    )
    return (Region(*values) for values in columns)


def l0_origin(l0_bounds: tuple[int, int, int, int] | None, origin: Origin) -> tuple[int, int]:
    """Where (0, 0) of written coordinates lies, in level-0 pixels of the whole slide.

    QuPath shows a slide cropped to its OpenSlide bounds (OpenslideImageServer, qupath #1278).
    """
    return l0_bounds[:2] if origin == "qupath" and l0_bounds is not None else (0, 0)


def _to_level0(m_polygons: np.ndarray, grid: Grid, origin: Origin) -> np.ndarray:
    size = (grid.slide.l0_width, grid.slide.l0_height)
    start = l0_origin(grid.slide.l0_bounds, origin)
    # The canvas ends on a whole model pixel, and smooth outlines half a pixel beyond; the slide may not.
    return shapely.transform(m_polygons, lambda m_xy: np.clip(m_xy * grid.l0_per_m, 0, size) - start)


def _mean_probability(canvas: Canvas, m_polygons: np.ndarray) -> np.ndarray:
    if not len(m_polygons):
        return np.empty(0)
    _, m_top, _, m_bottom = shapely.total_bounds(m_polygons)
    mean = mean_inside(canvas.bands(math.floor(m_top), math.ceil(m_bottom)), m_polygons, canvas.m_left)
    for i in np.flatnonzero(np.isnan(mean)):  # thinner than a pixel
        inside = m_polygons[i].representative_point()
        mean[i] = canvas.window(int(inside.x), int(inside.y), 1, 1)[0, 0]
    return mean / 255
