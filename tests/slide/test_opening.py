"""Opening: the backend follows from the content; what cannot be opened is one clear SlideError."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.slide.make import half, pyramid, smooth
from wsiseg.errors import MissingMppError, SlideError
from wsiseg.slide import open_slide

PIXELS = smooth(300, 200)


def test_the_name_does_not_matter(sample_slide: Path, tmp_path: Path) -> None:
    slide = shutil.copy(sample_slide, tmp_path / "slide.png")
    picture = tmp_path / "picture.svs"
    Image.fromarray(PIXELS).save(picture, "PNG")
    with open_slide(slide) as first, open_slide(picture) as second:
        assert (first.backend, second.backend) == ("openslide", "image")


@pytest.mark.parametrize("kind", ["png", "tif", "bmp", "webp"])
def test_plain_images(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if kind == "webp" else {}))
    with open_slide(path) as slide:
        assert (slide.backend, slide.vendor, slide.dimensions) == ("image", "image", (300, 200))
        np.testing.assert_array_equal(slide.read_region(10, 20, 0, 100, 50), PIXELS[20:70, 10:110])


def test_grey_and_transparent_images(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    with open_slide(tmp_path / "grey.png") as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 200)[..., 2], PIXELS[..., 0])
    clear = np.dstack([PIXELS, np.zeros((200, 300), np.uint8)])
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    with open_slide(tmp_path / "clear.png") as slide:
        assert (slide.read_region(0, 0, 0, 300, 200) == 255).all()


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "folder", "cut 20%", "cut 90%", "cut 99.9%"])
@pytest.mark.parametrize("backend", [None, "openslide", "tiffslide", "image"])
def test_bad_input(
    sample_slide: Path, tmp_path: Path, damage: str, backend: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.svs"
    data = sample_slide.read_bytes()
    if damage == "empty":
        path.touch()
    elif damage == "text":
        path.write_text("this is no slide\n")
    elif damage == "folder":
        path.mkdir()
    elif damage.startswith("cut"):
        if backend == "image" and damage != "cut 20%":
            pytest.skip("Pillow reads the first page alone, and that is whole")
        path.write_bytes(data[: int(len(data) * float(damage[4:-1]) / 100)])
    with pytest.raises(SlideError, match=r"bad\.svs") as caught:
        open_slide(path, backend=backend)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_cut_png_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(SlideError, match="damaged or truncated"):
        open_slide(tmp_path / "a.png")


def test_a_huge_plain_image_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # Pillow warns from here, refuses from the double
    open_slide(tmp_path / "a.png").close()
    assert not recwarn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SlideError, match="tiled pyramid"):
        open_slide(tmp_path / "a.png")


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    deep = (PIXELS[..., 0].astype(np.uint16)) * 100
    Image.fromarray(deep).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.stack([deep] * 3, axis=2), tile=(64, 64), photometric="rgb")
    for name in ("a.png", "a.tif"):
        with pytest.raises(SlideError, match="8-bit") as refused:
            open_slide(tmp_path / name, backend=None if name == "a.png" else "tiffslide")
        assert "damaged" not in str(refused.value)


def test_unknown_backend(sample_slide: Path) -> None:
    with pytest.raises(SlideError, match="openslide, tiffslide, image"):
        open_slide(sample_slide, backend="bioformats")


@pytest.mark.parametrize("codec", ["webp", "jpeg2000", "jpegxl"])
def test_tiffs_in_codecs_that_openslide_lacks_are_read(tmp_path: Path, codec: str) -> None:
    """As `vips tiffsave` writes them: OpenSlide would say that the compression is unsupported."""
    lossless = {"reversible": True, "level": 0} if codec == "jpeg2000" else {"lossless": True}
    options: dict[str, Any] = {"compression": codec, "compressionargs": lossless, "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, tile=(64, 64), **options)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.backend == "tiffslide"
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 200), PIXELS)


def write_ome(path: Path, **options: Any) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}
    metadata |= {"PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(PIXELS, subifds=1, metadata=metadata, tile=(64, 64), photometric="rgb", **options)
        tiff.write(half(PIXELS), subfiletype=1, tile=(64, 64), photometric="rgb", **options)


def test_ome_tiff_with_its_pyramid_and_scale(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.ome.tif")
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert (slide.backend, slide.vendor, slide.mpp) == ("tiffslide", "ome", (0.25, 0.5))
        assert slide.level_dimensions == ((300, 200), (150, 100))
        np.testing.assert_array_equal(slide.read_region(0, 0, 1, 150, 100), half(PIXELS))


def test_the_largest_image_of_an_ome_tiff_is_the_slide_and_has_its_own_scale(tmp_path: Path) -> None:
    """Here the overview of the glass comes first, and the colours are in planes."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        for pixels, mpp in ((half(PIXELS), 16), (PIXELS, 0.25)):
            metadata = {"axes": "SYX", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            tiff.write(planes, metadata=metadata, tile=(64, 64), photometric="rgb", planarconfig="separate")
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert slide.mpp == (0.25, 0.25)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 300, 200), PIXELS)


def test_a_scale_that_is_no_number_is_none(tmp_path: Path) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": "0,25", "PhysicalSizeY": "0,25"}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, ome=True, metadata=metadata, photometric="rgb")
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert slide.stated_mpp is None


@pytest.mark.parametrize("colours", ["palette", "miniswhite", "separated"])
def test_colours_that_tiffslide_would_get_wrong_are_refused(tmp_path: Path, colours: str) -> None:
    pixels, options = PIXELS[..., 0], {}
    if colours == "palette":
        options["colormap"] = np.arange(768, dtype=np.uint16).reshape(3, 256)
    if colours == "separated":
        pixels = np.dstack([PIXELS, pixels])
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), photometric=colours, **options)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.backend == "openslide"  # which gets them right
    with pytest.raises(SlideError, match="open a local copy with OpenSlide"):
        open_slide(tmp_path / "a.tif", backend="tiffslide")


def test_urls(sample_slide: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/slides/a.svs", sample_slide.read_bytes())
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    memory.pipe("/slides/a.png", (tmp_path / "a.png").read_bytes())
    with open_slide(sample_slide) as local, open_slide("memory://slides/a.svs") as remote:
        assert (remote.backend, remote.native_source()) == ("tiffslide", None)
        assert (remote.fingerprint, remote.mpp) == (local.fingerprint, local.mpp)
        expected = local.read_at_mpp(300, 300, 200, 200, 0.8)
        np.testing.assert_array_equal(remote.read_at_mpp(300, 300, 200, 200, 0.8), expected)
    with open_slide("memory://slides/a.png") as picture:
        assert picture.backend == "image"
        np.testing.assert_array_equal(picture.read_region(0, 0, 0, 300, 200), PIXELS)
    with open_slide(sample_slide.as_uri()) as slide:
        assert slide.backend == "openslide"
    with zipfile.ZipFile(tmp_path / "slides.zip", "w") as archive:
        archive.write(sample_slide, "a.svs")
    with open_slide(f"zip://a.svs::{tmp_path / 'slides.zip'}") as slide:
        np.testing.assert_array_equal(slide.read_at_mpp(300, 300, 200, 200, 0.8), expected)
    for url in ("memory://slides/none.svs", "nonsense://a/b.svs"):
        with pytest.raises(SlideError):
            open_slide(url)


def test_fingerprint_follows_the_content(sample_slide: Path, tmp_path: Path) -> None:
    data = bytearray(sample_slide.read_bytes())
    same, other = tmp_path / "same.svs", tmp_path / "other.svs"
    same.write_bytes(data)
    data[1000] ^= 1
    other.write_bytes(data)
    with open_slide(sample_slide) as a, open_slide(same) as b, open_slide(other) as c:
        assert a.fingerprint == b.fingerprint != c.fingerprint


def test_slide_of_known_scale(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "p.tif", PIXELS, mpp=(0.25, 0.27))
    with open_slide(path) as a, open_slide(path, backend="tiffslide") as b:
        assert a.mpp == b.mpp == (0.25, 0.27)
        assert a.vendor == b.vendor == "generic-tiff"
        assert a.fingerprint == b.fingerprint


def test_images_that_are_opened_at_the_same_time_leave_the_hosts_warnings_as_they_were(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    before = list(warnings.filters)

    def load(_: int) -> None:
        with open_slide(tmp_path / "a.png", slide_mpp=0.5):
            pass

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(load, range(400)))
    assert warnings.filters == before


@pytest.mark.parametrize("slide_mpp", [np.array([0.5, 0.4]), [0.5, 0.4], (0.5, 0.4)])
def test_a_scale_may_be_any_pair_of_numbers(slide_mpp: object, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", slide_mpp=slide_mpp) as slide:  # type: ignore[arg-type]
        assert slide.mpp == (0.5, 0.4)
    with pytest.raises(MissingMppError, match="cannot be a slide's scale"):
        open_slide(tmp_path / "a.png", slide_mpp=(0.5, 0.5, 0.5))  # type: ignore[arg-type]
