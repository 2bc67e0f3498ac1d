"""From a canvas to measured polygons in level-0 pixels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.mask import Canvas, Region, regions, repair, simplify, trace
from wsiseg.mask.measure import mean_inside
from wsiseg.mask.shapes import is_safe
from wsiseg.tiles import Grid, GridSpec, SlideIdentity

MPP, MPP_X, MPP_Y = 0.5, 0.25, 0.3  # twice as coarse in x, 5/3 in y
M_WIDTH, M_HEIGHT = 700, 500
BOUNDS = (1000, 2000, 1400, 833)


def disk(m_x: float, m_y: float, m_radius: float) -> np.ndarray:
    """Probability of a disk, a soft edge of 4 pixels; ½ at the radius."""
    y, x = np.indices((M_HEIGHT, M_WIDTH)) + 0.5
    return np.clip((m_radius - np.hypot(x - m_x, y - m_y)) / 4 + 0.5, 0, 1).astype(np.float32)


def find(probability: np.ndarray, **options) -> list[Region]:
    grid = Grid(
        GridSpec(MPP, tile_size=128, overlap=32),
        SlideIdentity("s", "f", "v", 1400, 834, MPP_X, MPP_Y, BOUNDS),
        M_WIDTH,
        M_HEIGHT,
        np.empty((0, 2), np.int64),
        np.empty(0, np.float32),
    )
    padded = np.pad(probability, ((0, 128), (0, 128)))
    with Canvas(M_WIDTH, M_HEIGHT, 128, 32) as canvas:
        for y in range(0, M_HEIGHT, 96):
            for x in range(0, M_WIDTH, 96):
                tile = padded[y : y + 128, x : x + 128]
                canvas.add(x, y, tile if tile.any() else None)
        canvas.finish()
        return sorted(regions(canvas, grid, **options), key=lambda region: region.place)


def test_a_ring_across_tiles_on_an_anisotropic_slide() -> None:
    (region,) = find(disk(300, 250, 100) - disk(300, 250, 40))
    truth = shapely.Point(300, 250).buffer(100, 64) - shapely.Point(300, 250).buffer(40, 64)
    l0_truth = shapely.affinity.scale(truth, MPP / MPP_X, MPP / MPP_Y, origin=(0, 0))
    assert shapely.hausdorff_distance(region.polygon, l0_truth, densify=0.1) < 2 * 1.1  # a model pixel
    assert region.area_um2 == pytest.approx(truth.area * MPP**2, rel=0.01)
    assert region.solidity == pytest.approx(truth.area / truth.convex_hull.area, rel=0.01)
    assert region.perimeter_um == pytest.approx(truth.length * MPP, rel=0.01)
    assert 0.95 < region.mean_probability < 1


def test_the_origin_is_qupaths_or_the_slides() -> None:
    on_slide, in_qupath = (
        find(disk(600, 400, 30), origin=origin)[0].polygon for origin in ("slide", "qupath")
    )
    moved = shapely.transform(in_qupath, lambda l0_xy: l0_xy + BOUNDS[:2])
    assert shapely.equals_exact(moved, on_slide, 1e-6)
    assert is_safe(np.array([on_slide, in_qupath])).all()


def test_what_is_smaller_than_the_minimum_is_neither_region_nor_hole() -> None:
    speck = disk(50, 50, 5)  # 20 µm²
    holed = disk(300, 250, 100) - disk(300, 250, 5)
    assert len(find(speck + holed, min_area_um2=10)) == 2
    (region,) = find(speck + holed, min_area_um2=30)
    assert len(region.polygon.interiors) == 0


def test_regions_reach_the_edge_of_the_slide_and_no_further() -> None:
    (region,) = find(np.ones((M_HEIGHT, M_WIDTH), np.float32), threshold=0.2)
    assert region.polygon.bounds == pytest.approx((0, 0, 1400, 833.33), abs=1)
    assert region.polygon.bounds[2] <= 1400
    assert region.polygon.bounds[3] <= 834


def test_nothing_found_is_an_empty_list() -> None:
    assert find(np.zeros((M_HEIGHT, M_WIDTH), np.float32)) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_mean_inside_equals_looking_at_every_pixel(seed: int, width: int, height: int, cut: int) -> None:
    raster = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    polygons = trace([(0, raster > 100)], width)
    if len(polygons) > 2:  # rotated: edges at any angle; united: several parts
        polygons[0] = shapely.affinity.rotate(polygons[0], 33) & shapely.box(0, 0, width, height)
        polygons[1:] = [*polygons[1:-1], shapely.union_all(polygons[1:])]
    got = mean_inside([(0, raster[:cut]), (cut, raster[cut:])][: 1 + (cut < height)], polygons)
    y, x = np.indices(raster.shape) + 0.5
    for polygon, mean in zip(polygons, got, strict=True):
        inside = shapely.contains_xy(polygon, x, y)
        if inside.any():
            assert mean == pytest.approx(raster[inside].mean())
        else:
            assert np.isnan(mean)


def test_repair_as_measured() -> None:
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    spike = shapely.Polygon([(0, 0), (10, 0), (10, 10), (10, 20), (10, 10), (0, 10)])
    touching = shapely.Polygon(shapely.box(0, 0, 10, 10).exterior, [[(0, 2), (4, 2), (4, 6), (0, 6)]])
    collapsed = shapely.Polygon([(0, 0), (5, 5), (10, 10)])
    sliver = shapely.box(0, 0, 10, 0.001)
    one_part = shapely.MultiPolygon([shapely.box(0, 0, 1, 1)])
    repaired = repair(np.array([bow_tie, spike, touching, collapsed, sliver, one_part]))
    assert shapely.area(repaired).tolist() == [50, 100, 84, 0, 0, 1]
    assert [p.geom_type for p in repaired] == ["MultiPolygon"] + ["Polygon"] * 5
    assert is_safe(repaired).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 4))
def test_simplify_keeps_topology_and_stays_near(seed: int, tolerance: float) -> None:
    polygons = trace([(0, np.random.default_rng(seed).random((30, 30)) < 0.65)], 30)
    simple = simplify(polygons, tolerance)
    assert shapely.is_valid(simple).all()
    assert (shapely.get_num_interior_rings(simple) == shapely.get_num_interior_rings(polygons)).all()
    assert (shapely.get_num_coordinates(simple) <= shapely.get_num_coordinates(polygons)).all()
    assert (shapely.hausdorff_distance(simple, polygons) <= 2 * tolerance).all()
