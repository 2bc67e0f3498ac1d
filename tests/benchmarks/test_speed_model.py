"""The peers of the speed table answer as wsiseg does: what is compared is time alone."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.speed import model as benchmark
from tests.model.small import small_paper_config
from wsiseg.inference import TileMask, engine
from wsiseg.inference.decode import Completion
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model import load_model
from wsiseg.model.config import paper


def noise(side: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def segmenter() -> PathChatSegmenter:
    model = load_model(device="cpu")
    assert isinstance(model, PathChatSegmenter)
    return model


@pytest.fixture(scope="module")
def tiles(segmenter: PathChatSegmenter, sample_slide: Path) -> np.ndarray:
    return benchmark.some_tiles(sample_slide, segmenter, 6)


@pytest.mark.parametrize(("batch", "always_look"), [(1, True), (4, False)])
def test_the_peers_give_the_same_answers(
    segmenter: PathChatSegmenter, tiles: np.ndarray, batch: int, always_look: bool
) -> None:
    expected = benchmark.ours(segmenter, tiles, 0.5)
    found = benchmark.generated(segmenter, tiles, benchmark.QUERY, 0.5, batch, always_look=always_look)
    assert 0 < sum(answer.probability is not None for answer in expected) < len(tiles)
    assert_same(found, expected)


def test_the_peers_encoders_see_as_many_tiles_at_once_as_ours(segmenter: PathChatSegmenter, tiles: np.ndarray) -> None:
    seen: list[int] = []
    with ExitStack() as stack:
        for encoder in (segmenter.model.vlm.model.visual, segmenter.model.image_encoder):
            hook = encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
            stack.callback(hook.remove)
        benchmark.ours(segmenter, tiles, 0.5)
        of_ours = seen.copy()
        seen.clear()
        benchmark.generated(segmenter, tiles, benchmark.QUERY, 0.5, len(tiles))
    assert max(of_ours) < len(tiles)  # a CPU is given a few at a time
    assert seen == of_ours


def assert_same(found: list[TileMask], expected: list[TileMask]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.reasoning == b.reasoning
        assert (a.probability is None) == (b.probability is None)
        if a.probability is not None:  # our features are kept in half precision
            np.testing.assert_allclose(a.probability, b.probability, atol=5e-3)


def test_random_weights_of_the_papers_parts_answer_and_have_a_floor() -> None:
    small = small_paper_config()
    config = dataclasses.replace(small, text=dataclasses.replace(small.text, vocab_size=2048))
    segmenter = PathChatSegmenter(
        benchmark.random_model(config, "cpu", torch.float32), name="random", fingerprint="random"
    )
    tiles = noise(128, 3)
    assert len(benchmark.ours(segmenter, tiles, 0.5)) == 3
    floor = benchmark.floor_of(segmenter, tiles, 0.5)
    assert all(seconds >= 0 for seconds in floor.values())
    assert floor["all parts"] > 0


def test_with_random_weights_all_ways_stop_where_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(small_paper_config(), max_new_tokens=64)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=2048))
    model = benchmark.random_model(config, "cpu", torch.float32)
    segmenter = PathChatSegmenter(model, name="random", fingerprint="random")
    tiles, tokenizer = noise(128, 5), model.tokenizer
    chains = benchmark.some_chains(tokenizer, len(tiles))
    assert len({len(chain) for chain in chains}) == len(chains)
    monkeypatch.setattr(benchmark, "BATCH", 3)
    written: list[list[int]] = []
    decode = engine.decode

    def kept(*arguments: Any, **keys: Any) -> list[Completion]:
        completions = decode(*arguments, **keys)
        written.extend(completion.ids for completion in completions)
        return completions

    monkeypatch.setattr(engine, "decode", kept)
    ours = benchmark.ours(segmenter, tiles, 0.5, chains)
    assert [(len(ids), ids[-1]) for ids in written] == [(len(chain), chain[-1]) for chain in chains]
    for batch in (1, 3):
        found = benchmark.generated(segmenter, tiles, benchmark.QUERY, 0.5, batch, chains=chains)
        assert [answer.reasoning for answer in found] == [tokenizer.decode(chain) for chain in chains]
        assert [a.probability is None for a in found] == [a.probability is None for a in ours]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_papers_size_is_built_on_the_device_and_answers() -> None:
    config = dataclasses.replace(paper(), max_new_tokens=8)
    segmenter = PathChatSegmenter(benchmark.random_model(config, "cuda"), name="random", fingerprint="random")
    tiles = noise(512, 2)
    assert len(benchmark.ours(segmenter, tiles, 0.5)) == 2
    assert len(benchmark.generated(segmenter, tiles, benchmark.QUERY, 0.5, 1, always_look=True)) == 2
