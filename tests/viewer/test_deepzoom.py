"""Deep Zoom tiles: together they are the slide, at every level, whatever reads it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.slide.make import pyramid, smooth
from wsiseg.slide import open_slide
from wsiseg.viewer.deepzoom import OVERLAP_PX, TILE_PX, DeepZoom


def decoded(tile: bytes | None) -> np.ndarray:
    assert tile is not None
    return np.asarray(Image.open(io.BytesIO(tile)).convert("RGB"), int)


def whole(deepzoom: DeepZoom, z: int) -> np.ndarray:
    """The level put together from its tiles."""
    width, height = deepzoom.size(z)
    columns, rows = -(-width // TILE_PX), -(-height // TILE_PX)
    put = np.full((height, width, 3), -1)
    for y in range(rows):
        for x in range(columns):
            left, top = max(x * TILE_PX - OVERLAP_PX, 0), max(y * TILE_PX - OVERLAP_PX, 0)
            tile = decoded(deepzoom.tile(z, x, y))
            put[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    assert (put >= 0).all()
    return put


@pytest.mark.parametrize("backend", ["openslide", "tiffslide", "image"])
def test_the_tiles_of_a_level_are_the_slide_at_that_size(tmp_path: Path, backend: str) -> None:
    # Slow changes, which neither JPEG nor another filter alters much.
    pixels = np.asarray(Image.fromarray(smooth(130, 70)).resize((1300, 700), Image.Resampling.BICUBIC))
    path = tmp_path / "slide.tif"
    if backend == "image":
        Image.fromarray(pixels).save(path)
    else:
        pyramid(path, pixels, levels=2)
    with open_slide(path, backend=backend) as slide:
        deepzoom = DeepZoom(slide)
        assert deepzoom.size(deepzoom.last_level) == (1300, 700)
        assert deepzoom.size(deepzoom.last_level - 1) == (650, 350)
        assert max(deepzoom.size(deepzoom.first_level)) <= TILE_PX
        assert max(deepzoom.size(deepzoom.first_level + 1)) > TILE_PX
        for z in range(deepzoom.first_level, deepzoom.last_level + 1):
            width, height = deepzoom.size(z)
            shown = whole(deepzoom, z)
            assert shown.shape == (height, width, 3)
            expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX), int)
            assert np.abs(shown - expected).mean() < 3


def test_there_are_no_tiles_beyond_the_slide(tmp_path: Path) -> None:
    with open_slide(pyramid(tmp_path / "s.tif", smooth(600, 200))) as slide:
        deepzoom = DeepZoom(slide)
        last = deepzoom.last_level
        assert deepzoom.tile(last, 1, 0)
        for place in [(last, 2, 0), (last, 0, 1), (last, -1, 0), (last + 1, 0, 0), (0, 0, 0), (-1, 0, 0)]:
            assert deepzoom.tile(*place) is None
