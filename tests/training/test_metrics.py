"""The figures, against values worked out by hand and properties that hold for any mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsiseg.training.metrics import (
    bleu4,
    bootstrap_ratio,
    dice,
    hd95,
    iou,
    overlap,
    token_f1,
)

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)
words = ["a", "gland", "with", "dark", "rim", ".", ",", "12.5", "µm"]
sentences = st.lists(st.sampled_from(words), max_size=12).map(" ".join)


@given(masks)
@settings(deadline=None)
def test_overlap_figures_are_symmetric_bounded_and_one_only_for_equal_masks(pair) -> None:
    a, b = pair
    forward, backward = overlap(a, b), overlap(b, a)
    for figure in (dice, iou):
        assert 0 <= figure(forward) == figure(backward) <= 1
        assert (figure(forward) == 1) == np.array_equal(a, b)
    assert dice(forward) == pytest.approx(2 * iou(forward) / (1 + iou(forward)))


@given(masks)
@settings(deadline=None)
def test_hd95_is_a_bounded_symmetric_distance_that_scales_with_mpp(pair) -> None:
    a, b = pair
    assert hd95(a, a) == 0
    assert 0 <= hd95(a, b) == hd95(b, a) <= math.hypot(*a.shape)


def test_hd95_equals_the_brute_force_definition() -> None:
    rng = np.random.default_rng(3)
    a, b = np.zeros((2, 24, 30), bool)
    a[4:15, 3:17] = True
    b[9:20, 10:28] = rng.random((11, 18)) > 0.3

    def outline(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inner)

    distance = np.linalg.norm(outline(a)[:, None] - outline(b)[None], axis=2)
    expected = max(np.percentile(distance.min(1), 95), np.percentile(distance.min(0), 95))
    assert hd95(a, b) == pytest.approx(expected)


def test_hd95_of_an_empty_mask_is_the_diagonal_and_of_two_empty_masks_zero() -> None:
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert hd95(empty, empty) == 0
    assert hd95(empty, full) == hd95(full, empty) == 5


def test_bleu4_by_hand() -> None:
    reference = "the cat is on the mat"
    assert bleu4(reference, reference) == pytest.approx(1)
    # "the" occurs twice in the reference, so 2 of 7 count; no common bigram: 1/7, 1/6, 1/5 after adding one.
    assert bleu4("the the the the the the the", reference) == pytest.approx((2 / 7 / 7 / 6 / 5) ** 0.25)
    # All n-grams match (4/4, 3/3, 2/2, 1/1) but the chain is short: only the brevity penalty is left.
    assert bleu4("the cat is on", reference) == pytest.approx(math.exp(1 - 6 / 4))
    # Longer than the reference: no penalty; 6/8, (5+1)/(7+1), (4+1)/(6+1), (3+1)/(5+1).
    expected = (6 / 8 * 6 / 8 * 5 / 7 * 4 / 6) ** 0.25
    assert bleu4("the cat is on the mat right now", reference) == pytest.approx(expected)
    assert bleu4("dogs bark", reference) == bleu4("", reference) == bleu4(reference, "") == 0
    assert bleu4("", "") == 1


def test_token_f1_by_hand() -> None:
    # Bags {two:1, glands:2} and {glands:1, here:1}: one common token of 3 and of 2.
    assert token_f1("two glands glands", "glands here") == pytest.approx(2 * 1 / (3 + 2))
    assert token_f1("Glands, 12.5 µm", "glands , 12.5 µm") == 1
    assert token_f1("a", "") == token_f1("", "a") == 0


@given(sentences, sentences)
def test_text_figures_are_bounded_and_one_for_equal_texts(a: str, b: str) -> None:
    assert 0 <= bleu4(a, b) <= 1 + 1e-12
    assert 0 <= token_f1(a, b) == token_f1(b, a) <= 1
    assert bleu4(a, a) == pytest.approx(1)
    assert token_f1(a, a) == 1


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap_ratio(rng.normal(1.0, 1.0, 40), seed=trial, resamples=500)
        assert interval.low <= interval.value <= interval.high
        hits += interval.low <= 1.0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.98


def test_bootstrap_draws_whole_groups() -> None:
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 25)
    patients = np.repeat(["a", "b", "c", "d"], 25).tolist()
    by_sample, by_patient = bootstrap_ratio(values), bootstrap_ratio(values, groups=patients)
    assert by_sample.value == by_patient.value == 0.5
    # Four patients, each all right or all wrong: means of draws are 0, ¼, ½, ¾ or 1.
    assert (by_patient.low, by_patient.high) == (0, 1)
    assert by_sample.high - by_sample.low < 0.25


def test_bootstrap_is_reproducible_and_weights_a_ratio_by_its_denominator() -> None:
    top, bottom = [1.0, 0.0, 9.0], [1.0, 1.0, 18.0]
    first, again = bootstrap_ratio(top, bottom, seed=4), bootstrap_ratio(top, bottom, seed=4)
    assert first == again
    assert first.value == 0.5
    assert math.isnan(bootstrap_ratio([]).value)
    assert math.isnan(bootstrap_ratio([0.0], [0.0]).value)
    with pytest.raises(ValueError, match="group names"):
        bootstrap_ratio(top, groups=["a"])
