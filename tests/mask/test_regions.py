"""From a canvas to measured polygons in level-0 pixels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.mask import Canvas, Region, regions, repair, simplify, trace
from wsiseg.mask.measure import mean_inside
from wsiseg.mask.regions import _mean_probability
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
    padded = np.pad(probability, ((0, 128), (0, 128)))
    tiles = {(x, y): padded[y : y + 128, x : x + 128] for y in range(0, M_HEIGHT, 96) for x in range(0, M_WIDTH, 96)}
    tiles = {m_xy: tile for m_xy, tile in tiles.items() if tile.any()}
    grid = Grid(
        GridSpec(MPP, tile_size=128, overlap=32),
        SlideIdentity("s", "f", "v", 1400, 834, MPP_X, MPP_Y, BOUNDS),
        M_WIDTH,
        M_HEIGHT,
        np.array(list(tiles), np.int64).reshape(-1, 2),
        np.ones(len(tiles), np.float32),
    )
    with Canvas.over(grid) as canvas:
        for (m_x, m_y), tile in tiles.items():
            canvas.add(m_x, m_y, tile)
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


def test_the_mean_probability_is_that_of_the_pixels_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the rows of the canvas are parted, and on a canvas that begins where the first tile does."""
    monkeypatch.setattr("wsiseg.mask.canvas._BAND_ROWS", 4)
    probability = disk(600, 250, 7) * np.linspace(0.2, 1, M_HEIGHT, dtype=np.float32)[:, None] ** 2
    (region,) = find(probability, threshold=0.05)
    y, x = np.indices(probability.shape) + 0.5
    inside = shapely.contains_xy(region.polygon, x * MPP / MPP_X, y * MPP / MPP_Y)
    assert region.mean_probability == pytest.approx(probability[inside].mean(), rel=2e-3)


def test_a_convex_outline_is_solid_and_no_more() -> None:
    assert max(find(disk(300.3, 250.1, radius / 3))[0].solidity for radius in range(12, 40)) == 1


def test_touching_cells_are_pieces_of_one_place() -> None:
    cells = np.maximum(disk(100, 100, 12), disk(123, 103, 12)) + disk(300, 90, 12)
    assert len(find(cells)) == 2
    apart = find(cells, separate=True)
    assert [round(region.polygon.centroid.x) // 100 for region in apart] == [6, 2, 2]
    assert apart[0].place < apart[1].place == apart[2].place


def test_outlines_move_by_a_quarter_of_a_pixel_unless_told_otherwise() -> None:
    ring = disk(300, 250, 100) - disk(300, 250, 40)
    points = [shapely.get_num_coordinates(find(ring, simplify_um=um)[0].polygon) for um in (None, 0.25 * MPP, MPP)]
    assert points[0] == points[1] > 1.5 * points[2]


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
    assert len(find(holed, min_area_um2=region.area_um2)) == 1


def test_regions_reach_the_edge_of_the_slide_and_no_further() -> None:
    (region,) = find(np.ones((M_HEIGHT, M_WIDTH), np.float32), threshold=0.2)
    assert region.polygon.bounds == pytest.approx((0, 0, 1400, 833.33), abs=1)
    assert region.polygon.bounds[2] <= 1400
    assert region.polygon.bounds[3] <= 834
    assert region.mean_probability == pytest.approx(1)


def test_nothing_found_is_an_empty_list() -> None:
    assert find(np.zeros((M_HEIGHT, M_WIDTH), np.float32)) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_mean_inside_equals_looking_at_every_pixel(seed: int, width: int, height: int, cut: int, gap: int) -> None:
    raster = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    polygons = trace([(0, raster > 100)], width)
    # Whichever way rings run.
    polygons = np.array([shapely.Polygon(p.exterior.coords[::-1], p.interiors) for p in polygons], object)
    if len(polygons) > 2:  # rotated: edges at any angle; united: several parts
        polygons[0] = shapely.affinity.rotate(polygons[0], 33) & shapely.box(0, 0, width, height)
        polygons[1:] = [*polygons[1:-1], shapely.union_all(polygons[1:])]
    bands = [(0, raster[:cut]), (cut + gap, raster[cut + gap :])]
    got = mean_inside(bands[: 1 + (cut + gap < height)], polygons)
    y, x = np.indices(raster.shape) + 0.5
    seen = (y < cut) | (y > cut + gap)
    for polygon, mean in zip(polygons, got, strict=True):
        inside = shapely.contains_xy(polygon, x, y) & seen
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
    solid = shapely.force_3d(shapely.box(0, 0, 2, 1), 5.0)
    broken = np.array([bow_tie, spike, touching, collapsed, sliver, one_part, solid])
    assert not is_safe(broken).any()
    repaired = repair(broken)
    assert shapely.area(repaired).tolist() == [50, 100, 84, 0, 0, 1, 2]
    assert [p.geom_type for p in repaired] == ["MultiPolygon"] + ["Polygon"] * 6
    assert not shapely.has_z(repaired).any()
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


def test_what_is_smaller_than_the_tolerance_is_a_few_points() -> None:
    (small,) = simplify(np.array([shapely.Point(0, 0).buffer(2)]), 5)
    assert len(small.exterior.coords) < 8


def test_a_pixel_at_the_threshold_is_inside_and_one_below_it_outside() -> None:
    blob = np.zeros((M_HEIGHT, M_WIDTH), np.float32)
    for at, count in ((128 / 255, 1), (127 / 255, 0)):
        blob[200:260, 200:260] = at
        assert len(find(blob)) == count
    blob[200:260, 200:260] = 230 / 255
    assert (len(find(blob, threshold=0.9)), len(find(blob, threshold=0.905))) == (1, 0)


def test_pieces_smaller_than_the_minimum_are_dropped_too() -> None:
    cells = np.maximum(disk(100, 100, 12), disk(118, 103, 7))
    small, whole = sorted(region.area_um2 for region in find(cells, separate=True))
    assert len(find(cells, separate=True, min_area_um2=(whole + small) / 2)) == 1


def test_what_has_no_area_on_qupaths_grid_is_no_region() -> None:
    peak = np.zeros((M_HEIGHT, M_WIDTH), np.float32)
    peak[250, 300] = 1
    assert find(peak, threshold=1.0, min_area_um2=0) == []


def test_what_holds_no_centre_of_a_pixel_has_the_probability_of_its_pixel() -> None:
    with Canvas(64, 64, 32, 0) as canvas:
        tile = np.zeros((32, 32), np.float32)
        tile[20, 5] = 1
        canvas.add(0, 0, tile)
        canvas.finish()
        assert _mean_probability(canvas, np.array([shapely.box(5.1, 20.1, 5.4, 20.4)])) == [1.0]
