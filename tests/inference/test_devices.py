"""Several devices share a slide's tiles: the same answers, in the same order, at the same time."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wsiseg
from tests.model.small import small_model
from wsiseg.errors import ModelError
from wsiseg.inference import KnowsCells, KnowsLimits, KnowsNames, TileMask, devices, engine, recorded
from wsiseg.inference.answers import answers
from wsiseg.inference.devices import SeveralDevices, in_turn
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.features import TileFeatures
from wsiseg.inference.shots import Shot
from wsiseg.slide import open_slide
from wsiseg.testing import synthetic_slide
from wsiseg.tiles import GridSpec, SlideTiles, TileStore, plan_grid, write_store


def test_devices_work_at_the_same_time_and_answer_in_order() -> None:
    both = threading.Barrier(2, timeout=10)
    seen: dict[str, list[int]] = {"a": [], "b": []}

    def ask(copy: str, item: int) -> int:
        both.wait()  # broken, and the test fails, unless two items are asked at once
        seen[copy].append(item)
        return item * item

    assert list(in_turn(ask, ["a", "b"], range(10))) == [i * i for i in range(10)]
    assert seen == {"a": [0, 2, 4, 6, 8], "b": [1, 3, 5, 7, 9]}


def test_one_device_may_work_while_its_next_item_is_made_ready() -> None:
    both = threading.Barrier(2, timeout=10)

    def items() -> Iterator[int]:
        yield 0
        both.wait()  # broken, and the test fails, unless the first is being asked
        yield 1

    def ask(copy: str, item: int) -> int:
        if item == 0:
            both.wait()
        return item

    assert list(in_turn(ask, ["a"], items(), ahead=True)) == [0, 1]


def test_reading_ahead_is_bounded_and_an_error_comes_in_its_turn() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    def ask(copy: str, item: int) -> int:
        if item == 5:
            raise ModelError("the fifth")
        return item

    run = in_turn(ask, ["a", "b"], items())
    assert next(run) == 0
    assert len(read) <= 4
    assert [next(run) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ModelError, match="the fifth"):
        next(run)
    assert not [t for t in threading.enumerate() if t.name.startswith("device-")]


def test_a_store_is_answered_and_its_embeddings_kept_as_by_one_device(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "slide.tif", {}, l0_width=700, l0_height=600)

    def copy() -> PathChatSegmenter:
        return PathChatSegmenter(small_model(seed=4, stops=1.5), name="small", fingerprint="one")

    found, kept = [], []
    for model in (copy(), SeveralDevices([copy(), copy(), copy()])):
        with open_slide(tmp_path / "slide.tif") as slide:
            path = tmp_path / f"{len(found)}.zarr"
            store: TileStore = write_store(slide, plan_grid(slide, GridSpec(0.5, 128, 32)), path)
        run = answers(store, ["nuclei", "glands"], model, batch_size=3)
        found.append([(i.tolist(), str(masks), [m.probability for m in masks["nuclei"]]) for i, masks in run])
        shards = sorted(p for p in (path / "embeddings").rglob("*") if p.is_file())
        kept.append({str(p.relative_to(path)): p.read_bytes() for p in shards})
    one, three = found
    assert [said for *said, _ in one] == [said for *said, _ in three]
    drawn = [(a, b) for x, y in zip(one, three, strict=True) for a, b in zip(x[2], y[2], strict=True)]
    assert any(a is not None for a, _ in drawn)
    assert all((a is None and b is None) or (a == b).all() for a, b in drawn)
    assert len(kept[0]) > 4
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("threads", "quota", "sizes", "each"),
    [
        (1, "", [6, 6], 1),
        (2, "", [6, 6], 1),
        (4, "", [3, 3, 3, 3], 1),
        (17, "max 100000", [2] * 6, 2),
        (17, "250000 100000", [4, 4, 4], 1),  # a container on a large machine
        (17, "50000 100000", [6, 6], 1),
        (1, "250000 100000", [6, 6], 1),
    ],
)
def test_the_threads_of_a_cpu_take_batches_of_their_own_and_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, quota: str, sizes: list[int], each: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(devices, "_QUOTA", tmp_path / "cpu.max")
    synthetic_slide(tmp_path / "slide.tif", {}, l0_width=700, l0_height=600)
    model = PathChatSegmenter(small_model(seed=4, stops=1.5), name="small", fingerprint="one")
    asked: dict[int, int] = {}  # tiles of each batch that is looked at, and how many threads torch has there

    def look(indices: np.ndarray, *rest: Any) -> TileFeatures:
        asked[int(indices[0])] = torch.get_num_threads()
        return PathChatSegmenter.look(model, indices, *rest)

    model.look = look  # type: ignore[method-assign]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with open_slide(tmp_path / "slide.tif") as slide:
            tiles = SlideTiles(slide, plan_grid(slide, GridSpec(0.6, 192, 32)))
            found = list(answers(tiles, ["nuclei"], model, batch_size=8))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert [len(indices) for indices, _ in found] == sizes
    assert set(asked.values()) == {each}


def test_who_listens_hears_all_threads_of_a_cpu_and_a_large_model_has_them_for_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = PathChatSegmenter(small_model(seed=4, stops=1.5), name="small", fingerprint="one")
    tiles = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), np.uint8)
    told: list[list[str]] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(model.copies) == [model] * 2
        first, second = model.heard_by(told.append).copies
        monkeypatch.setattr(engine, "_LARGE", 1)
        assert list(model.copies) == [model]
    finally:
        torch.set_num_threads(before)
    one, two = first._tell, second._tell
    assert one
    assert two
    one(["a", "b"])
    two(["c"])
    one([])
    assert told == [["a", "b"], ["a", "b", "c"], ["c"]]
    said = [answer.reasoning for answer in second.segment_tiles(tiles, "outline the nuclei", 0.5)]
    assert told[-2:] == [said, []]


def test_several_devices_are_shown_examples_and_know_what_one_knows() -> None:
    one = PathChatSegmenter(small_model(), name="small", fingerprint="one", caution="of tissue")
    shot = Shot(np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=bool), 0.5)
    several = SeveralDevices([one, one]).with_shots([shot])
    assert [copy.shots for copy in several.copies] == [(shot,), (shot,)]
    assert isinstance(several, KnowsCells)
    assert isinstance(several, KnowsLimits)
    assert isinstance(several, KnowsNames)
    for query in ("outline the nuclei", "outline the glands"):
        assert several.asks_for_cells(query) == one.asks_for_cells(query)
        assert several.caution_for(query) == one.caution_for(query)
        assert several.hint_for(query) == one.hint_for(query)
        assert several.mpp_for(query) == one.mpp_for(query)


def test_a_slide_gives_the_same_file_on_two_devices(sample_slide: Path) -> None:
    one, two = (
        wsiseg.segment(sample_slide, "outline the nuclei", device=device, region=(500, 900, 350, 200), batch_size=1)
        for device in ("cpu", "cpu,cpu")
    )
    assert len(one.annotations) > 3
    assert one.to_geojson() == two.to_geojson()


def test_what_devices_cannot_do_is_said(sample_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="device 'gpu' cannot be used here"):
        wsiseg.load_model(device="cpu,gpu")
    with pytest.raises(ModelError, match="a deterministic run takes one device"):
        wsiseg.segment(sample_slide, "nuclei", device="cpu,cpu", deterministic=True)

    def too_old(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors…")

    # Trap: such a card has memory like any other, and fails at the first tile.
    monkeypatch.setattr("torch.ones", too_old)
    with pytest.raises(ModelError, match=r"device 'cpu' cannot be used here: .*execution on the device$"):
        wsiseg.load_model(device="cpu")


def test_a_model_that_no_one_holds_leaves_memory_at_once() -> None:
    model = PathChatSegmenter(small_model(seed=4, stops=1.5), name="small", fingerprint="one")
    model.segment_tiles(np.zeros((1, 128, 128, 3), np.uint8), "nuclei", 0.5)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_calls_that_overlap_leave_torch_its_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        outer = in_turn(lambda copy, item: item, "ab", range(2))
        next(outer)
        found: list[int] = []

        def inner() -> None:
            calls = in_turn(lambda copy, item: item, "ab", range(2))
            next(calls)
            outer.close()
            calls.close()
            found.append(torch.get_num_threads())

        thread = threading.Thread(target=inner)
        thread.start()
        thread.join()
        assert found == [4]
    finally:
        torch.set_num_threads(before)


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def answered(tmp_path: Path, model: PathChatSegmenter | SeveralDevices, batch_size: int) -> list[TileMask]:
    synthetic_slide(tmp_path / "slide.tif", {}, l0_width=2400, l0_height=2100)
    with open_slide(tmp_path / "slide.tif") as slide:
        tiles = SlideTiles(slide, plan_grid(slide, GridSpec(0.5, 128, 32)))
        return [mask for _, masks in answers(tiles, ["nuclei"], model, batch_size) for mask in masks["nuclei"]]


def assert_equal(found: list[TileMask], expected: list[TileMask]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.reasoning, a.seg_probability) == (b.reasoning, b.seg_probability)
        np.testing.assert_array_equal(a.probability, b.probability)


@pytest.mark.gpu
@cuda
def test_streams_and_devices_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_gpu() -> PathChatSegmenter:
        return PathChatSegmenter(small_model(seed=4, stops=1.5).to("cuda"), name="small", fingerprint="one")

    model = on_gpu()
    assert list(model.copies) == [model] * 2
    found = answered(tmp_path, model, 8)
    assert len(found) > 2 * 8 * 8, "no tile takes another's place; choose a larger slide"
    assert any(mask.probability is not None for mask in found)
    for _ in range(3):
        assert_equal(answered(tmp_path, model, 8), found)
    assert_equal(answered(tmp_path, SeveralDevices([model, on_gpu()]), 8), found)
    monkeypatch.setattr(engine, "_STREAMS", 1)
    assert_equal(answered(tmp_path, model, 8), found)


@pytest.mark.gpu
@cuda
def test_a_gpu_that_is_full_does_less_at_once_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = PathChatSegmenter(small_model(seed=4, stops=1.5).to("cuda"), name="small", fingerprint="one")

    def peak(batch_size: int) -> tuple[int, list[TileMask]]:
        recorded._idle.clear()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        found = answered(tmp_path, model, batch_size)
        return torch.cuda.max_memory_reserved(), found

    enough, _ = peak(2)
    enough += 100 << 20
    needed, expected = peak(64)
    assert needed > enough
    torch.cuda.set_per_process_memory_fraction(enough / torch.cuda.get_device_properties(0).total_memory)
    try:
        _, found = peak(64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with several batches at once; going on with one" in caplog.text
    assert "out of memory with 64 tiles at once; going on with 32" in caplog.text
    # A batch of another size rounds otherwise, which may turn a word of random weights here and there.
    assert len(found) == len(expected)
    alike = sum(a.reasoning == b.reasoning for a, b in zip(found, expected, strict=True))
    assert alike >= 0.9 * len(found)
