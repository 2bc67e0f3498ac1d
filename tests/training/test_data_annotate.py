"""The annotator says what is in the mask, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from wsiseg.training.data.annotate import (
    colour_word,
    describe,
    find_in,
    look_at,
    number_word,
    percent_word,
    refuse,
    shape_word,
    size_word,
    texture_word,
)


def disks(*centres: tuple[int, int], radius: int, size: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """A pink picture with dark purple disks, and its 0/1 mask."""
    y, x = np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.uint16)
    for cy, cx in centres:
        mask[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = 1
    image = np.full((size, size, 3), (230, 160, 190), np.uint8)
    image[mask > 0] = (90, 40, 120)
    return image, mask


def every_wording(image: np.ndarray, mask: np.ndarray, mpp: float | None) -> list[str]:
    return [describe(image, mask, "gland", mpp, np.random.default_rng(seed)) for seed in range(30)]


def test_count_size_place_and_share() -> None:
    image, mask = disks((30, 30), (30, 60), (55, 40), radius=10)
    for text in every_wording(image, mask, 0.5):
        assert "three glands" in text.lower()
        assert "upper left" in text
        assert "about 10 µm wide" in text  # 20 px at 0.5
        assert "less than 5 %" in text  # 3 · π · 10² of 240² = 1.6 %
        assert "round" in text
        assert "darker than" in text
        assert "pink tissue over almost all" in text
        assert 20 <= len(text.split()) <= 50


def test_one_object_is_singular_and_without_mpp_no_size_is_said() -> None:
    image, mask = disks((200, 120), radius=20)
    for text in every_wording(image, mask, None):
        assert "one gland " in text.lower()
        assert "at the bottom" in text
        assert "µm" not in text


def test_objects_everywhere_are_said_to_be_everywhere() -> None:
    image, mask = disks(*((y, x) for y in range(20, 240, 40) for x in range(20, 240, 40)), radius=14)
    for text in every_wording(image, mask, 1.0):
        assert "all over the tile" in text
        assert "about 40 glands" in text.lower()  # 36, by tens above 30
        assert "about 40 %" in text  # 36 · π · 14² of 240² = 38 %


def test_instances_are_counted_though_they_touch() -> None:
    image = np.full((90, 90, 3), 128, np.uint8)
    mask = np.zeros((90, 90), np.uint16)
    mask[10:20, 10:20], mask[10:20, 20:30] = 1, 2
    found, joined = find_in(image, mask), find_in(image, (mask > 0).astype(np.uint16))
    assert found is not None
    assert joined is not None
    assert (found.count, joined.count) == (2, 1)
    assert found.elongation == pytest.approx(1)
    assert joined.elongation == pytest.approx(2, rel=0.02)


def test_a_refusal_names_what_is_missing() -> None:
    image, mask = disks((100, 100), radius=30)
    for seed in range(30):
        text = refuse(image, "cartilage", np.random.default_rng(seed))
        assert "cartilage" in text
        assert text.endswith(("outline.", "outlined.", "drawn."))
        assert "about 5 %" in text  # 2827 of 57600 px are dark
        assert 20 <= len(text.split()) <= 50
    with pytest.raises(ValueError, match="empty"):
        describe(image, mask * 0, "gland", 0.5, np.random.default_rng(0))


def test_numbers_are_rounded_coarsely() -> None:
    assert [number_word(n) for n in (1, 9, 12, 28, 47, 300)] == [
        "one", "nine", "about 10", "about 30", "about 50", "more than 100",
    ]  # fmt: skip
    assert [percent_word(f) for f in (0.01, 0.13, 0.99)] == ["less than 5 %", "about 15 %", "almost all"]
    assert [size_word(d) for d in (6.6, 23, 87)] == ["about 7 µm", "about 25 µm", "about 90 µm"]


@pytest.mark.parametrize(("row", "column"), list(np.ndindex(3, 3)))
def test_every_place_has_its_own_word_in_pictures_of_any_shape(row: int, column: int) -> None:
    image, mask = disks((40 + 80 * row, 40 + 80 * column), radius=20)
    words = (
        ("upper left", "top", "upper right"),
        ("on the left", "centre", "on the right"),
        ("lower left", "bottom", "lower right"),
    )
    assert words[row][column] in describe(image, mask, "gland", None, np.random.default_rng(0))
    wide = find_in(np.repeat(image, 2, 1), np.repeat(mask, 2, 1))
    assert (wide.fullest, wide.area_fraction) == ((row, column), pytest.approx((mask > 0).mean()))


def test_specks_are_not_counted_and_small_objects_are() -> None:
    image, mask = disks((60, 60), (180, 180), radius=10)
    mask[100, 100] = 1
    assert find_in(image, mask).count == 2
    image, mask = disks((60, 60), radius=30)
    mask[200:208, 200:208] = 1
    assert find_in(image, mask).count == 2


def test_a_pale_stain_is_tissue_and_glass_is_not() -> None:
    glass = np.full((60, 60, 3), 240, np.uint8)
    glass[:30] = (225, 200, 215)
    assert look_at(glass).tissue_fraction == pytest.approx(0.5)


def test_words_for_colour_shape_and_texture() -> None:
    assert colour_word((240, 200, 220)).startswith("pale ")
    assert colour_word((90, 40, 120)).startswith("dark ")
    assert [shape_word(elongation) for elongation in (1.2, 1.5, 3.0)] == ["round", "oval", "elongated"]
    assert [texture_word(roughness) for roughness in (3, 10, 30)] == ["smooth", "fine", "coarse"]
    image, mask = disks((120, 120), radius=30)
    rng = np.random.default_rng(0)
    assert "paler than" in describe(255 - image, mask, "gland", None, rng)
    assert "about as dark as" in describe(np.full_like(image, 150), mask, "gland", None, rng)
