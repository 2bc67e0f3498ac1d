"""The busy share counts time in which something ran once, however much ran at once."""

from __future__ import annotations

import pytest

from benchmarks.speed.busy import covered


@pytest.mark.parametrize(
    ("spans", "share"),
    [([(0, 4)], 1.0), ([(0, 4), (2, 5), (8, 10)], 0.7), ([(8, 10), (0, 4), (1, 2)], 0.6), ([(5, 9), (5, 9)], 1.0)],
)
def test_overlapping_intervals_count_once(spans: list[tuple[int, int]], share: float) -> None:
    assert covered(spans) == pytest.approx(share)
