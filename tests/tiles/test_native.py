"""Native tiles decoded once: the same bytes as OpenSlide, each tile decoded once, or left to the slide."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from tests.tiles.fakes import all_tissue
from wsiseg.errors import SlideError
from wsiseg.slide import open_slide
from wsiseg.testing import synthetic_slide
from wsiseg.tiles import GridSpec, SlideTiles, native, plan_grid
from wsiseg.tiles.native import NativeLevel, open_native_level


@pytest.fixture(scope="module")
def texture(sample_slide: Path) -> np.ndarray:
    return tifffile.imread(sample_slide, key=0)[600:1400, 600:1800]


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory, texture: np.ndarray) -> Path:
    """YCbCr JPEG at 1, 1/2 and 1/4, sides that are no multiple of a native tile."""
    path = tmp_path_factory.mktemp("pyramid") / "slide.tif"
    synthetic_slide(path, {}, l0_width=2200, l0_height=1700, texture=texture, jpeg_quality=80)
    return path


def every_tile(slide: Any, mpp: float, *, tile_size: int, overlap: int) -> Any:
    return plan_grid(slide, GridSpec(mpp, tile_size, overlap), tissue=all_tissue(slide))


@pytest.mark.parametrize(
    ("which", "backend", "mpp"),
    [
        ("sample", "openslide", 0.499),
        ("sample", "openslide", 0.5),
        ("sample", "tiffslide", 1.0),
        ("pyramid", "openslide", 0.5),
        ("pyramid", "openslide", 0.75),
        ("pyramid", "tiffslide", 1.0),
        ("pyramid", "openslide", 2.6),
    ],
)
def test_tiles_equal_read_at_mpp_pixel_for_pixel(
    which: str, backend: str, mpp: float, sample_slide: Path, pyramid: Path
) -> None:
    with open_slide(sample_slide if which == "sample" else pyramid, backend=backend) as slide:
        found = open_native_level(slide, slide.level_for_mpp(mpp)[0])
        assert found is not None
        found.close()
        grid = every_tile(slide, mpp, tile_size=300, overlap=44)
        last = grid.only(np.arange(len(grid)) >= len(grid) - 2)
        hanging_over = replace(last, m_xy=last.m_xy + 150)  # as the last ones of older stores without pixels do
        for planned in (grid, hanging_over):
            for indices, tiles in SlideTiles(slide, planned).batches(5):
                for index, tile in zip(indices, tiles, strict=True):
                    m_x, m_y = planned.m_xy[index].tolist()
                    assert (tile == slide.read_at_mpp(m_x, m_y, 300, 300, mpp)).all()


def test_native_levels_equal_openslide_byte_for_byte(sample_slide: Path, pyramid: Path) -> None:
    for path, levels in ((sample_slide, 1), (pyramid, 3)):
        reference = openslide.OpenSlide(path)
        with open_slide(path) as slide:
            for level in range(levels):
                width, height = slide.level_dimensions[level]
                expected = np.asarray(reference.read_region((0, 0), level, (width, height)).convert("RGB"))
                found = open_native_level(slide, level)
                assert found is not None
                assert np.array_equal(found.cut({}, 0, 0, width, height), expected)
                found.close()


@pytest.mark.parametrize("kept_bytes", [native.MAX_KEPT_BYTES, 0])
def test_every_native_tile_is_decoded_once_unless_memory_forbids(
    pyramid: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(native, "MAX_KEPT_BYTES", kept_bytes)
    decoded: Counter[tuple[int, int]] = Counter()
    decode = NativeLevel.decode

    def counted(self: NativeLevel, key: tuple[int, int]) -> np.ndarray:
        decoded[key] += 1
        return decode(self, key)

    with open_slide(pyramid) as slide:
        grid = every_tile(slide, 0.5, tile_size=300, overlap=44)
        source = SlideTiles(slide, grid)
        expected = list(source.tiles(range(len(grid))))
        monkeypatch.setattr(NativeLevel, "decode", counted)
        found = open_native_level(slide, 0)
        assert found is not None
        decoded.clear()  # forget the comparison at opening
        outs = [np.empty((300, 300, 3), np.uint8) for _ in range(len(grid))]

        def read(m_x: int, m_y: int) -> np.ndarray:
            raise AssertionError("every native tile is sound")

        tiles = list(native.native_tiles(slide, grid, range(len(grid)), outs, found, read=read, workers=2))
    assert all((a == b).all() for a, b in zip(tiles, expected, strict=True))
    assert len(decoded) == found.n_rows * found.n_columns
    if kept_bytes > 1 << 20:
        assert set(decoded.values()) == {1}
    else:
        assert 1 < max(decoded.values()) <= 4


def test_abbreviated_streams_with_common_tables(tmp_path: Path, texture: np.ndarray) -> None:
    """Scanners write the JPEG tables once (tag 347) and bare YCbCr streams without JFIF in each tile."""
    path = tmp_path / "tables.tif"
    tiles, tables = [], b""
    for y in range(0, 768, 256):
        for x in range(0, 1024, 256):
            whole = imagecodecs.jpeg8_encode(texture[y : y + 256, x : x + 256].copy(), level=75)
            bare, tables = split_tables(whole)
            tiles.append(bare)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter(tiles), shape=(768, 1024, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb",
            compression="jpeg", jpegtables=tables, metadata=None,
            resolution=(20000, 20000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    with open_slide(path, backend="openslide") as slide:
        found = open_native_level(slide, 0)
        assert found is not None
        assert np.array_equal(found.cut({}, 100, 90, 800, 600), slide.read_level(0, 100, 90, 800, 600))
        found.close()


def split_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """A JPEG without JFIF marker and tables, and its tables as a stream of their own."""
    bare, tables, at = b"\xff\xd8", b"\xff\xd8", 2
    while jpeg[at + 1] != 0xDA:
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segment = jpeg[at : at + length]
        if segment[1] in (0xDB, 0xC4):
            tables += segment
        elif segment[1] != 0xE0:
            bare += segment
        at += length
    return bare + jpeg[at:], tables + b"\xff\xd9"


def test_other_slides_are_left_to_their_backend(tmp_path: Path, texture: np.ndarray) -> None:
    made = {
        "deflate": ("d.tif", {}),
        "bounds": ("b.scn", {"l0_bounds_xy": (300, 200), "jpeg_quality": 80}),
        "level of 2.0017": ("o.tif", {"jpeg_quality": 80, "l0_width": 1201}),
    }
    for name, (file, options) in made.items():
        path = tmp_path / file
        synthetic_slide(path, {}, texture=texture, **options)  # type: ignore[arg-type]
        with open_slide(path, backend="openslide") as slide:
            level = 1 if name.startswith("level") else 0
            assert open_native_level(slide, level) is None, name
            grid = every_tile(slide, 1.0 if level else 0.5, tile_size=200, overlap=20)
            tiles = list(SlideTiles(slide, grid).tiles(range(len(grid))))
            for (m_x, m_y), tile in zip(grid.m_xy.tolist(), tiles, strict=True):
                assert (tile == slide.read_at_mpp(m_x, m_y, 200, 200, grid.spec.mpp)).all()


def test_colours_that_would_differ_are_left_to_the_slide(pyramid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = NativeLevel.decode

    def other_colours(self: NativeLevel, key: tuple[int, int]) -> np.ndarray:
        tile, coded = decode(self, key), self.byte_counts[key[0] * self.n_columns + key[1]]
        return tile if coded < max(self.byte_counts) else tile ^ 1  # all-white ones show no difference

    monkeypatch.setattr(NativeLevel, "decode", other_colours)
    with open_slide(pyramid) as slide:
        assert open_native_level(slide, 0) is None


@pytest.mark.parametrize(
    ("damage", "backend"), [("start", None), ("middle", None), ("end", None), ("end", "tiffslide")]
)
def test_a_damaged_native_tile_is_the_slides_own_error(
    tmp_path: Path, pyramid: Path, damage: str, backend: str | None
) -> None:
    """Where the middle or the end is lost, imagecodecs makes up the rest in grey, without a word."""
    broken = tmp_path / "broken.tif"
    data = bytearray(pyramid.read_bytes())
    with tifffile.TiffFile(pyramid) as tiff:
        page: Any = tiff.pages[0]
        tile = int(np.argsort(page.databytecounts)[-5])  # of the larger ones, OpenSlide lets some holes pass
        start, length = page.dataoffsets[tile], page.databytecounts[tile]
    lost = {"start": (0, 512), "middle": (length // 3, 2 * length // 3), "end": (length - 100, length)}[damage]
    data[start + lost[0] : start + lost[1]] = bytes(lost[1] - lost[0])
    broken.write_bytes(data)
    with open_slide(broken, backend=backend) as slide:
        grid = every_tile(slide, 0.5, tile_size=300, overlap=44)
        batches = SlideTiles(slide, grid).batches(4)
        with pytest.raises(SlideError, match="damaged"):
            list(batches)
