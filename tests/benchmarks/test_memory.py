"""Peak memory does not follow the size of the slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed import waiting
from benchmarks.speed.memory import measure, write_large_pyramid
from wsiseg.model import load_model
from wsiseg.slide import open_slide


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


@pytest.mark.slow
def test_the_bundled_model_hardly_waits_for_pixels(sample_slide: Path) -> None:
    found = waiting.measure(sample_slide, "outline the nuclei", load_model())
    assert found.asking_s > 2
    assert found.share < 0.05
