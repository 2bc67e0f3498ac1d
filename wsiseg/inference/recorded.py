"""Steps of greedy decoding, recorded once as a CUDA graph and replayed: a GPU does not wait for Python.

A step of one token over a batch is about a thousand small kernels, which take longer to launch than to run. A graph
launches them at once, over memory that stays in place: keys and values have their room from the start, finished rows
are computed along (their weights are read anyway), and tokens, positions and the mask are counted on the device.
There the next token is chosen too, so that the device has begun the next step before Python sees what it chose.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from transformers import DynamicCache

from wsiseg.model import is_out_of_memory
from wsiseg.model.pathchat import PathChatSegR1

_log = logging.getLogger(__name__)
_ROOM = 64  # tokens; queries of nearly the same length share a recording
_WARM_UPS = 2  # libraries choose their kernels and take their memory before anything is recorded

KeysValues = tuple[torch.Tensor, torch.Tensor]
Read = tuple[torch.Tensor, torch.Tensor]  # last states (rows, H), and (2, rows) float64: tokens chosen, P(<SEG>)

_idle: WeakKeyDictionary[nn.Module, list[Recorded]] = WeakKeyDictionary()
_refused: WeakSet[nn.Module] = WeakSet()
# Of a process only one capture may be under way (torch.cuda.graph), whatever device it is on: each begins by waiting
# for the current device, which is not allowed while that one is captured, and would end both.
_recording = Lock()


@dataclass(frozen=True)
class Chosen:
    """What a step chose: the next token of each sample of the running batch, a row each.

    `probability` is that of `<SEG>`, `last` (rows, H) the states that the tokens were chosen from. `log_probability`
    of the tokens is empty where nothing was drawn at random.
    """

    samples: Sequence[int]
    token: list[int]
    probability: list[float]
    last: torch.Tensor
    log_probability: Sequence[float] = ()


def can_record(model: PathChatSegR1) -> bool:
    """Whether the model's steps can be recorded: on a CUDA device, weights as they are (not quantised, not cast)."""
    language = model.vlm.model.language_model
    return (
        model.device.type == "cuda"
        and model not in _refused
        and not torch.is_autocast_enabled("cuda")
        and all(p.is_floating_point() for p in language.parameters())
    )


@contextmanager
def recorded_steps(model: PathChatSegR1, cache: DynamicCache, position: int, answer: int) -> Iterator[Recorded | None]:
    """Steps that go on from the keys and values of `cache`, for answers of at most `answer` tokens.

    Recordings are kept with the model, and made anew when its weights have moved or a batch is larger.

    Args:
        position: M-RoPE position of the next token.

    Yields:
        Steps that wait for `begin`; None, with a warning the first time, where the model's steps cannot be recorded.

    Raises:
        RuntimeError: the device has no room for them (`is_out_of_memory`).
    """
    rows, length = _keys_and_values(cache)[0][0].shape[0], cache.get_seq_length()
    room = -(-(length + answer + 1) // _ROOM) * _ROOM  # the last step is one that nobody asks for
    idle = _idle.setdefault(model, [])  # of which several threads may each take one
    steps = idle.pop() if idle else None
    if steps is None or not steps.serves(model, rows, room):
        steps = None  # its memory is free before more is asked for
        try:
            steps = Recorded(model, cache, rows, room)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            _refused.add(model)
            _log.warning("decoding step by step, which is slower: the steps cannot be recorded (%s)", error)
            yield None
            return
    steps.fill(cache, position)
    del cache  # which the caller may let go of meanwhile
    yield steps
    idle.append(steps)


class Recorded:
    """One recorded step of at most `rows` rows of at most `room` tokens. It does not hold the model itself."""

    def __init__(self, model: PathChatSegR1, like: DynamicCache, rows: int, room: int) -> None:
        device, tokenizer = model.device, model.tokenizer
        self._weights, self._rows, self._room = _places(model), rows, room
        self._held = _Held(like, rows, room)
        self._token = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._never = torch.zeros(model.vlm.lm_head.weight.shape[0], device=device)  # (V,), added to the logits
        self._never[tokenizer.suppressed] = -torch.inf
        self._running: list[int] = []
        self._ahead: Callable[[], Chosen]  # waits for what the step under way chooses
        # Garbage goes to the last places, which nothing reads before they are written.
        self._held.place.fill_(room - _WARM_UPS - 1)
        with _recording:
            self._replay = _record(lambda: self._step(model), device)

    def serves(self, model: PathChatSegR1, rows: int, room: int) -> bool:
        """Where results must not depend on what was recorded before, only if it has exactly as much room."""
        needed, there = (rows, room), (self._rows, self._room)
        exact = torch.are_deterministic_algorithms_enabled()
        enough = needed == there if exact else rows <= self._rows and room <= self._room
        return enough and self._weights == _places(model)

    def fill(self, cache: DynamicCache, position: int) -> None:
        """Go on from these keys and values."""
        self._held.fill(cache)
        self._position.fill_(position)

    def begin(self, first: Chosen) -> None:
        """Go on with these tokens; `choose` gives them first."""
        self._running = list(first.samples)
        self._token[: len(first.token)] = torch.tensor(first.token, device=self._token.device)
        self._ahead = lambda: first

    def choose(self) -> Chosen:
        """What the step before the one that the device is taking now has chosen."""
        last, written = self._replay()
        # Copies: the next replay writes where these are. That one is launched before they are waited for.
        last, written = last.clone(), written.to("cpu", non_blocking=True, copy=True)
        arrived = torch.cuda.current_stream(last.device).record_event() if last.is_cuda else None
        # Not a method of this object, which would hold itself: once dropped, its memory is free at once.
        before, self._ahead = self._ahead, partial(_arrived, self._running, last, written, arrived)
        return before()

    def go_on(self, waiting: list[int]) -> None:
        """Nothing is to be done: the step over all samples is under way."""

    def _step(self, model: PathChatSegR1) -> Read:
        language, rows = model.vlm.model.language_model, self._rows
        inputs = model.embed(self._token[:, None])  # (rows, 1, H)
        hidden = torch.arange(self._room, device=inputs.device) > self._held.place
        mask = torch.zeros(self._room, dtype=inputs.dtype, device=inputs.device).masked_fill(hidden, -torch.inf)
        last = language(
            inputs_embeds=inputs,
            position_ids=self._position.expand(3, rows, 1),
            attention_mask=dict.fromkeys(language.config.layer_types, mask.expand(rows, 1, 1, -1)),
            past_key_values=self._held,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits = model.vlm.lm_head(last).float() + self._never
        token, probability = logits.argmax(-1), logits.softmax(-1)[:, model.tokenizer.seg]
        self._token.copy_(token)
        self._held.place += 1
        self._position += 1
        return last, torch.stack([token.double(), probability.double()])


def _arrived(
    samples: Sequence[int], last: torch.Tensor, written: torch.Tensor, event: torch.cuda.Event | None
) -> Chosen:
    if event:
        event.synchronize()
    token, probability = written[:, : len(samples)].tolist()
    return Chosen(samples, [int(t) for t in token], probability, last)


class _Held:
    """Keys and values (rows, heads, room, dim) of all layers, written at `place`: what the layers take for a cache."""

    def __init__(self, like: DynamicCache, rows: int, room: int) -> None:
        def space(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(rows, values.shape[1], room, values.shape[3])

        self.layers = [(space(keys), space(values)) for keys, values in _keys_and_values(like)]
        self.place = torch.zeros(1, dtype=torch.long, device=self.layers[0][0].device)

    def fill(self, cache: DynamicCache) -> None:
        for held, given in zip(self.layers, _keys_and_values(cache), strict=True):
            for room, values in zip(held, given, strict=True):
                room[: len(values), :, : values.shape[2]] = values
        self.place.fill_(cache.get_seq_length())

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> KeysValues:
        held_keys, held_values = self.layers[layer]
        held_keys.index_copy_(2, self.place, keys)
        held_values.index_copy_(2, self.place, values)
        return held_keys, held_values


def _keys_and_values(cache: DynamicCache) -> list[KeysValues]:
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _record(step: Callable[[], Read], device: torch.device) -> Callable[[], Read]:
    """`step` as a graph; its replay gives what the last call of `step` gave, in the same memory."""
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on uploading tiles meanwhile.
    with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
        read = step()

    def replay() -> Read:
        graph.replay()
        return read

    return replay


def _places(model: PathChatSegR1) -> tuple[int, ...]:
    """Where the weights lie that a step reads: a graph reads them there, whatever the model has by then."""
    vlm = model.vlm
    return tuple(weight.data_ptr() for part in (vlm.model.language_model, vlm.lm_head) for weight in part.parameters())
