"""Outlines: exact ones equal rasterio's, smooth ones equal contourpy's, and neither knows of bands."""

from __future__ import annotations

from itertools import pairwise

import contourpy
import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from wsiseg.mask import contour, front, trace
from wsiseg.mask.rings import link
from wsiseg.mask.trace import contoured

masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 1)
)


def banded(raster: np.ndarray, cuts: list[int], *, drop_empty: bool = True) -> list[tuple[int, np.ndarray]]:
    """The raster in bands cut at `cuts`, without the bands of zeros: those a canvas leaves out."""
    edges = sorted({0, len(raster), *(cut for cut in cuts if cut < len(raster))})
    bands = [(a, raster[a:b]) for a, b in pairwise(edges)]
    return [(y, band) for y, band in bands if band.any() or not drop_empty]


def in_order(polygons: np.ndarray) -> np.ndarray:
    polygons = shapely.normalize(np.asarray(polygons, object))
    return polygons[np.argsort(shapely.to_wkb(polygons))] if len(polygons) else polygons


def noise(shape: tuple[int, int], sigma: float, seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return np.clip(127.5 + 100 * field / field.std(), 0, 255).astype(np.uint8)


@settings(max_examples=120, deadline=None)
@given(masks, st.lists(st.integers(1, 24)))
def test_trace_equals_rasterio_whatever_the_bands(mask: np.ndarray, cuts: list[int]) -> None:
    polygons = trace(banded(mask, cuts), mask.shape[1])
    assert shapely.is_valid(polygons).all()
    assert shapely.area(polygons).sum() == mask.sum()
    shapes = rasterio.features.shapes(mask, mask=mask > 0, connectivity=4)
    expected = np.array([shapely.geometry.shape(shape) for shape, _ in shapes], object)
    assert len(polygons) == len(expected)
    # rasterio too puts vertices at corners only
    assert shapely.equals_exact(in_order(polygons), in_order(shapely.simplify(expected, 0)), 0).all()


def test_trace_of_a_large_noisy_mask_equals_rasterio() -> None:
    mask = (noise((400, 500), 1.5, seed=1) > 140).astype(np.uint8)
    polygons = trace(banded(mask, [1, 130, 131, 300]), 500)
    expected = [
        shapely.geometry.shape(s) for s, _ in rasterio.features.shapes(mask, mask=mask > 0, connectivity=4)
    ]
    assert (shapely.get_num_interior_rings(polygons) > 0).sum() > 20
    assert shapely.equals(in_order(polygons), in_order(np.array(expected, object))).all()


@settings(max_examples=120, deadline=None)
@given(masks, st.lists(st.integers(1, 24)), st.integers(1, 254), st.integers(0, 2**32 - 1))
def test_contour_is_valid_and_keeps_every_pixel_centre_on_its_side(
    mask: np.ndarray, cuts: list[int], level: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    raster = np.where(mask, random.integers(level, 256, mask.shape), random.integers(0, level, mask.shape))
    raster = raster.astype(np.uint8)
    polygons = contour(banded(raster, cuts), raster.shape[1], level)
    assert shapely.is_valid(polygons).all()
    assert len(polygons) == len(trace([(0, mask)], mask.shape[1]))
    y, x = np.indices(mask.shape) + 0.5
    np.testing.assert_array_equal(shapely.contains_xy(shapely.multipolygons(polygons), x, y), mask > 0)
    whole = contour([(0, raster)], raster.shape[1], level)
    assert shapely.equals_exact(polygons, whole, 0).all()


def test_contour_equals_contourpy_where_nothing_is_ambiguous() -> None:
    raster = noise((300, 400), 6, seed=2)
    raster[[0, -1]] = raster[:, [0, -1]] = 0
    polygons = contour(banded(raster, [77, 200]), 400, 127.5)
    generator = contourpy.contour_generator(
        np.arange(400) + 0.5, np.arange(300) + 0.5, raster, fill_type=contourpy.FillType.OuterOffset
    )
    points, offsets = generator.filled(127.5, np.inf)
    expected = [
        shapely.Polygon(rings[0], rings[1:])
        for xy, ends in zip(points, offsets, strict=True)
        if (rings := [xy[a:b] for a, b in pairwise(ends)])
    ]
    assert len(polygons) == len(expected)
    assert sum(len(p.interiors) for p in polygons) == sum(len(p.interiors) for p in expected)
    difference = shapely.symmetric_difference(shapely.union_all(polygons), shapely.union_all(expected))
    assert difference.area < 1e-3  # contourpy interpolates in double, wsiseg in single precision


def test_contour_is_sub_pixel_exact_on_a_disk() -> None:
    y, x = np.indices((120, 130)) + 0.5
    radius = 40.3
    signed = radius - np.hypot(x - 61.7, y - 58.2)
    raster = np.clip(127.5 + signed * 60, 0, 255).round().astype(np.uint8)
    (polygon,) = contour([(0, raster)], 130, 127.5)
    assert (
        polygon.symmetric_difference(shapely.Point(61.7, 58.2).buffer(radius, 256)).area
        < 0.01 * polygon.length
    )


@pytest.mark.parametrize("raster", [np.zeros((5, 5), np.uint8), np.zeros((0, 5), np.uint8)])
def test_nothing_gives_no_polygon(raster: np.ndarray) -> None:
    assert len(trace([(0, raster)], 5)) == 0
    assert len(contour([(0, raster)], 5, 127.5)) == 0
    assert len(contour([], 5, 127.5)) == 0


def test_a_slide_full_of_foreground_is_one_rectangle() -> None:
    raster = np.full((300, 7), 255, np.uint8)
    assert trace([(0, raster)], 7)[0].equals(shapely.box(0, 0, 7, 300))
    (smooth,) = contour([(0, raster)], 7, 127.5)
    assert smooth.bounds == (0, 0, 7, 300)


def test_a_slide_wider_than_16_bits_and_an_outline_larger_than_31() -> None:
    raster = np.zeros((3, 70_000), np.uint8)
    raster[1, [10, 65_545, 65_546, 69_998]] = 1
    assert shapely.bounds(trace([(0, raster)], 70_000))[:, 0].tolist() == [10, 65_545, 69_998]
    side = 50_000
    corners = np.array([0, side, side * (side + 1), side * (side + 1) + side])
    square = link(corners, np.array([8, 4, 2, 1], np.uint8), side, split_touching=True)
    assert square.area.tolist() == [side**2]


def test_a_hole_is_of_the_smallest_outline_around_it() -> None:
    """Rings in each other's holes, as annotations of vessels and crypts are."""
    y, x = np.abs(np.indices((40, 40)) - 19.5)
    rings = (np.maximum(x, y) // 2 % 2 == 1).astype(np.uint8)
    for polygons in (trace([(0, rings)], 40), contour([(0, rings * 255)], 40, 127.5)):
        assert shapely.get_num_interior_rings(polygons).tolist() == [1] * 5
        assert shapely.is_valid(polygons).all()


def test_a_pixel_that_touches_its_neighbours_hole_is_valid() -> None:
    # The hole opens diagonally to the outside: one ring passes one vertex twice.
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)
    (polygon,) = trace([(0, mask)], 3)
    assert polygon.is_valid
    assert polygon.area == 7
    assert len(polygon.interiors) == 1
    (smooth,) = contour([(0, 255 * mask)], 3, 127.5)  # which passes between the two
    assert smooth.is_valid
    assert len(smooth.interiors) == 0


def without_small_holes(polygon: shapely.Polygon, least: float) -> shapely.Polygon:
    large = [hole for hole in polygon.interiors if shapely.Polygon(hole).area >= least]
    return shapely.Polygon(polygon.exterior, large)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("smooth", [True, False])
def test_small_rings_are_left_out_before_they_are_polygons(seed: int, smooth: bool) -> None:
    """The same as dropping and filling them afterwards."""
    raster = noise((300, 300), 1.5, seed)

    def polygons(least: float) -> np.ndarray:
        return contour([(0, raster)], 300, 127.5, least) if smooth else trace([(0, raster > 127)], 300, least)

    every, large = polygons(0.0), polygons(12.0)
    expected = [q for p in every if (q := without_small_holes(p, 12.0)).area >= 12.0]
    assert 20 < len(large) == len(expected) < len(every)
    assert shapely.equals_exact(large, expected).all()
    assert len(polygons(1e6)) == 0


def test_a_pixel_may_enclose_nearly_two_where_the_outline_is_smooth() -> None:
    """What is left out before vertices are placed is only what can in no case be large enough."""
    peak = np.zeros((5, 5), np.uint8)
    peak[2, 2] = 255
    assert shapely.area(contour([(0, peak)], 5, 1, min_area=1.9)) == pytest.approx([2], abs=0.01)


# Long before the scan has come to its end


@settings(max_examples=150, deadline=None)
@given(masks, st.lists(st.integers(1, 24)), st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.0, 3.0]))
def test_what_is_closed_early_is_what_is_closed_at_the_end(
    mask: np.ndarray, cuts: list[int], seed: int, settle: int, min_area: float
) -> None:
    random = np.random.default_rng(seed)
    raster = np.where(mask, random.integers(128, 256, mask.shape), random.integers(0, 128, mask.shape))
    bands, width = banded(raster.astype(np.uint8), cuts), mask.shape[1]
    pixels = [(y, band >= 128) for y, band in bands]
    at_once = contour(bands, width, 128, min_area), trace(pixels, width, min_area)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "SETTLE", settle)
        early = contour(bands, width, 128, min_area), trace(pixels, width, min_area)
    for a, b in zip(early, at_once, strict=True):
        assert shapely.equals_exact(a, b, 0).all()
        assert len(a) == len(b)


def test_only_open_outlines_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame, open until the end, and dust inside and outside."""
    monkeypatch.setattr(front, "SETTLE", 40_000)
    at_once: list[int] = []
    joined = front._joined

    def watched(parts: list[front.Scanned]) -> front.Scanned:
        at_once.append(sum(map(len, parts)))
        return joined(parts)

    monkeypatch.setattr(front, "_joined", watched)
    tall, wide = 4000, 200
    raster = noise((tall, wide), 0.8, seed=3)
    raster[:, [39, 40, 41, 159, 160, 161]] = 0
    raster[:, [40, 160]] = raster[[0, -1], 40:161] = 255
    batches = list(contoured(banded(raster, list(range(0, tall, 16))), wide, 200, 4.0))
    monkeypatch.setattr(front, "SETTLE", 10**9)
    assert sum(len(found) for _, found in batches) == len(contour([(0, raster)], wide, 200, 4.0)) > 5000
    assert max(at_once[:-1]) < at_once[-1] / 5

    # A comb, of which all is open until the end, is not looked through again and again.
    at_once.clear()
    monkeypatch.setattr(front, "SETTLE", 100)
    comb = np.zeros((600, 80), np.uint8)
    comb[:, ::4] = comb[::4, 1::4] = comb[-1] = 255
    assert len(list(contoured(banded(comb, list(range(0, 600, 16))), 80, 200))) == 1
    assert sum(at_once) < 4 * at_once[-1]
