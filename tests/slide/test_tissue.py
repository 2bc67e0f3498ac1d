"""Tissue detection: tissue is found; glass, padding, shadows and markers are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from tests.slide.make import smooth
from wsiseg.slide import open_slide, tissue, tissue_mask
from wsiseg.slide.tissue import find_tissue, otsu

UM_PER_PX = 10.0  # a thumbnail of a slide of 12 x 8 mm
GLASS = (243, 242, 244)
TISSUE = (slice(200, 600), slice(300, 800))  # rows, columns
MARKERS = {
    "blue": (35, 70, 170),
    "green": (30, 130, 70),
    "red": (205, 35, 55),
    "black": (25, 25, 28),
}


@pytest.fixture
def texture(sample_slide: Path) -> np.ndarray:
    """(400, 500, 3) of real dermis at about 10 µm per pixel."""
    with open_slide(sample_slide) as slide:
        patch = slide.read_at_mpp(50, 140, 25, 20, 7.5)
    mirrored = np.concatenate([patch, patch[:, ::-1]], axis=1)
    return np.tile(np.concatenate([mirrored, mirrored[::-1]]), (10, 10, 1))


@pytest.fixture
def thumbnail(texture: np.ndarray) -> np.ndarray:
    """(800, 1200, 3): a square piece of tissue on glass with sensor noise."""
    rng = np.random.default_rng(1)
    picture = np.clip(np.array(GLASS) + rng.normal(0, 1.5, (800, 1200, 3)), 0, 255).astype(np.uint8)
    picture[TISSUE] = texture
    return picture


def truth(thumbnail: np.ndarray) -> np.ndarray:
    mask = np.zeros(thumbnail.shape[:2], bool)
    mask[TISSUE] = True
    return mask


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    return (found & wanted).sum() / (found | wanted).sum()


def test_tissue_on_glass(thumbnail: np.ndarray) -> None:
    assert overlap(find_tissue(thumbnail, UM_PER_PX), truth(thumbnail)) > 0.98
    assert overlap(find_tissue(thumbnail, None), truth(thumbnail)) > 0.98


@pytest.mark.parametrize("colour", MARKERS)
def test_markers_are_not_tissue(thumbnail: np.ndarray, colour: str) -> None:
    """A ring around the tissue, a line across it, and letters on the glass."""
    picture = Image.fromarray(thumbnail).resize((2400, 1600))
    draw = ImageDraw.Draw(picture)
    for corners in ((500, 300, 1720, 1300), (60, 100, 300, 400)):
        draw.ellipse(corners, outline=MARKERS[colour], width=36)
    draw.line((100, 1500, 2300, 100), fill=MARKERS[colour], width=30)
    inked = (np.asarray(picture) == MARKERS[colour]).all(axis=2)[::2, ::2]
    found = find_tissue(np.asarray(picture.resize((1200, 800))), UM_PER_PX)
    wanted = truth(thumbnail)
    assert (found & ~wanted).sum() < 0.01 * wanted.sum()
    assert (found & wanted & ~inked).sum() > 0.88 * (wanted & ~inked).sum()
    assert (found & inked).sum() < 0.01 * inked.sum()


def test_blood_is_tissue_though_it_is_as_red_as_ink(thumbnail: np.ndarray) -> None:
    """Ink is even, blood is not."""
    ink = np.array((154, 31, 39))
    grain = np.random.default_rng(0).normal(1, 0.15, (100, 100, 1))
    for pool, share in ((ink * grain, 1), (ink, 0)):
        thumbnail[40:140, 40:140] = np.clip(pool, 0, 255)
        assert find_tissue(thumbnail, UM_PER_PX)[45:135, 45:135].mean() == pytest.approx(share, abs=0.02)


def test_a_blue_stain_is_no_ink(thumbnail: np.ndarray) -> None:
    grain = np.random.default_rng(0).normal(1, 0.05, (400, 500, 1))
    thumbnail[TISSUE] = np.clip(np.array((110, 160, 205)) * grain, 0, 255)
    assert overlap(find_tissue(thumbnail, UM_PER_PX), truth(thumbnail)) > 0.97


def test_dust_is_not_tissue_but_a_small_piece_is(thumbnail: np.ndarray, texture: np.ndarray) -> None:
    thumbnail[50:58, 100:108] = texture[:8, :8]  # 80 µm
    thumbnail[50:64, 300:314] = texture[:14, :14]
    found = find_tissue(thumbnail, UM_PER_PX)
    assert not found[40:70, 90:120].any()
    assert found[51:63, 301:313].all()
    # On a small picture a piece may be smaller.
    assert find_tissue(thumbnail[:200, 200:600], 0.5)[51:63, 101:113].any() == (14 * 14 >= 0.005 * 200 * 400)
    assert find_tissue(np.pad(thumbnail[200:260, 300:360], ((50,) * 2, (50,) * 2, (0, 0)), mode="edge"), 0.5).any()


def test_a_thumbnails_scale_is_that_of_both_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []
    monkeypatch.setattr(tissue, "find_tissue", lambda rgb, um_per_px: asked.append(um_per_px))
    Image.fromarray(smooth(400, 200)).save(tmp_path / "a.png")
    for slide_mpp in ((0.25, 1.0), None):
        with open_slide(tmp_path / "a.png", slide_mpp=slide_mpp) as slide:
            tissue_mask(slide, max_px=40)
    assert asked == [5.0, None]


def test_padding_and_coverslip_are_not_tissue(thumbnail: np.ndarray) -> None:
    wanted = truth(thumbnail)
    thumbnail[:90] = thumbnail[:, 1100:] = 0
    thumbnail[90:92] = 120
    thumbnail[700:703] = (136, 144, 140)
    assert overlap(find_tissue(thumbnail, UM_PER_PX), wanted) > 0.97


def test_small_holes_are_tissue_large_ones_are_not(thumbnail: np.ndarray) -> None:
    thumbnail[300:340, 400:440] = GLASS  # 400 µm: a lumen
    thumbnail[400:500, 500:620] = GLASS  # more than a millimetre: glass
    thumbnail[250:252, 300:800] = thumbnail[200:600, 700:704] = GLASS  # 40 µm: a crack
    thumbnail[520:540, 350:370] = MARKERS["blue"]  # a dot of ink, as small as a lumen
    found = find_tissue(thumbnail, UM_PER_PX)
    assert found[250:252, 305:795].all()
    assert found[205:595, 700:704].all()
    assert not found[520:540, 350:370].any()
    assert found[300:340, 400:440].all()
    assert not found[405:495, 505:615].any()


def test_fat_is_tissue(thumbnail: np.ndarray) -> None:
    """Fat cells of 80 µm: white with thin pale walls."""
    fat = np.full((200, 200, 3), 240, np.uint8)
    fat[::8] = fat[:, ::8] = (222, 190, 212)
    thumbnail[400:600, 800:1000] = fat
    assert find_tissue(thumbnail, UM_PER_PX)[405:590, 805:990].mean() > 0.99


def test_pale_tissue_is_tissue(thumbnail: np.ndarray) -> None:
    thumbnail[TISSUE] = (smooth(500, 400) // 32) + np.array((222, 200, 218), np.uint8)
    assert overlap(find_tissue(thumbnail, UM_PER_PX), truth(thumbnail)) > 0.97


def test_empty_glass_has_none() -> None:
    rng = np.random.default_rng(2)
    shade = np.linspace(225, 243, 900)[None, :, None]
    glass = np.clip(shade + rng.normal(0, 2, (600, 900, 3)), 0, 255).astype(np.uint8)
    assert not find_tissue(glass, UM_PER_PX).any()
    assert not find_tissue(np.full((600, 900, 3), 255, np.uint8), UM_PER_PX).any()


def test_tissue_from_edge_to_edge(texture: np.ndarray) -> None:
    assert find_tissue(texture, UM_PER_PX).mean() > 0.99
    assert find_tissue(texture, 0.5).mean() > 0.99
    grey = texture.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)
    assert find_tissue(grey, 0.5).mean() > 0.99


def test_sample_slide(sample_slide: Path) -> None:
    with open_slide(sample_slide) as slide:
        found = tissue_mask(slide, max_px=512)
        assert found.mask.shape == (512, 383)
        assert found.l0_per_px == (2220 / 383, 2967 / 512)
        assert 0.36 < found.fraction < 0.44
        assert found.mask[400, 180]
        assert not found.mask[100, 20]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0.01, 0.5))
def test_closing_and_filling_equal_their_definitions(seed: int, radius: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((37, 29)) < share
    frame = np.pad(mask, radius + 1)
    near = ndimage.distance_transform_edt(~frame) <= radius if mask.any() else frame
    closed = (ndimage.distance_transform_edt(near) > radius if near.any() else near) | frame
    inside = np.s_[radius + 1 : -radius - 1, radius + 1 : -radius - 1]
    np.testing.assert_array_equal(tissue._close(mask, radius), closed[inside])
    np.testing.assert_array_equal(tissue._fill_small_holes(mask, mask.size), ndimage.binary_fill_holes(mask))


def test_otsu_is_the_threshold_of_least_variance_within_the_classes() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0.2, 0.05, 700), rng.normal(0.8, 0.1, 300)])

    def within(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * low.var() + len(high) * high.var()

    best = min(within(t) for t in np.linspace(values.min(), values.max(), 2000)[1:-1])
    assert within(otsu(values)) <= 1.02 * best
    assert otsu(np.full(5, 0.3)) == 0
