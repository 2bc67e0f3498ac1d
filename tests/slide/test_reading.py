"""Reading slides: backends agree, levels lie where they should, any microns per pixel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.slide.make import half, pyramid, smooth
from wsiseg.errors import MissingMppError, SlideError
from wsiseg.slide import open_slide
from wsiseg.slide.base import stated_bounds
from wsiseg.slide.scale import level_scale, snapped, stated_mpp

BOTH = pytest.mark.parametrize("backend", ["openslide", "tiffslide"])


def test_openslide_and_tiffslide_agree_on_the_sample(sample_slide: Path) -> None:
    with open_slide(sample_slide) as first, open_slide(sample_slide, backend="tiffslide") as second:
        assert (first.backend, second.backend) == ("openslide", "tiffslide")
        for name in ("fingerprint", "mpp", "vendor", "objective_power", "dimensions", "level_scales"):
            assert getattr(first, name) == getattr(second, name)
        assert set(first.associated_images) == set(second.associated_images)
        whole = first.read_region(0, 0, 0, *first.dimensions)
        np.testing.assert_array_equal(second.read_region(0, 0, 0, *second.dimensions), whole)
        assert first.mpp == (0.499, 0.499)
        assert first.vendor == "aperio"
        assert first.objective_power == 20
        assert first.native_source() == sample_slide


@BOTH
@pytest.mark.parametrize("factor", [2.0, 2.5, 4.0])
def test_read_at_mpp_is_level_0_resized_once(sample_slide: Path, backend: str, factor: float) -> None:
    with open_slide(sample_slide, backend=backend, slide_mpp=0.5) as slide:
        width, height = slide.dimensions
        whole = Image.fromarray(slide.read_region(0, 0, 0, width, height))
        box = (0, 0, 200 * factor, 300 * factor)
        expected = np.asarray(whole.resize((200, 300), Image.Resampling.BICUBIC, box=box))
        part = slide.read_at_mpp(40, 50, 100, 120, 0.5 * factor)
        np.testing.assert_array_equal(part, expected[50:170, 40:140])


def test_the_own_scale_returns_the_pixels_themselves(sample_slide: Path) -> None:
    with open_slide(sample_slide) as slide:
        np.testing.assert_array_equal(
            slide.read_at_mpp(700, 800, 64, 48, 0.499), slide.read_region(700, 800, 0, 64, 48)
        )


def test_outside_is_white(sample_slide: Path) -> None:
    with open_slide(sample_slide) as slide:
        out = slide.read_region(2200, -10, 0, 40, 30)
        np.testing.assert_array_equal(out[10:, :20], slide.read_region(2200, 0, 0, 20, 20))
        assert (out[:10] == 255).all()
        assert (out[:, 20:] == 255).all()
        assert (slide.read_at_mpp(5000, 5000, 8, 8, 1.0) == 255).all()
        with pytest.raises(SlideError, match="no level 3"):
            slide.read_region(0, 0, 3, 8, 8)


@BOTH
def test_coarsest_level_that_is_fine_enough(tmp_path: Path, backend: str) -> None:
    path = pyramid(tmp_path / "p.tif", smooth(801, 603), levels=3)
    with open_slide(path, backend=backend) as slide:
        assert slide.level_scales == ((1.0, 1.0), (2.0, 2.0), (4.0, 4.0))  # though 801 is odd
        levels = {mpp: slide.level_for_mpp(mpp)[0] for mpp in (0.25, 0.5, 0.9, 0.99, 1.0, 1.9, 2.0, 8.0)}
        assert levels == {0.25: 0, 0.5: 0, 0.9: 0, 0.99: 1, 1.0: 1, 1.9: 1, 2.0: 2, 8.0: 2}
        assert slide.level_for_mpp(1.0) == (1, (1.0, 1.0))
        np.testing.assert_array_equal(slide.read_region(3, 7, 2, 20, 10), slide.read_level(2, 1, 2, 20, 10))


def test_scales_are_whole_where_they_nearly_are() -> None:
    assert level_scale(2967, 1483, 2.0007) == 2  # the scanner dropped the odd last row
    assert level_scale(1000, 385, 2.5974) == 1000 / 385
    assert snapped(1 + 1e-7, 100_000) == 1
    assert snapped(1.001, 1000) == 1.001
    # Backends divide the same numbers in different ways; both have to be there.
    assert stated_mpp(0.1 + 0.2, "0.25") == (0.3, 0.25)
    assert stated_mpp(0.25, None) is None
    assert stated_bounds({"openslide.bounds-x": "1", "openslide.bounds-y": "2"}, "openslide") is None


@BOTH
def test_levels_lie_over_each_other(tmp_path: Path, backend: str) -> None:
    """Odd sizes make OpenSlide's downsamples 2.0007 and the like; nothing may drift to the far corner."""
    pixels = smooth(803, 1001)
    path = pyramid(tmp_path / "p.tif", pixels, levels=3)
    with open_slide(path, backend=backend) as slide:
        far = slide.read_at_mpp(330, 430, 64, 64, 1.0).astype(float)
        truth = half(pixels)[430:494, 330:394].astype(float)
        assert (
            np.abs(far - truth).mean() < 2.5
        )  # a shift of one pixel gives 13; OpenSlide blends by up to a quarter
    with open_slide(path, backend=backend) as slide, open_slide(pyramid(tmp_path / "1.tif", pixels)) as flat:
        for mpp in (1.3, 2.6):
            size = slide.m_dimensions(mpp)
            difference = slide.read_at_mpp(0, 0, *size, mpp).astype(float) - flat.read_at_mpp(
                0, 0, *size, mpp
            )
            assert np.abs(difference[:-2, :-2]).mean() < 3


@BOTH
@pytest.mark.parametrize("mpp", [0.5, 1.0, 1.37, 2.0])
def test_neighbouring_tiles_are_equal_where_they_overlap(tmp_path: Path, backend: str, mpp: float) -> None:
    path = pyramid(tmp_path / "p.tif", smooth(1101, 803), levels=3)
    with open_slide(path, backend=backend) as slide:
        size = slide.m_dimensions(mpp)
        whole = slide.read_at_mpp(0, 0, *size, mpp)
        for x, y in ((0, 0), (97, 55), (151, 130), (size[0] - 100, size[1] - 60)):
            tile = slide.read_at_mpp(x, y, 100, 60, mpp)
            np.testing.assert_array_equal(tile, whole[y : y + 60, x : x + 100])


@BOTH
def test_anisotropic_slides_come_out_isotropic(tmp_path: Path, backend: str) -> None:
    """A disc of 60 µm on pixels of 0.5 x 0.25 µm is as wide as it is high."""
    y, x = np.mgrid[:800, :400]
    disc = (((x + 0.5) * 0.5 - 100) ** 2 + ((y + 0.5) * 0.25 - 100) ** 2) < 30**2
    pixels = np.where(disc[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)
    with open_slide(pyramid(tmp_path / "a.tif", pixels, mpp=(0.5, 0.25)), backend=backend) as slide:
        assert slide.mpp == (0.5, 0.25)
        assert slide.m_dimensions(0.5) == (400, 400)
        found = slide.read_at_mpp(0, 0, 400, 400, 0.5)[..., 0] < 128
        assert found.any(axis=0).sum() == found.any(axis=1).sum() == 120
        rows, columns = np.nonzero(found)
        assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((200, 200), abs=0.05)


@pytest.mark.parametrize("backend", ["openslide", "tiffslide", "image"])
def test_threads_read_the_same_pixels(tmp_path: Path, backend: str) -> None:
    pixels = smooth(700, 500)
    path = pyramid(tmp_path / "p.tif", pixels)
    with open_slide(path, backend=backend) as slide, ThreadPoolExecutor(8) as pool:
        corners = [(x, y) for y in range(0, 400, 37) for x in range(0, 600, 41)]
        tiles = pool.map(lambda corner: slide.read_region(*corner, 0, 100, 100), corners)
        for (x, y), tile in zip(corners, tiles, strict=True):
            np.testing.assert_array_equal(tile, pixels[y : y + 100, x : x + 100])


@BOTH
def test_a_damaged_tile_is_an_error_there_and_nowhere_else(tmp_path: Path, backend: str) -> None:
    import tifffile

    pixels = smooth(256, 256)
    path = pyramid(tmp_path / "p.tif", pixels)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[15]
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = b"\xff" * 64
    path.write_bytes(data)
    with open_slide(path, backend=backend) as slide:
        for _ in range(2):
            with pytest.raises(SlideError, match="damaged or truncated"):
                slide.read_region(200, 200, 0, 32, 32)
            np.testing.assert_array_equal(slide.read_region(0, 0, 0, 64, 64), pixels[:64, :64])


def test_thumbnail_covers_the_slide(sample_slide: Path, tmp_path: Path) -> None:
    with open_slide(sample_slide) as slide:
        assert slide.thumbnail(512).shape == (512, 383, 3)
    with open_slide(pyramid(tmp_path / "p.tif", smooth(300, 200))) as slide:
        assert slide.thumbnail(10**6).shape == (200, 300, 3)
    # Long and low: two rows of 12 pixels, though a column has 15; or one row of 3.
    for height, white, rows in ((24, 12, 2), (3, 2, 1)):
        pixels = np.zeros((height, 300, 3), np.uint8)
        pixels[:white] = 255
        with open_slide(pyramid(tmp_path / "p.tif", pixels)) as slide:
            found = slide.thumbnail(20).astype(int)
        assert found.shape == (rows, 20, 3)
        assert found.mean() == pytest.approx(255 * white / height, abs=8)  # all of the slide, and no more


@pytest.mark.shared
@pytest.mark.parametrize("backend", ["openslide", "tiffslide"])
def test_ndpi(shared_data: Path, backend: str) -> None:
    path = shared_data / "slides" / "dev" / "hamamatsu_fluor_TRITC.ndpi"
    with open_slide(path) as reference, open_slide(path, backend=backend) as slide:
        assert slide.fingerprint == reference.fingerprint
        assert slide.mpp == reference.mpp == (0.228175056, 0.228175056)
        assert slide.vendor == "hamamatsu"
        assert slide.objective_power == 40
        assert slide.native_source() is None  # stripes, not tiles
        for level in (0, 1, 3):
            expected = reference.read_region(1000, 2000, level, 200, 100)
            np.testing.assert_array_equal(slide.read_region(1000, 2000, level, 200, 100), expected)
        tile = slide.read_at_mpp(200, 300, 256, 256, 1.0)
        np.testing.assert_array_equal(tile, reference.read_at_mpp(200, 300, 256, 256, 1.0))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("camelyon_overview_j2k.dcm", (28.969, 28.968)),
        ("camelyon_overview_jpeg.dcm", (28.969, 28.968)),
        ("highdicom_sm_image_50px.dcm", (0.499, 0.499)),
    ],
)
def test_dicom(shared_data: Path, name: str, mpp: tuple[float, float]) -> None:
    with open_slide(shared_data / "slides" / "dev" / name) as slide:
        assert (slide.vendor, slide.backend, slide.mpp) == ("dicom", "openslide", mpp)
        assert slide.read_at_mpp(0, 0, 25, 25, mpp[0] * 2).shape == (25, 25, 3)
        assert (slide.icc_profile is not None) == name.startswith("highdicom")


def test_mpp_must_be_known_and_sensible(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth(50, 40)).save(path)
    with (
        open_slide(path) as slide,
        pytest.raises(MissingMppError, match=r"a\.png does not state .*--slide-mpp"),
    ):
        slide.read_at_mpp(0, 0, 8, 8, 0.5)
    for dpi, stated in ((72, r"352\.7"), (600, r"42\.3")):  # of a screen, of a journal
        Image.fromarray(smooth(50, 40)).save(path, dpi=(dpi, dpi))
        with open_slide(path) as slide, pytest.raises(MissingMppError, match=rf"states {stated}.*--slide-mpp"):
            _ = slide.mpp
    with open_slide(path, slide_mpp=[0.5, 0.25]) as slide:  # as a GeoJSON states it
        assert slide.mpp == (0.5, 0.25)
    with open_slide(path, slide_mpp=(0.5, 0.25)) as slide:
        assert slide.mpp == (0.5, 0.25)
        assert slide.read_at_mpp(0, 0, 50, 20, 0.5).shape == (20, 50, 3)
    for absurd in (0.0, -1.0, float("nan"), float("inf"), 0.001, 1000.0, (0.5, 1000.0)):
        with pytest.raises(MissingMppError, match="--slide-mpp"):
            open_slide(path, slide_mpp=absurd)
