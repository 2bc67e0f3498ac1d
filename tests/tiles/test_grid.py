"""The planned grid: cover everything, share exactly the overlap, keep what holds tissue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tiles.fakes import FakeMask, FakeSlide, all_tissue
from wsiseg.errors import StoreError
from wsiseg.slide.scale import m_size
from wsiseg.tiles.grid import GridSpec, mirror_beyond, plan_grid, tile_starts, tissue_fractions, touching


@given(st.integers(1, 5000), st.integers(1, 600), st.data())
def test_tiles_cover_an_axis_and_end_with_it(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    if length < tile:
        [before], after = -starts, starts[-1] + tile - length
        assert 0 <= before - after <= 1  # it lies in the middle
        return
    assert (starts[0], starts[-1] + tile) == (0, length)
    steps = np.diff(starts)
    assert (steps[:-1] == tile - overlap).all()
    # The last tile is needed: without it the axis would not be covered.
    assert not len(steps) or (0 < steps[-1] <= tile - overlap and starts[-2] + tile < length)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(10, 60))
def test_beyond_a_small_slide_it_is_mirrored(width: int, height: int, size: int) -> None:
    slide = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for m_y in tile_starts(height, size, size // 4).tolist():
        for m_x in tile_starts(width, size, size // 4).tolist():
            tile = np.full((size, size, 3), 255, np.uint8)
            y, x = max(m_y, 0), max(m_x, 0)
            part = slide[y : m_y + size, x : m_x + size]
            tile[y - m_y : y - m_y + part.shape[0], x - m_x : x - m_x + part.shape[1]] = part
            mirror_beyond(tile, (m_x, m_y), (width, height))
            around = np.pad(slide, ((size, size), (size, size), (0, 0)), mode="symmetric")
            assert np.array_equal(tile, around[m_y + size : m_y + 2 * size, m_x + size : m_x + 2 * size])


def test_model_length_rounds_up_but_not_for_a_rounding_error() -> None:
    assert m_size(1000, 0.5 / 0.25) == 500
    assert m_size(1001, 0.5 / 0.25) == 501
    assert m_size(3, 0.3 / 0.1) == 1  # 3 / (0.3 / 0.1) is a little above 1 in floating point
    assert m_size(1, 10.0 / 0.1) == 1


@given(
    st.integers(1, 40), st.integers(1, 30), st.integers(20, 400), st.integers(20, 300),
    st.integers(8, 120), st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_tissue_fraction_is_the_area_of_the_mask_under_the_tile(
    w: int, h: int, m_width: int, m_height: int, tile: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((h, w)) < 0.4
    m_x, m_y = tile_starts(m_width, tile, overlap), tile_starts(m_height, tile, overlap)
    fractions = tissue_fractions(mask, (m_width / w, m_height / h), (m_width, m_height), (m_x, m_y), tile)
    # Reference: sample each tile at 8 x 8 points per model pixel and look the mask up.
    row, column = (data.draw(st.integers(0, len(starts) - 1)) for starts in (m_y, m_x))
    y = np.arange(max(m_y[row], 0) + 1 / 16, min(m_y[row] + tile, m_height), 1 / 8)
    x = np.arange(max(m_x[column], 0) + 1 / 16, min(m_x[column] + tile, m_width), 1 / 8)
    sampled = mask[np.ix_((y * h / m_height).astype(int), (x * w / m_width).astype(int))].mean()
    assert fractions[row, column] == pytest.approx(sampled, abs=0.03)


def test_only_tiles_over_tissue_are_planned_in_row_major_order() -> None:
    slide = FakeSlide(dimensions=(4000, 3000), mpp=(0.5, 0.5))
    mask = np.zeros((30, 40), bool)
    mask[5:8, 30:33] = True  # l0 3000..3300 x 500..800
    grid = plan_grid(slide, GridSpec(0.5), tissue=FakeMask(mask, (100.0, 100.0)))
    order = [tuple(corner) for corner in grid.m_xy]
    assert order == sorted(order, key=lambda corner: (corner[1], corner[0]))
    touches = [(x, y) for y in range(0, 3000, 448) for x in range(0, 4000, 448)
               if x < 3300 and x + 512 > 3000 and y < 800 and y + 512 > 500]  # fmt: skip
    kept = [corner for corner in touches if corner in order]
    assert order == kept
    assert len(kept) >= len(touches) - 2  # the rest hold less than 2 % of tissue
    assert (grid.tissue >= 0.02).all()


def test_an_anisotropic_slide_becomes_isotropic() -> None:
    slide = FakeSlide(dimensions=(4001, 3000), mpp=(0.25, 0.5))
    tissue = all_tissue(slide)
    grid = plan_grid(slide, GridSpec(0.5), tissue=tissue)
    assert (grid.m_width, grid.m_height) == (2001, 3000)  # half a pixel more than the mask covers
    assert grid.l0_per_m == (2.0, 1.0)
    assert (grid.tissue == 1).all()
    tissue.mask[:20, 4:] = False  # some is left in the first 200 columns, and below the first 2000 rows
    assert set(map(tuple, plan_grid(slide, GridSpec(0.5, 100, 0), tissue=tissue).m_xy.tolist())) == {
        (x, y) for x in (*range(0, 2000, 100), 1901) for y in range(0, 3000, 100) if x < 200 or y >= 2000
    }


def test_a_slide_smaller_than_a_tile_has_one_tile_and_an_empty_one_none() -> None:
    slide = FakeSlide(dimensions=(50, 40))
    assert plan_grid(slide, GridSpec(0.5), tissue=all_tissue(slide)).m_xy.tolist() == [[-231, -236]]
    nothing = FakeMask(np.zeros((4, 5), bool), (10.0, 10.0))
    empty = plan_grid(slide, GridSpec(0.5), tissue=nothing)
    assert empty.m_xy.shape == (0, 2)
    assert len(plan_grid(slide, GridSpec(0.5, min_tissue=0), tissue=nothing)) == 1


def test_a_slide_too_coarse_for_the_model_is_said(caplog: pytest.LogCaptureFixture) -> None:
    slide = FakeSlide(dimensions=(50, 40), mpp=(2.0, 2.0))
    plan_grid(slide, GridSpec(1.0), tissue=all_tissue(slide))
    assert not caplog.records
    plan_grid(slide, GridSpec(0.5), tissue=all_tissue(slide))
    assert "has 2 µm per pixel at best: tiles at 0.5 are enlarged" in caplog.text


def test_fingerprint_tells_slides_and_grids_apart_but_not_where_the_file_lies() -> None:
    slide = FakeSlide()
    spec = GridSpec(0.5)
    grid = plan_grid(slide, spec, tissue=all_tissue(slide))
    moved = plan_grid(replace(slide, source="elsewhere.svs"), spec, tissue=all_tissue(slide))
    assert moved.fingerprint == grid.fingerprint
    others = [
        plan_grid(replace(slide, fingerprint="other"), spec, tissue=all_tissue(slide)),
        plan_grid(replace(slide, mpp=(0.5, 0.51)), spec, tissue=all_tissue(slide)),
        plan_grid(slide, replace(spec, overlap=65), tissue=all_tissue(slide)),
        plan_grid(slide, spec, tissue=FakeMask(np.eye(30, 40, dtype=bool), (100.0, 100.0))),
    ]
    assert len({other.fingerprint for other in others} | {grid.fingerprint}) == 5
    small = FakeSlide(dimensions=(50, 40))  # one tile, whatever is asked for
    specs = [GridSpec(1), GridSpec(1.0), GridSpec(2.0), GridSpec(1.0, 256)]
    same, as_float, *others = (plan_grid(small, spec, tissue=all_tissue(small)).fingerprint for spec in specs)
    assert same == as_float
    assert len({same, *others}) == 3


@pytest.mark.parametrize(
    "bad", [{"mpp": 0.0}, {"mpp": float("nan")}, {"overlap": 512}, {"tile_size": 0}, {"min_tissue": 1.5}]
)
def test_a_grid_that_cannot_be_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(StoreError, match=next(iter(bad)).split("_")[0].replace("min", "minimum")):
        GridSpec(**({"mpp": 0.5} | bad))


@given(st.integers(-50, 700), st.integers(-50, 500), st.integers(1, 300), st.integers(1, 300))
@example(256, 128, 320, 64)  # from the end of one tile to the beginning of another
@settings(max_examples=60, deadline=None)
def test_the_tiles_of_a_region_are_those_that_touch_it(x: int, y: int, width: int, height: int) -> None:
    slide = FakeSlide((600, 400), (0.25, 0.5))
    grid = plan_grid(slide, GridSpec(1.0, 64, 16), tissue=all_tissue(slide))
    kept = touching(grid, (x, y, width, height))
    per_x, per_y = grid.l0_per_m
    expected = [
        (m_x, m_y)
        for m_x, m_y in grid.m_xy.tolist()
        if m_x * per_x < x + width and (m_x + 64) * per_x > x and m_y * per_y < y + height and (m_y + 64) * per_y > y
    ]
    assert list(map(tuple, kept.m_xy.tolist())) == expected
    assert len(kept.tissue) == len(kept)


def test_tissue_lies_where_it_is_on_a_slide_of_unequal_scales() -> None:
    slide = FakeSlide(dimensions=(4000, 3000), mpp=(0.25, 0.5))
    mask = np.zeros((30, 20), bool)
    mask[:, 15:] = True  # of 200 x 100 level-0 pixels each: from x 3000 on
    grid = plan_grid(slide, GridSpec(0.5, 100, 0), tissue=FakeMask(mask, (200.0, 100.0)))
    assert set(grid.m_xy[:, 0].tolist()) == set(range(1500, 2000, 100))
