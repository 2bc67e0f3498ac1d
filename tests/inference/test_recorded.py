"""Recorded steps write what plain ones write; on a CPU the recording is the step itself, over memory that stays."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, Semaphore
from typing import Any
from unittest.mock import Mock
from weakref import WeakSet

import numpy as np
import pytest
import torch

from tests.inference.test_decode import random_tokens
from tests.model.small import small_model
from wsiseg.errors import ModelError
from wsiseg.inference import IMAGE_TOKENS, engine, recorded
from wsiseg.inference import decode as decoding
from wsiseg.inference.decode import Completion, decode, encode_prefix
from wsiseg.inference.deterministic import deterministic
from wsiseg.inference.devices import in_turn
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model.pathchat import PathChatSegR1

one_batch = decoding._read
QUERIES = ("outline the glands", "nuclei", "please outline every one of the malignant glands in this field of view")


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets steps be recorded on a CPU, where "recording" is to run them; holds one item for each recording."""
    made: list[int] = []

    def run_now(step: Callable[[], recorded.Read], device: torch.device) -> Callable[[], recorded.Read]:
        made.append(1)
        for _ in range(recorded._WARM_UPS):
            step()
        return step

    monkeypatch.setattr(recorded, "_record", run_now)
    monkeypatch.setattr(decoding, "can_record", lambda model: True)
    return made


def both_ways(
    model: PathChatSegR1, tokens: torch.Tensor, query: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Completion], list[Completion]]:
    prefix = encode_prefix(model, model.tokenizer.prompt(query, 0.5))
    quick = decode(model, tokens, prefix)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "can_record", lambda model: False)
        return quick, decode(model, tokens, prefix)


def same(quick: list[Completion], plain: list[Completion]) -> None:
    assert [c.ids for c in quick] == [c.ids for c in plain]
    for a, b in zip(quick, plain, strict=True):
        assert a.seg_probability == pytest.approx(b.seg_probability, abs=1e-5)
        assert (a.seg_state is None) == (b.seg_state is None)
        if a.seg_state is not None and b.seg_state is not None:
            torch.testing.assert_close(a.seg_state, b.seg_state, atol=2e-5, rtol=1e-4)


def test_recorded_steps_write_what_plain_ones_write(records: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(seed=1, stops=1.5)
    for seed, (rows, query) in enumerate([(9, QUERIES[0]), (3, QUERIES[1]), (9, QUERIES[0]), (9, QUERIES[2])]):
        tokens = random_tokens(model, rows, seed)
        quick, plain = both_ways(model, tokens, query, monkeypatch)
        same(quick, plain)
        assert len({len(c.ids) for c in quick}) > 1, "answers of one length test little; choose another seed"
    assert len(records) == 3, "a recording serves batches and queries of like size"


@pytest.mark.parametrize("slots", [1, 3, 9, 20])
def test_a_sample_that_is_done_makes_room_for_the_next(
    records: list[int], monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    model = small_model(seed=5, stops=1.5)
    tokens = random_tokens(model, 13, 6)
    prefix = encode_prefix(model, model.tokenizer.prompt(QUERIES[0], 0.5))
    taken = 0
    run_now = recorded._record

    def counted(step: Callable[[], recorded.Read], device: torch.device) -> Callable[[], recorded.Read]:
        replay = run_now(step, device)

        def one() -> recorded.Read:
            nonlocal taken
            taken += 1
            return replay()

        return one

    monkeypatch.setattr(recorded, "_record", counted)
    heard: list[list[list[int]]] = []
    quick = decode(model, tokens, prefix, slots=slots, hear=lambda ids: heard.append([list(i) for i in ids]))
    monkeypatch.setattr(decoding, "can_record", lambda model: False)
    plain = decode(model, tokens, prefix)
    same(quick, plain)
    assert heard[-1] == [c.ids for c in plain]
    lengths = [len(c.ids) for c in plain]
    assert len(set(lengths)) > 3, "answers of like length test little; choose another seed"
    if slots == 3:  # in batches each would wait for its longest
        assert taken < sum(max(lengths[i : i + slots]) for i in range(0, 13, slots))


def test_a_window_of_several_batches_is_answered_as_one_batch(
    records: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = PathChatSegmenter(small_model(seed=6, stops=1.5), name="small", fingerprint="one")
    tiles = np.random.default_rng(0).integers(0, 255, (13, 128, 128, 3), np.uint8)
    tiles[:, 0, 0, 0] = range(13)
    tokens, encode = random_tokens(segmenter.model, 13, 6), segmenter._encode

    def see(part: str, some: np.ndarray) -> list[torch.Tensor]:  # random weights see all tiles alike
        return [tokens[some[:, 0, 0, 0].astype(int)]] if part == IMAGE_TOKENS else encode(part, some)

    monkeypatch.setattr(segmenter, "_encode", see)
    masks_at_once: list[int] = []
    masks = segmenter.model.decode_masks
    monkeypatch.setattr(segmenter.model, "decode_masks", lambda e, *r: masks_at_once.append(len(e)) or masks(e, *r))
    expected = segmenter.segment_tiles(tiles, QUERIES[0], 0.5)
    for of_before in (masks_at_once, records, recorded._idle):
        of_before.clear()
    monkeypatch.setattr(engine, "can_record", lambda model: True)
    read: list[int] = []
    monkeypatch.setattr(decoding, "_read", lambda m, p, t, *s: read.append(len(t)) or one_batch(m, p, t, *s))
    seen = segmenter.look(np.arange(13), (128, 128), lambda: tiles)
    found = segmenter.answer(seen, QUERIES[0], 0.5, at_once=3)
    assert read == [3, 3, 3, 3, 1], "four batches together, and one tile that is left"
    assert segmenter.refills == 4
    assert len(records) == 1, "as large as a batch, also for the tile that is left"
    assert max(masks_at_once) <= 3
    assert [a.reasoning for a in found] == [a.reasoning for a in expected]
    assert 0 < sum(a.probability is not None for a in found) < 13
    for a, b in zip(found, expected, strict=True):
        if a.probability is not None and b.probability is not None:
            np.testing.assert_allclose(a.probability, b.probability, atol=1e-3)


@pytest.mark.parametrize(("tiles", "at_once", "room", "sizes"), [(3, 4, 4, [4]), (1, 4, 4, [4]), (9, 8, 4, [8, 4])])
def test_a_device_that_is_full_gives_back_what_it_recorded_before_it_does_less(
    records: list[int], monkeypatch: pytest.MonkeyPatch, tiles: int, at_once: int, room: int, sizes: list[int]
) -> None:
    segmenter = PathChatSegmenter(small_model(seed=6, stops=1.5), name="small", fingerprint="one")
    seen = np.zeros((tiles, 128, 128, 3), np.uint8)
    monkeypatch.setattr(engine, "can_record", lambda model: True)
    segmenter.segment_tiles(np.zeros((4, 128, 128, 3), np.uint8), QUERIES[2], 0.5)  # of another length
    init, tried = recorded.Recorded.__init__, list[int]()

    def limited(self: recorded.Recorded, model: PathChatSegR1, like: Any, rows: int, length: int) -> None:
        if tried[-1:] != [rows]:
            tried.append(rows)
        others = [steps for idle in recorded._idle[model].values() for steps in idle]
        if rows + sum(steps._rows for steps in others) > room:
            raise torch.OutOfMemoryError("injected")
        init(self, model, like, rows, length)

    monkeypatch.setattr(recorded.Recorded, "__init__", limited)
    features = segmenter.look(np.arange(tiles), (128, 128), lambda: seen)
    assert len(segmenter.answer(features, QUERIES[1], 0.5, at_once)) == tiles
    assert tried == sizes


def test_a_device_that_is_full_whatever_is_given_back_is_told_so(
    records: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = PathChatSegmenter(small_model(seed=6, stops=1.5), name="small", fingerprint="one")
    monkeypatch.setattr(engine, "can_record", lambda model: True)
    complete, sizes = segmenter._complete, list[int]()

    def full_behind(*asked: Any) -> list[Completion]:  # every attempt leaves a recording
        sizes.append(asked[-1])
        complete(*asked)
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(segmenter, "_complete", full_behind)
    with pytest.raises(ModelError, match="no room for one tile"):
        segmenter.segment_tiles(np.zeros((4, 128, 128, 3), np.uint8), QUERIES[0], 0.5)
    assert sizes == [4, 4, 2, 2, 1, 1]


def test_threads_of_one_stream_take_recordings_of_their_own(records: list[int]) -> None:
    model = small_model(seed=1, stops=1.5)
    prefix = encode_prefix(model, model.tokenizer.prompt(QUERIES[0], 0.5))
    inside = Barrier(2, timeout=20)
    with ThreadPoolExecutor(2) as pool:

        def take(_: int) -> recorded.Recorded:
            with torch.inference_mode(), recorded.recorded_steps(model, prefix.cache, 4, 40, 9) as steps:
                inside.wait()
                assert steps
                return steps

        for _ in range(3):
            one, other = pool.map(take, range(2))
            assert one is not other
    assert len(records) == 2


def test_a_recording_is_not_kept_for_a_larger_batch_or_other_weights(
    records: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(seed=1, stops=1.5)
    for seed, rows in enumerate((3, 5, 5)):
        same(*both_ways(model, random_tokens(model, rows, seed), QUERIES[0], monkeypatch))
    assert len(records) == 2
    head = model.vlm.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().flip(1).clone())
    same(*both_ways(model, random_tokens(model, 5, 2), QUERIES[0], monkeypatch))
    assert len(records) == 3


def test_a_recording_that_is_dropped_is_free_at_once(records: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger one needs its memory; so does what goes on after an error in the middle."""

    def hold_nothing(step: Callable[[], recorded.Read], device: torch.device) -> Callable[[], recorded.Read]:
        read = step()
        return lambda: read  # as a graph, which holds neither `Recorded` nor the model

    monkeypatch.setattr(recorded, "_record", hold_nothing)
    made = WeakSet[recorded.Recorded]()
    put = recorded.Recorded.put
    monkeypatch.setattr(recorded.Recorded, "put", lambda steps, *taken: made.add(steps) or put(steps, *taken))
    model = small_model(seed=1, stops=1.5)
    prefix = encode_prefix(model, model.tokenizer.prompt(QUERIES[0], 0.5))
    gc.disable()
    try:
        for rows in (3, 5, 9, 17):
            decode(model, random_tokens(model, rows, rows), prefix)
        assert len(made) == recorded._KEPT
        with suppress(KeyboardInterrupt):
            decode(model, random_tokens(model, 9, 5), prefix, hear=Mock(side_effect=KeyboardInterrupt))
        assert len(made) == recorded._KEPT - 1
        recorded.give_back(model)
        assert len(made) == 0
    finally:
        gc.enable()


def test_deterministic_steps_do_not_depend_on_what_was_recorded_before(records: list[int]) -> None:
    model = small_model(seed=1, stops=1.5)
    prefix = encode_prefix(model, model.tokenizer.prompt(QUERIES[0], 0.5))
    with deterministic():
        for rows in (5, 3, 3):
            decode(model, random_tokens(model, rows, rows), prefix)
    assert len(records) == 2


def test_no_room_for_a_recording_is_no_reason_never_to_record(
    records: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    monkeypatch.setattr(recorded, "_record", Mock(side_effect=full))
    model = small_model(seed=1, stops=1.5)
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        decode(model, random_tokens(model, 4, 0), encode_prefix(model, model.tokenizer.prompt(QUERIES[0], 0.5)))
    assert model not in recorded._refused


def test_steps_that_cannot_be_recorded_are_taken_one_by_one(
    records: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(step: Callable[[], recorded.Read], device: torch.device) -> Callable[[], recorded.Read]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorded, "_record", refuse)
    model = small_model(seed=1, stops=1.5)
    tokens, prefix = random_tokens(model, 4, 0), encode_prefix(model, model.tokenizer.prompt(QUERIES[0], 0.5))
    quick = decode(model, tokens, prefix, slots=2)
    _, plain = both_ways(model, tokens, QUERIES[0], monkeypatch)
    assert [c.ids for c in quick] == [c.ids for c in plain]
    assert "cannot be recorded" in caplog.text
    assert model in recorded._refused


def test_devices_record_one_after_another(records: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: torch.cuda.graph allows one capture in a process; two devices begin with their first batches at once.
    run_now, under_way = recorded._record, Semaphore()

    def alone(step: Callable[[], recorded.Read], device: torch.device) -> Callable[[], recorded.Read]:
        if not under_way.acquire(blocking=False):
            raise RuntimeError("operation would make the legacy stream depend on a capturing blocking stream")
        time.sleep(0.2)
        under_way.release()
        return run_now(step, device)

    monkeypatch.setattr(recorded, "_record", alone)
    models = [small_model(seed=1, stops=1.5) for _ in range(2)]

    def ask(model: PathChatSegR1, tokens: torch.Tensor) -> list[Completion]:
        return decode(model, tokens, encode_prefix(model, model.tokenizer.prompt(QUERIES[0], 0.5)))

    tokens = random_tokens(models[0], 3, 0)
    same(*in_turn(ask, models, [tokens, tokens]))
    assert not any(model in recorded._refused for model in models)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_graph_writes_what_plain_steps_write(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(seed=1, stops=1.5).to("cuda")
    assert decoding.can_record(model)
    for seed, (rows, query) in enumerate([(9, QUERIES[0]), (3, QUERIES[1]), (9, QUERIES[2]), (2, QUERIES[0])]):
        same(*both_ways(model, random_tokens(model, rows, seed).to("cuda"), query, monkeypatch))
    tokens, prefix = random_tokens(model, 13, 6).to("cuda"), encode_prefix(model, model.prompt(QUERIES[0], 0.5))
    refilled = decode(model, tokens, prefix, slots=3)
    _, plain = both_ways(model, tokens, QUERIES[0], monkeypatch)
    same(refilled, plain)
    assert model not in recorded._refused
    ((*of_stream,),) = recorded._idle[model].values()
    assert len(of_stream) == recorded._KEPT
