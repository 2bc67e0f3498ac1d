"""Recorded steps write what plain ones write; on a CPU the recording is the step itself, over memory that stays."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Semaphore
from unittest.mock import Mock
from weakref import WeakSet

import pytest
import torch

from tests.inference.test_decode import random_tokens
from tests.model.small import small_model
from wsiseg.inference import decode as decoding
from wsiseg.inference import recorded
from wsiseg.inference.decode import Completion, decode, encode_prefix
from wsiseg.inference.deterministic import deterministic
from wsiseg.inference.devices import in_turn
from wsiseg.model.pathchat import PathChatSegR1

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
    assert len(records) < 4, "a recording serves smaller batches and shorter queries too"


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
    begin = recorded.Recorded.begin
    monkeypatch.setattr(recorded.Recorded, "begin", lambda steps, first: made.add(steps) or begin(steps, first))
    model = small_model(seed=1, stops=1.5)
    prefix = encode_prefix(model, model.tokenizer.prompt(QUERIES[0], 0.5))
    gc.disable()
    try:
        for rows in (3, 5):
            decode(model, random_tokens(model, rows, rows), prefix)
        assert len(made) == 1
        with suppress(KeyboardInterrupt):
            decode(model, random_tokens(model, 5, 5), prefix, hear=Mock(side_effect=KeyboardInterrupt))
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
    quick, plain = both_ways(model, random_tokens(model, 4, 0), QUERIES[0], monkeypatch)
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
    assert model not in recorded._refused
    (steps,) = recorded._idle[model]
    assert isinstance(steps, recorded.Recorded)
