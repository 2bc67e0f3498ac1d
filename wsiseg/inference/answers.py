"""All queries on all tiles of one source, batch by batch: each tile is read once, and looked at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import cycle
from numbers import Integral, Real

import numpy as np
import torch

from wsiseg.errors import ModelError
from wsiseg.inference import IMAGE_TOKENS, Encoder, Segmenter, TileMask
from wsiseg.inference.devices import copies_of, in_turn
from wsiseg.inference.journal import Journal, rounded
from wsiseg.inference.upload import upload
from wsiseg.tiles import Embeddings, TileSource, TileStore
from wsiseg.tiles.stream import batch_indices

_BATCH = 16
CUDA_BATCH = 64  # a step of decoding reads all weights, and takes hardly longer over 64 rows than over 16
_SHARES = 8  # of the tiles of a slide, for as many as four devices that each work on two

_Batch = tuple[np.ndarray, Callable[[], np.ndarray | torch.Tensor]]  # indices (B,), and how to get their tiles
# Indices (B,) int64 of tiles in their grid, and for each query an answer for each of them.
Answers = Generator[tuple[np.ndarray, dict[str, list[TileMask]]], None, None]


def answers(
    source: TileSource,
    queries: Sequence[str],
    model: Segmenter,
    batch_size: int | None = None,
    *,
    cache: bool = True,
    journal: Journal | None = None,
) -> Answers:
    """Ask `model` every query about every tile, in grid order; probabilities are in steps of 1/255.

    `batch_size` tiles are asked about at once; None is 64 on a CUDA device and 16 elsewhere.

    What an `Encoder` sees of the tiles of a store is kept there, unless `cache` is False, and used again by later
    calls. Answers that are in `journal` are taken from there, and new ones added.

    Raises:
        SlideError, StoreError: tiles cannot be read.
        QueryError: the model cannot use a query.
        ModelError: its answers are not what a `Segmenter` gives.
    """
    first = 0
    for indices, masks in journal.replay() if journal else ():
        yield indices, masks
        first = int(indices[-1]) + 1
    with closing(_new_answers(source, queries, model, batch_size, first, cache)) as new:
        for indices, masks in new:
            size = source.grid.spec.tile_size
            masks = {q: _sound(of_query, len(indices), size, model.name) for q, of_query in masks.items()}
            if journal:
                journal.add(indices, masks)
            yield indices, masks


def _new_answers(
    source: TileSource, queries: Sequence[str], model: Segmenter, batch_size: int | None, first: int, cache: bool
) -> Answers:
    """About the tiles from `first` on."""
    mpp, size = source.grid.spec.mpp, source.grid.spec.tile_size
    encoders: list[Encoder] = [copy for copy in copies_of(model) if isinstance(copy, Encoder)]
    if not encoders:
        with closing(source.batches(batch_size or _BATCH, first)) as read:
            for indices, tiles in read:
                yield indices, {q: model.segment_tiles(tiles, q, mpp) for q in queries}
        return
    kept = None
    if isinstance(source, TileStore) and cache:
        kept = Embeddings(source, model_name=model.name, model_fingerprint=model.fingerprint)

    devices = [copy.device for copy in encoders]
    count, kind = len(source.grid), devices[0].type
    at_once = batch_size or (CUDA_BATCH if kind == "cuda" else _BATCH)
    if kind == "cpu":
        at_once = _shared_evenly(count, at_once, len(encoders))
    together = _together(count, at_once, encoders[0].refills)

    def ask(copy: Encoder, batch: _Batch) -> tuple[np.ndarray, dict[str, list[TileMask]]]:
        indices, read = batch
        features = copy.look(indices, (size, size), read, kept)
        return indices, {q: copy.answer(features, q, mpp, at_once) for q in queries}

    try:
        with (
            closing(_batches(source, kept, together, first, devices)) as batches,
            closing(in_turn(ask, encoders, batches, ahead=kind == "cuda")) as answered,
        ):
            for indices, masks in answered:
                yield indices, masks
                if kept is not None:
                    kept.flush(before=int(indices[-1]) + 1)
    finally:
        if kept is not None:  # also what an interrupted run has paid for
            kept.flush()


def _shared_evenly(tiles: int, batch_size: int, at_once: int) -> int:
    """Tiles in a batch, at most `batch_size`, so that those who take one at once have as many to do."""
    rounds = max(1, math.ceil(tiles / (batch_size * at_once)))
    return max(1, math.ceil(tiles / (rounds * at_once)))


def _together(tiles: int, batch_size: int, refills: int) -> int:
    """Tiles that are given together: up to so many batches, where that leaves enough for all that work at once.

    Whole ones, or the last steps would be taken over a few tiles. It does not depend on how many work: nor do the
    answers, to the last bit.
    """
    return batch_size * min(refills, max(1, tiles // (_SHARES * batch_size)))


def _sound(answers: Iterable[TileMask], tiles: int, size: int, model: str) -> list[TileMask]:
    """Answers to so many tiles, rounded. ModelError if they cannot be: a model of the user's own may give 0 to 255."""
    found = list(answers) if isinstance(answers, Iterable) else [answers]
    if wrong := next(filter(None, map(_wrong_with, found)), ""):
        raise ModelError(f"the model {model} gives {wrong}")
    if len(found) != tiles:
        raise ModelError(f"the model {model} gives {len(found)} answers about {tiles} tiles")
    for mask in found:
        probability = mask.probability
        if probability is None:
            continue
        if probability.shape != (size, size):
            raise ModelError(f"the model {model} gives masks of {probability.shape} about tiles of {size} x {size} px")
        low, high = probability.min(), probability.max()
        if not -0.001 <= low <= high <= 1.001:  # nor is NaN
            raise ModelError(f"the model {model} gives probabilities from {low:g} to {high:g}, which must be 0 to 1")
    # Numbers of Python's own, which JSON takes.
    plain = (replace(m, seg_position=None if m.seg_position is None else int(m.seg_position)) for m in found)
    return [rounded(mask) for mask in plain]


def _wrong_with(answer: object) -> str:
    """Which part of an answer is of a wrong type; "" if none is."""
    if not isinstance(answer, TileMask):
        return f"a {type(answer).__name__} as answer, which must be a TileMask"
    mask, position = answer.probability, answer.seg_position
    for is_right, name, value, wanted in (
        (mask is None or (isinstance(mask, np.ndarray) and mask.dtype.kind in "biuf"), "probability", mask, "an array"),
        (isinstance(answer.reasoning, str), "reasoning", answer.reasoning, "a text"),
        (isinstance(answer.seg_probability, Real), "seg_probability", answer.seg_probability, "a number"),
        (position is None or isinstance(position, Integral), "seg_position", position, "a whole number"),
    ):
        if not is_right:
            return f"a {type(value).__name__} as {name}, which must be {wanted}"
    return ""


def _batches(
    source: TileSource, kept: Embeddings | None, size: int, first: int, devices: Sequence[torch.device]
) -> Generator[_Batch, None, None]:
    """Indices, and how to get their tiles: those of a store that every tile was seen of are read only if needed.

    Others are on their way to the device whose turn it is (see `in_turn`).
    """
    if kept is not None and isinstance(source, TileStore) and kept.has_all(IMAGE_TOKENS):
        for indices in batch_indices(len(source.grid), size, first):
            yield indices, partial(source.tiles, indices)
        return
    with closing(source.batches(size, first)) as batches:
        for (indices, tiles), device in zip(batches, cycle(devices), strict=False):
            yield indices, upload(tiles, device)
