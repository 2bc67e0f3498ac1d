"""`first_pass`: fewer tiles are asked, and what is found is what would have been found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import wsiseg
from tests.tiles.fakes import FakeSlide, all_tissue
from wsiseg.errors import PixelError, StoreError
from wsiseg.first_pass import FACTOR, coarser, worth_asking
from wsiseg.inference import ASK_PLAINLY, TileMask
from wsiseg.slide import open_slide
from wsiseg.slide.scale import m_size
from wsiseg.testing import FakeModel, disk, synthetic_slide
from wsiseg.tiles import Grid, GridSpec, SlideTiles, plan_grid, write_store
from wsiseg.tiles.grid import SlideIdentity, tile_starts

MODEL = FakeModel(mpp=0.5)


class CloserUp(FakeModel):
    """Looks at what is small at half the µm per pixel."""

    def mpp_for(self, query: str) -> float:
        return self.mpp / 2 if "small" in query else self.mpp


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue all over, and two olive disks far apart."""
    path = tmp_path_factory.mktemp("slides") / "slide.tif"
    synthetic_slide(path, {"olive": [disk(400, 500, 90), disk(1300, 900, 60)]}, l0_width=1700, l0_height=1200)
    return path


def test_the_same_is_found_with_fewer_questions(slide_file: Path) -> None:
    queries = ["the orange", "the olive"]  # found by the second alone
    whole, quick = (wsiseg.segment(slide_file, queries, model=MODEL, first_pass=first) for first in (False, True))
    assert len(whole.annotations) == 2
    assert [a.geometry for a in quick.annotations] == [a.geometry for a in whole.annotations]
    assert 0 < len(quick.reasoning) < len(whole.reasoning) / 3
    assert quick.run["parameters"]["first_pass"] is True
    left_out = (len(whole.reasoning) - len(quick.reasoning)) // 2  # of two queries
    assert quick.notes[0] == f"the first pass left out {left_out} of {len(whole.reasoning) // 2} tiles"


def test_a_region_is_looked_at_as_in_the_whole_slide(slide_file: Path) -> None:
    box = (1200, 800, 250, 250)
    whole, part = (
        wsiseg.segment(slide_file, "the olive", model=MODEL, first_pass=True, region=region) for region in (None, box)
    )
    assert [a.geometry for a in part.annotations] == [whole.annotations[1].geometry]


def test_nothing_worth_a_closer_look_is_said(slide_file: Path) -> None:
    result = wsiseg.segment(slide_file, "the orange", model=MODEL, first_pass=True)
    assert list(result.annotations) == result.reasoning == []
    assert result.notes[-1].startswith(f'"the orange": not found ({ASK_PLAINLY}); from twice as far away, none of ')
    # Tiles of another query, which is looked at in another resolution, are not counted.
    both = wsiseg.segment(slide_file, ["the orange", "small orange"], model=CloserUp(mpp=0.5), first_pass=True)
    assert result.notes[-1] in both.notes


def test_a_store_has_one_resolution(slide_file: Path, tmp_path: Path) -> None:
    with open_slide(slide_file) as slide:
        write_store(slide, plan_grid(slide, GridSpec(0.5, 128, 32)), tmp_path / "slide.zarr")
    with pytest.raises(StoreError, match="a first pass needs the slide itself"):
        wsiseg.segment(tmp_path / "slide.zarr", "the olive", model=MODEL, first_pass=True)


class Unsure(FakeModel):
    """Sees what is dark, and is not sure of it."""

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        return [TileMask(np.where(tile[..., 0] < 128, np.float32(0.2), np.float32(0)), "", 0.2) for tile in tiles]


def test_what_is_near_a_doubtful_spot_is_asked(tmp_path: Path) -> None:
    pixels = np.full((400, 600, 3), 255, np.uint8)
    pixels[2:8, 2:8] = pixels[100:106, 100:106] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", slide_mpp=0.5) as slide:
        grid = plan_grid(slide, GridSpec(0.5, 64, 16, min_tissue=0))
        asked = worth_asking(SlideTiles(slide, grid), ["dark"], Unsure(tile_size=64, overlap=16), 16).grid
    near_first, near_second = ([(x, y) for y in at for x in at] for at in ((0, 48), (48, 96, 144)))
    assert set(map(tuple, asked.m_xy.tolist())) == {*near_first, *near_second}


class Torn(FakeSlide):
    """Cannot be read in one corner, from afar."""

    def read_at_mpp(self, m_x: int, m_y: int, m_width: int, m_height: int, mpp: float) -> np.ndarray:
        if mpp == 1.0 and m_x == m_y == 0:
            raise PixelError("torn")
        return np.full((m_height, m_width, 3), 255, np.uint8)


def test_what_cannot_be_read_from_afar_is_asked() -> None:
    slide: Any = Torn()
    grid = plan_grid(slide, GridSpec(0.5, 64, 16), tissue=all_tissue(slide))
    asked = worth_asking(SlideTiles(slide, grid, "skip"), ["dark"], Unsure(tile_size=64, overlap=16), 16).grid
    assert set(map(tuple, asked.m_xy.tolist())) == {(x, y) for x in (0, 48, 96, 144) for y in (0, 48, 96, 144)}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_far_tiles_cover_all_near_ones(data: st.DataObject) -> None:
    width, height = (data.draw(st.integers(1, 3000)) for _ in range(2))
    mpp, mpp_x, mpp_y = (data.draw(st.floats(0.2, 2)) for _ in range(3))
    size = data.draw(st.integers(16, 300))
    spec = GridSpec(mpp, size, data.draw(st.integers(0, size // 2)))
    slide = SlideIdentity("s", "f", "v", width, height, mpp_x, mpp_y)
    m_width, m_height = m_size(width, mpp / mpp_x), m_size(height, mpp / mpp_y)
    x, y = (tile_starts(length, size, spec.overlap) for length in (m_width, m_height))
    lattice = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    kept = lattice[:: data.draw(st.integers(1, 5))]
    near = Grid(spec, slide, m_width, m_height, kept, np.ones(len(kept), np.float32))
    far = coarser(near)
    covered = np.zeros((m_height + 2 * size, m_width + 2 * size), bool)  # in near pixels
    for fx, fy in far.m_xy * FACTOR:
        covered[max(fy, 0) : fy + FACTOR * size, max(fx, 0) : fx + FACTOR * size] = True
    for nx, ny in near.m_xy:
        assert covered[max(ny, 0) : min(ny + size, m_height), max(nx, 0) : min(nx + size, m_width)].all()
