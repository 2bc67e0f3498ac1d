"""Steps of greedy decoding, recorded once as a CUDA graph and replayed: a GPU does not wait for Python.

A step of one token over a batch is about a thousand small kernels, which take longer to launch than to run. A graph
launches them at once, over memory that stays in place: keys and values have their room from the start, finished rows
are computed along (their weights are read anyway) until another sample takes their place, and tokens, positions and
the mask are counted on the device, row by row. There the next token is chosen too, so that the device has begun the
next step before Python sees what it chose.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
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
_KEPT = 2  # recordings of a model for each stream: queries of other lengths have others
_WARM_UPS = 2  # libraries choose their kernels and take their memory before anything is recorded

KeysValues = tuple[torch.Tensor, torch.Tensor]
Read = tuple[torch.Tensor, torch.Tensor]  # last states (rows, H), and (2, rows) float64: tokens chosen, P(<SEG>)

# Those of a stream are replayed there alone: one after the other, whatever memory the kernels of several share.
_idle: WeakKeyDictionary[nn.Module, dict[int, list[Recorded]]] = WeakKeyDictionary()
_refused: WeakSet[nn.Module] = WeakSet()
# Of a process only one capture may be under way (torch.cuda.graph), whatever device it is on: each begins by waiting
# for the current device, which is not allowed while that one is captured, and would end both.
_recording = Lock()
_looking = Lock()  # several threads may work on one stream


@dataclass(frozen=True)
class Chosen:
    """What a step chose: the next token of each sample of the running batch, a row each. Some may be done already.

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
def recorded_steps(
    model: PathChatSegR1, like: DynamicCache, rows: int, prompt: int, answer: int
) -> Iterator[Recorded | None]:
    """Steps over `rows` rows at least, for answers of at most `answer` tokens to prompts of `prompt`.

    Recordings are kept with the model. How large one is follows from the arguments alone, whatever was recorded before:
    so do the last bits of what it computes.

    Args:
        like: a cache of the model, whatever is in it.

    Yields:
        Steps that wait for `put`; None, with a warning the first time, where the model's steps cannot be recorded.

    Raises:
        RuntimeError: the device has no room for them (`is_out_of_memory`).
    """
    room = -(-(prompt + answer + 1) // _ROOM) * _ROOM  # the last step is one that nobody asks for
    rows = 1 << (rows - 1).bit_length()  # so that batches of all sizes share few recordings
    with _looking:
        idle = _idle.setdefault(model, {}).setdefault(_stream_id(model.device), [])
        steps = next((kept for kept in idle if kept.serves(model, rows, room)), None)
        if steps:
            idle.remove(steps)
        else:
            del idle[: len(idle) + 1 - _KEPT]  # their memory is free before more is asked for
    if steps is None:
        try:
            steps = Recorded(model, like, rows, room)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            _refused.add(model)
            _log.warning("decoding step by step, which is slower: the steps cannot be recorded (%s)", error)
            yield None
            return
    steps.begin()
    yield steps
    idle.append(steps)


def has_idle(model: PathChatSegR1) -> bool:
    """Whether recordings that are not at work hold memory."""
    return any(_idle.get(model, {}).values())


def give_back(model: PathChatSegR1) -> None:
    """Give the memory of recordings that are not at work, and what torch keeps for itself, back to the device."""
    with _recording:  # older torch may not while anything is recorded
        _idle.pop(model, None)
        (torch.mps if model.device.type == "mps" else torch.cuda).empty_cache()


def _stream_id(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


class Recorded:
    """One recorded step over `rows` rows of at most `room` tokens. It does not hold the model itself."""

    def __init__(self, model: PathChatSegR1, like: DynamicCache, rows: int, room: int) -> None:
        device, tokenizer = model.device, model.tokenizer
        self._weights, self._rows, self._room = _places(model), rows, room
        self._held = _Held(like, rows, room)
        self._token = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = torch.zeros(rows, dtype=torch.long, device=device)
        self._never = torch.zeros(model.vlm.lm_head.weight.shape[0], device=device)  # (V,), added to the logits
        self._never[tokenizer.suppressed] = -torch.inf
        with _recording:
            self._replay = _record(lambda: self._step(model), device)

    def serves(self, model: PathChatSegR1, rows: int, room: int) -> bool:
        return (self._rows, self._room, self._weights) == (rows, room, _places(model))

    def begin(self) -> None:
        """Without the samples of before."""
        self._samples: list[int] = []  # of the first rows, one each
        self._ahead: Callable[[], Chosen] | None = None  # waits for what the step under way chooses

    def free(self, waiting: Collection[int], slots: int) -> list[int]:
        """The rows, of so many, that belong to none of these samples."""
        taken = {row for row, sample in enumerate(self._samples) if sample in waiting}
        return [row for row in range(min(slots, self._rows)) if row not in taken]

    def put(self, rows: Sequence[int], samples: Sequence[int], kept: Kept, tokens: Sequence[int]) -> None:
        """These samples go on in these rows, from what was kept of them, with these tokens.

        The first to come take the rows from 0 on, without a gap.
        """
        there, which = self._indices(rows), self._indices(samples)
        self._held.put(there, kept.keys_and_values[:, which])
        self._position[there] = kept.position
        self._token[there] = self._indices(tokens)
        of_rows = dict(enumerate(self._samples)) | dict(zip(rows, samples, strict=True))
        self._samples = [of_rows[row] for row in range(len(of_rows))]  # a new list: the step under way has the old one

    def _indices(self, numbers: Sequence[int]) -> torch.Tensor:
        device = self._token.device
        there = torch.tensor(numbers)
        # From pinned memory, or the copy would wait until the device has done what it was given before.
        return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there

    def choose(self) -> Chosen:
        """What the step before the one that the device is taking now has chosen."""
        ahead = self._ahead or self._launch()
        self._ahead = self._launch()
        return ahead()

    def _launch(self) -> Callable[[], Chosen]:
        last, written = self._replay()
        # Copies: the next replay writes where these are. That one is launched before they are waited for.
        last, written = last.clone(), written.to("cpu", non_blocking=True, copy=True)
        arrived = torch.cuda.current_stream(last.device).record_event() if last.is_cuda else None
        # Not a method of this object, which would hold itself: once dropped, its memory is free at once.
        return partial(_arrived, self._samples, last, written, arrived)

    def _step(self, model: PathChatSegR1) -> Read:
        language, rows = model.vlm.model.language_model, self._rows
        inputs = model.embed(self._token[:, None])  # (rows, 1, H)
        hidden = torch.arange(self._room, device=inputs.device) > self._held.place[:, None]  # (rows, room)
        mask = torch.zeros(hidden.shape, dtype=inputs.dtype, device=inputs.device).masked_fill(hidden, -torch.inf)
        last = language(
            inputs_embeds=inputs,
            position_ids=self._position[:, None].expand(3, rows, 1),
            attention_mask=dict.fromkeys(language.config.layer_types, mask[:, None, None]),
            past_key_values=self._held,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits = model.vlm.lm_head(last).float() + self._never
        token, probability = logits.argmax(-1), logits.softmax(-1)[:, model.tokenizer.seg]
        self._token.copy_(token)
        self._held.go_on()
        self._position += 1
        return last, torch.stack([token.double(), probability.double()])


def _arrived(
    samples: Sequence[int], last: torch.Tensor, written: torch.Tensor, event: torch.cuda.Event | None
) -> Chosen:
    if event:
        event.synchronize()
    token, probability = written[:, : len(samples)].tolist()
    return Chosen(samples, [int(t) for t in token], probability, last)


class Kept:
    """Keys and values of samples whose prompts were read, until they go on.

    keys_and_values: (2 · layers, samples, heads, tokens, dim). position: M-RoPE position of their next tokens.
    """

    def __init__(self, samples: int, position: torch.Tensor) -> None:
        self.position = position  # 0-dimensional
        self._samples = samples

    def keep(self, first: int, cache: DynamicCache) -> None:
        """Of the samples from `first` on."""
        of_layers = [values for layer in _keys_and_values(cache) for values in layer]
        if not first:
            _, heads, tokens, dim = of_layers[0].shape
            self.keys_and_values = of_layers[0].new_empty(len(of_layers), self._samples, heads, tokens, dim)
        for kept, values in zip(self.keys_and_values, of_layers, strict=True):
            kept[first : first + len(values)] = values


class _Held:
    """Keys and values (rows, heads, room, dim) of all layers, written at `place` (rows,): what the layers take for a
    cache. A row that nobody has taken, or whose sample is done, writes on to its last place."""

    def __init__(self, like: DynamicCache, rows: int, room: int) -> None:
        keys, _ = _keys_and_values(like)[0]
        _, heads, _, dim = keys.shape
        self._all = keys.new_zeros(2 * len(like.layers), rows, heads, room, dim)
        self._rows, self._last = torch.arange(rows, device=keys.device), room - 1
        self.place = torch.full((rows,), self._last, device=keys.device)

    def put(self, rows: torch.Tensor, given: torch.Tensor) -> None:
        """Keys and values (2 · layers, K, heads, tokens, dim) of K rows."""
        tokens = given.shape[3]
        self._all[:, rows, :, :tokens] = given
        self.place[rows] = tokens

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> KeysValues:
        held_keys, held_values = self._all[2 * layer], self._all[2 * layer + 1]
        held_keys[self._rows, :, self.place] = keys[:, :, 0]
        held_values[self._rows, :, self.place] = values[:, :, 0]
        return held_keys, held_values

    def go_on(self) -> None:
        self.place.add_(1).clamp_(max=self._last)


def _keys_and_values(cache: DynamicCache) -> list[KeysValues]:
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _record(step: Callable[[], Read], device: torch.device) -> Callable[[], Read]:
    """`step` as a graph; its replay gives what the last call of `step` gave, in the same memory."""
    aside = _aside(device, _stream_id(device))
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


@lru_cache  # torch has 32 streams, and gives them out again: a new one for each recording would be another's at last
def _aside(device: torch.device, stream: int) -> torch.cuda.Stream:
    """Where what is replayed on this stream is recorded."""
    return torch.cuda.Stream(device)


def _places(model: PathChatSegR1) -> tuple[int, ...]:
    """Where the weights lie that a step reads: a graph reads them there, whatever the model has by then."""
    vlm = model.vlm
    return tuple(weight.data_ptr() for part in (vlm.model.language_model, vlm.lm_head) for weight in part.parameters())
