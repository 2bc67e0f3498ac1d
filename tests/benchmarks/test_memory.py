"""Peak memory does not follow the size of the slide."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import waiting
from benchmarks.speed.memory import measure, write_large_pyramid
from wsiseg.inference import TileMask
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel


def test_the_large_slide_is_one_that_openslide_reads(tmp_path: Path) -> None:
    write_large_pyramid(tmp_path / "s.tif", 3000)
    with open_slide(tmp_path / "s.tif") as slide:
        assert slide.backend == "openslide"
        assert slide.level_dimensions == ((3000, 3000), (750, 750))
        assert slide.mpp == pytest.approx((0.5, 0.5))
        assert (slide.read_region(0, 0, 0, 256, 256) == 255).all()
        assert slide.read_region(1500, 1500, 0, 256, 256).mean() < 230


@pytest.mark.slow
@pytest.mark.parametrize("size", [40_000, 100_000])
def test_peak_memory_is_flat(tmp_path: Path, size: int) -> None:
    small, large = measure(10_000, tmp_path).peak_mb, measure(size, tmp_path).peak_mb
    assert large < 2048
    assert large < small + 1024


@pytest.mark.slow
def test_peak_memory_does_not_follow_the_outlines(tmp_path: Path) -> None:
    few, many = measure(5000, tmp_path, dust=True), measure(15_000, tmp_path, dust=True)
    assert many.result > 8 * few.result > 50_000
    assert many.peak_mb < few.peak_mb + 256


def test_the_model_hardly_waits_for_pixels(sample_slide: Path) -> None:
    """With one that takes as long as the bundled one, a tenth of a second a tile."""

    class Slow(FakeModel):
        def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
            time.sleep(0.1 * len(tiles))
            return super().segment_tiles(tiles, query, mpp)

    found = waiting.measure(sample_slide, "olive", Slow(mpp=1.0, tile_size=256, overlap=32), batch_size=4)
    assert found.asking_s > 2
    assert found.share < 0.05
