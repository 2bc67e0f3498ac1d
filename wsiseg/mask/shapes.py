"""What is done to many polygons at once: take their rings, simplify, repair."""

from __future__ import annotations

import numpy as np
import shapely

GRID_L0 = 0.01
"""QuPath ≥ 0.6 snaps coordinates to this grid (level-0 pixels), and refuses what is not valid on it."""


def rings_of(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rings (R,) of Polygons and MultiPolygons (N,), part by part, the shell of each part first.

    Also the polygon of each ring, (R,) int, and whether the ring is a hole, (R,) bool. `shapely.get_rings` alone has
    none of a MultiPolygon.
    """
    parts, owner = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    return rings, owner[part], np.diff(part, prepend=-1) == 0


def simplify(polygons: np.ndarray, tolerance: float) -> np.ndarray:
    """Polygons (N,) with fewer vertices, the same holes, still valid, moved by about `tolerance`.

    Ring by ring with Douglas–Peucker; only where that loses a ring or makes two cross is GEOS's
    topology-preserving variant used, which takes ten times as long.
    """
    if not len(polygons) or tolerance <= 0:
        return polygons
    rings, owner = shapely.get_rings(polygons, return_index=True)
    thinned = shapely.simplify(rings, tolerance, preserve_topology=False)
    lost = shapely.get_num_coordinates(thinned) < 4
    thinned[lost] = rings[lost]
    simple = shapely.polygons(thinned, indices=owner)
    broken = ~shapely.is_valid(simple)
    broken[owner[lost]] = True
    simple[broken] = shapely.simplify(polygons[broken], tolerance, preserve_topology=True)
    return simple


def repair(polygons: np.ndarray) -> np.ndarray:
    """Make geometries ones that QuPath takes: valid on the 0.01 grid, one-part MultiPolygons as Polygons.

    Bow-ties, spikes and holes that touch their shell keep their area; what has none becomes an empty Polygon.
    GEOS's default method (linework) would turn some into GeometryCollections, which QuPath ≥ 0.6 refuses, and
    buffer(0) would lose half of a bow-tie.
    """
    polygons = shapely.force_2d(np.array(polygons, object))
    broken = ~shapely.is_valid(polygons)
    polygons[broken] = shapely.make_valid(polygons[broken], method="structure", keep_collapsed=False)
    with np.errstate(divide="ignore", invalid="ignore"):  # GEOS leaves floating-point flags behind
        polygons = shapely.set_precision(polygons, GRID_L0)
    kind = shapely.get_type_id(polygons)
    single = (kind == shapely.GeometryType.MULTIPOLYGON) & (shapely.get_num_geometries(polygons) == 1)
    polygons[single] = shapely.get_geometry(polygons[single], 0)
    areal = np.isin(kind, (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    polygons[~areal | shapely.is_empty(polygons)] = shapely.Polygon()
    return polygons


def is_safe(polygons: np.ndarray) -> np.ndarray:
    """Which geometries (N,) `repair` would leave as they are."""
    xy, owner = shapely.get_coordinates(polygons, return_index=True)
    off_grid = (xy != np.round(xy, 2)).ravel()
    on_grid = np.ones(len(polygons), bool)
    if off_grid.any():
        on_grid[owner[np.flatnonzero(off_grid) >> 1]] = False
    kind = shapely.get_type_id(polygons)
    areal = kind == shapely.GeometryType.POLYGON
    areal |= (kind == shapely.GeometryType.MULTIPOLYGON) & (shapely.get_num_geometries(polygons) > 1)
    return on_grid & areal & ~shapely.has_z(polygons) & shapely.is_valid(polygons)
