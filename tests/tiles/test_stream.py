"""Tiles from the slide: in order, ahead of the consumer but never far, errors in place, no thread left."""

from __future__ import annotations

import threading
import time
from itertools import count

import numpy as np
import pytest

from tests.tiles.fakes import FakeSlide, all_tissue
from wsiseg.tiles import GridSpec, SlideTiles, plan_grid
from wsiseg.tiles.ahead import map_ahead, read_ahead


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("wsiseg-read")]


def test_batches_are_the_slide_in_grid_order() -> None:
    slide = FakeSlide(dimensions=(1000, 700))
    grid = plan_grid(slide, GridSpec(0.5, tile_size=64, overlap=8), tissue=all_tissue(slide))
    seen = list(SlideTiles(slide, grid).batches(7))
    assert np.concatenate([indices for indices, _ in seen]).tolist() == list(range(len(grid)))
    assert {len(indices) for indices, _ in seen[:-1]} == {7}
    for indices, tiles in seen:
        for index, tile in zip(indices, tiles, strict=True):
            assert (tile == slide.read_at_mpp(*grid.m_xy[index], 64, 64, 0.5)).all()
    assert not our_threads()


def test_a_slow_consumer_holds_the_reader_back() -> None:
    slide = FakeSlide(dimensions=(1000, 700))
    grid = plan_grid(slide, GridSpec(0.5, tile_size=32, overlap=0), tissue=all_tissue(slide))
    batches = SlideTiles(slide, grid).batches(4)
    next(batches)
    time.sleep(0.3)
    assert slide.reads <= 4 * 4 + 16 < len(grid)
    batches.close()
    assert not our_threads()


def test_an_unreadable_tile_is_an_error_at_its_place() -> None:
    slide = FakeSlide(dimensions=(1000, 700), fail_after=50)
    grid = plan_grid(slide, GridSpec(0.5, tile_size=32, overlap=0), tissue=all_tissue(slide))
    seen: list[int] = []
    batches = SlideTiles(slide, grid).batches(4)
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(index for indices, _ in batches for index in indices.tolist())
    assert seen == list(range(len(seen)))
    assert 40 <= len(seen) <= 50
    assert not our_threads()


def test_stopping_early_ends_the_threads_and_an_empty_grid_has_no_batch() -> None:
    ahead = read_ahead(map_ahead(lambda n: n * n, count(), workers=2, ahead=4), 2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 4]
    ahead.close()
    assert not our_threads()
    assert list(read_ahead([], 1)) == []
