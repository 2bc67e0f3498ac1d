"""The canvas blends what tiles say, whatever their overlap, and keeps it on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.errors import OutputError
from wsiseg.mask import Canvas
from wsiseg.mask.blend import RollingBand
from wsiseg.tiles import Grid, GridSpec, SlideIdentity
from wsiseg.tiles.grid import tile_starts


@st.composite
def tilings(draw: st.DrawFn) -> tuple[int, int, int, int, list[tuple[int, int]]]:
    """Width and height of a slide, tile size, overlap, and some tiles of a grid, row by row: a full one as it is
    planned, or one that begins anywhere."""
    width, height = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    tile = draw(st.integers(1, 60))
    overlap = draw(st.integers(0, tile - 1))
    stride, left = tile - overlap, draw(st.integers(0, width - 1))
    if draw(st.booleans()):
        xs, ys = (tile_starts(length, tile, overlap).tolist() for length in (width, height))
    else:
        xs, ys = list(range(left, width, stride)), list(range(0, height, stride))
    full = [(x, y) for y in ys for x in xs]
    if len(full) > 400:
        full = full[:: len(full) // 400]
    keep = draw(st.lists(st.booleans(), min_size=len(full), max_size=len(full)))
    return width, height, tile, overlap, [xy for xy, kept in zip(full, keep, strict=True) if kept]


def naive_blend(
    width: int, height: int, tile: int, overlap: int, tiles: list, probabilities: list
) -> np.ndarray:
    """The definition: Σ w·p / Σ w over the whole slide at once, in float64."""
    centre = np.arange(tile) + 0.5
    trapezoid = np.minimum(1, np.minimum(centre, tile - centre) / max(overlap, 0.5))
    weights = np.outer(trapezoid, trapezoid)
    total, norm = np.zeros((2, height + 2 * tile, width + 2 * tile))  # from (-tile, -tile) on
    for (x, y), probability in zip(tiles, probabilities, strict=True):
        here = np.s_[y + tile : y + 2 * tile, x + tile : x + 2 * tile]
        total[here] += 0 if probability is None else weights * probability
        norm[here] += weights
    return np.divide(total, norm, out=np.zeros_like(total), where=norm > 0)[tile : tile + height, tile : tile + width]


def as_array(canvas: Canvas, width: int) -> np.ndarray:
    out = np.zeros((canvas.m_height, width), np.uint8)
    for m_y0, band in canvas.bands():
        out[m_y0 : m_y0 + len(band), canvas.m_left : canvas.m_left + canvas.m_width] = band
    return out


def grid_of(width: int, height: int, tile: int, overlap: int, tiles: list[tuple[int, int]]) -> Grid:
    m_xy = np.array(tiles, np.int64).reshape(-1, 2)
    slide = SlideIdentity("s", "f", "v", width, height, 1.0, 1.0)
    return Grid(GridSpec(1.0, tile, overlap), slide, width, height, m_xy, np.ones(len(m_xy), np.float32))


@settings(max_examples=60, deadline=None)
@given(tilings(), st.randoms(use_true_random=False), st.integers(1, 90), st.integers(1, 40))
def test_canvas_equals_the_definition(tiling: tuple, random, band_rows: int, cache_rows: int) -> None:
    width, height, tile, overlap, tiles = tiling
    noise = np.random.default_rng(random.randrange(2**32))
    probabilities = [None if random.random() < 0.3 else noise.random((tile, tile), np.float32) for _ in tiles]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiseg.mask.canvas._BAND_ROWS", band_rows)
        patch.setattr("wsiseg.mask.blend._CACHE_ROWS", cache_rows)
        with Canvas.over(grid_of(*tiling)) as canvas:
            for (x, y), probability in zip(tiles, probabilities, strict=True):
                canvas.add(x, y, probability)
            canvas.finish()
            got = as_array(canvas, width)
            window = canvas.window(-3, -2, width + 7, height + 5)
    expected = naive_blend(width, height, tile, overlap, tiles, probabilities) * 255
    assert np.abs(got - expected).max() <= 0.5001
    np.testing.assert_array_equal(window[2 : 2 + height, 3 : 3 + width], got)
    assert window.sum() == got.sum()  # 0 outside the slide


@settings(max_examples=60, deadline=None)
@given(tilings(), st.floats(0, 1, width=32))
def test_a_constant_stays_constant_before_it_is_rounded(tiling: tuple, constant: float) -> None:
    width, height, tile, overlap, tiles = tiling
    band = RollingBand(width, tile, overlap)
    blended = np.full((height + tile, width), np.nan)

    def collect(m_y: int) -> None:
        for x0, y0, block in band.finished(m_y):
            blended[y0 : y0 + len(block), x0 : x0 + block.shape[1]] = block

    for x, y in tiles:
        collect(max(y, 0))
        band.add(x, y, np.full((tile, tile), constant, np.float32))
    collect(height + tile)
    for x, y in tiles:
        inside = blended[max(y, 0) : min(y + tile, height), max(x, 0) : x + tile]
        assert np.abs(inside - constant).max() < 1e-6


def test_memory_does_not_grow_with_the_height_of_the_slide(tmp_path: Path) -> None:
    import tracemalloc

    def peak(rows: int) -> int:
        tile = np.full((64, 64), 0.7, np.float32)
        tracemalloc.start()
        with Canvas(512, rows * 48, 64, 16, tmp_path) as canvas:
            for y in range(0, rows * 48, 48):
                for x in range(0, 512, 48):
                    canvas.add(x, y, tile)
            canvas.finish()
            for _ in canvas.bands():
                pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(100) < peak(20) * 1.1


def test_tiles_in_few_columns_of_a_wide_slide_cost_no_more_than_on_a_narrow_one() -> None:
    with Canvas.over(grid_of(10**9, 500, 64, 16, [(10**8 + 48 * i, 0) for i in range(5)])) as canvas:
        assert (canvas.m_left, canvas.m_width) == (10**8, 4 * 48 + 64)
    with Canvas.over(grid_of(10**9, 500, 64, 16, [])) as canvas:
        assert canvas.m_width == 1


def test_a_canvas_far_larger_than_memory_takes_only_what_is_written(tmp_path: Path) -> None:
    with Canvas(20_000, 500_000, 512, 64, tmp_path) as canvas:  # 10 GB if it were dense
        canvas.add(0, 0, np.zeros((512, 512), np.float32))
        canvas.add(448 * 20, 448 * 1000, np.ones((512, 512), np.float32))
        canvas.finish()
        assert len(list(canvas.bands())) <= 3
        assert canvas.window(448 * 20, 448 * 1000, 512, 512).min() == 255
        used = os.fstat(canvas._file.fileno()).st_blocks * 512
    assert used < 20e6
    assert list(tmp_path.iterdir()) == []


def test_tiles_out_of_order_or_off_the_canvas_are_refused() -> None:
    with Canvas(100, 100, 32, 8) as canvas:
        canvas.add(0, 24, None)
        with pytest.raises(ValueError, match="row-major"):
            canvas.add(0, 0, None)
        with pytest.raises(ValueError, match="off the canvas"):
            canvas.add(100, 24, None)


def test_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Canvas(1000, 1000, 100, 0, tmp_path) as canvas:
        canvas.add(0, 0, np.ones((100, 100), np.float32))

        class Full:
            def seek(self, offset: int) -> None: ...

            def write(self, data: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            close = canvas._file.close

        monkeypatch.setattr(canvas, "_file", Full())
        with pytest.raises(OutputError, match=f"cannot keep the mask in {tmp_path}: No space left"):
            canvas.finish()


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        Canvas(10, 10, 4, 0, tmp_path / "nowhere")
