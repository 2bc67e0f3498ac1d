"""Resizing: Pillow's bicubic, and the same for every tile whatever its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsiseg.slide import resample
from wsiseg.slide.resample import resample_image, resample_region

PIXELS = np.random.default_rng(0).integers(0, 256, (311, 257, 3)).astype(np.uint8)
SIZE = (257, 311)


def read(x: int, y: int, width: int, height: int) -> np.ndarray:
    assert 0 <= x < x + width <= SIZE[0]
    assert 0 <= y < y + height <= SIZE[1]
    return PIXELS[y : y + height, x : x + width]


def reader(pixels: np.ndarray) -> Callable[[int, int, int, int], np.ndarray]:
    return lambda x, y, width, height: pixels[y : y + height, x : x + width]


@pytest.mark.parametrize("out", [(128, 155), (100, 77), (31, 311), (257, 40), (300, 400)])
def test_equals_pillow_bit_for_bit(out: tuple[int, int]) -> None:
    scale = (SIZE[0] / out[0], SIZE[1] / out[1])
    expected = np.asarray(Image.fromarray(PIXELS).resize(out, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resample_region(read, SIZE, scale, 0, 0, *out), expected)


scales = st.floats(0.3, 9.0)
boxes = st.tuples(st.integers(-40, 300), st.integers(-40, 300), st.integers(1, 200), st.integers(1, 200))


@settings(max_examples=60, deadline=None)
@given(scales, scales, boxes)
def test_any_box_is_a_cut_out_of_the_whole(scale_x: float, scale_y: float, box: tuple[int, ...]) -> None:
    x, y, width, height = box
    whole = resample_region(read, SIZE, (scale_x, scale_y), -50, -50, 600, 600)
    part = resample_region(read, SIZE, (scale_x, scale_y), x, y, width, height)
    np.testing.assert_array_equal(part, whole[y + 50 :, x + 50 :][:height, :width])


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resample_region(read, SIZE, (2.3, 3.1), 0, 0, 111, 100)
    monkeypatch.setattr(resample, "_BAND_R_PX", 2000)
    sizes: list[int] = []

    def watched(x: int, y: int, width: int, height: int) -> np.ndarray:
        sizes.append(width * height)
        return read(x, y, width, height)

    np.testing.assert_array_equal(resample_region(watched, SIZE, (2.3, 3.1), 0, 0, 111, 100), whole)
    assert max(sizes) < 2000 + 2 * 2 * 3.1 * SIZE[0]  # what the kernel reaches to above and below


def test_scale_one_returns_the_pixels_and_white_beyond() -> None:
    out = resample_region(read, SIZE, (1.0, 1.0), -3, 300, 20, 20)
    np.testing.assert_array_equal(out[:11, 3:], PIXELS[300:, :17])
    assert (out[:, :3] == 255).all()
    assert (out[11:] == 255).all()


def test_an_image_in_memory_is_resized_as_one_that_is_read() -> None:
    for scale in (1.0, 2.5):
        box = (30, 9, 60, 90)
        np.testing.assert_array_equal(
            resample_image(PIXELS, scale, *box), resample_region(read, SIZE, (scale, scale), *box)
        )


def test_a_rounding_error_makes_no_pixel_more() -> None:
    dark = np.zeros((3, 3, 3), np.uint8)
    scale = 0.3 / 0.1  # a little below 3
    out = resample_region(reader(dark), (3, 3), (scale, scale), 0, 0, 2, 2)
    assert out[..., 0].tolist() == [[0, 255], [255, 255]]


def test_edges_do_not_fade() -> None:
    dark = np.full((100, 100, 3), 40, np.uint8)
    out = resample_region(reader(dark), (100, 100), (3.3, 3.3), -1, -1, 40, 40)
    assert set(np.unique(out[1:32, 1:32])) == {40}  # ceil(100 / 3.3) = 31 pixels
    assert (out[0] == 255).all()
    assert (out[32:] == 255).all()


@settings(deadline=None)
@given(st.floats(0.2, 20.0), st.integers(1, 50))
def test_a_constant_stays_constant(scale: float, size: int) -> None:
    flat = np.full((size, size, 3), 137, np.uint8)
    count = int(np.ceil(size / scale - 1e-6))
    assert (resample_region(reader(flat), (size, size), (scale, scale), 0, 0, count, count) == 137).all()
