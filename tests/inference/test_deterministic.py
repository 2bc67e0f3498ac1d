"""`deterministic`: the same bytes, whatever the threads; `cache=False`: nothing is left in a store."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

import wsiseg
from tests.model.small import small_model
from wsiseg.inference.deterministic import deterministic
from wsiseg.inference.devices import in_turn
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.slide import open_slide
from wsiseg.testing import synthetic_slide
from wsiseg.tiles import GridSpec, TileStore, plan_grid, write_store


@pytest.fixture
def store(tmp_path: Path) -> TileStore:
    synthetic_slide(tmp_path / "slide.tif", {}, l0_width=700, l0_height=420)
    with open_slide(tmp_path / "slide.tif") as slide:
        return write_store(slide, plan_grid(slide, GridSpec(0.5, 128, 32)), tmp_path / "slide.zarr")


def segmented(store: TileStore, out: Path, **options: bool) -> bytes:
    model = PathChatSegmenter(small_model(seed=4, stops=1.5), name="small", fingerprint="one")
    wsiseg.segment(store.path, "glands", model=model, **options).write(out)  # type: ignore[arg-type]
    return out.read_bytes()


def test_the_number_of_threads_changes_no_byte_and_no_embedding_is_read(store: TileStore, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        found = set()
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.add(segmented(store, tmp_path / "out.geojson", deterministic=True))
            assert torch.get_num_threads() == number
            assert not torch.are_deterministic_algorithms_enabled()
        assert len(found) == 1
        assert not (store.path / "embeddings").exists()
    finally:
        torch.set_num_threads(threads)


def test_inside_torch_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic():
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.get_num_threads() == 1
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_after_a_part_of_the_work_it_still_holds() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with deterministic():
            assert list(in_turn(lambda copy, item: item, ["copy"], range(2))) == [0, 1]
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_last_of_two_calls_that_overlap_puts_torch_back() -> None:
    entered, may_leave = threading.Event(), threading.Event()
    of_first: list[int] = []

    def first() -> None:
        torch.set_num_threads(2)
        with deterministic():
            entered.set()
            may_leave.wait(20)
        of_first.append(torch.get_num_threads())

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=first)
        thread.start()
        entered.wait(20)
        with deterministic():
            may_leave.set()
            thread.join()
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.get_num_threads() == 1
        assert not torch.are_deterministic_algorithms_enabled()
        assert [torch.get_num_threads()] == of_first == [2]
    finally:
        torch.set_num_threads(threads)


def test_without_cache_a_store_stays_as_it_was(store: TileStore, tmp_path: Path) -> None:
    first = segmented(store, tmp_path / "a.geojson", cache=False)
    assert not (store.path / "embeddings").exists()
    assert segmented(store, tmp_path / "b.geojson") == first
    assert (store.path / "embeddings").exists()
