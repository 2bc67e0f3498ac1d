"""Tiles on their way to the device arrive as they are, and change no answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.small import small_model
from wsiseg.inference.answers import answers
from wsiseg.inference.devices import in_turn
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.journal import rounded
from wsiseg.inference.upload import upload
from wsiseg.slide import open_slide
from wsiseg.testing import synthetic_slide
from wsiseg.tiles import GridSpec, SlideTiles, plan_grid

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_on_a_cpu_nothing_is_copied() -> None:
    tiles = np.zeros((2, 4, 4, 3), np.uint8)
    assert upload(tiles, torch.device("cpu"))() is tiles


@pytest.mark.gpu
@cuda
def test_tiles_arrive_whole_while_the_device_is_busy_with_those_before() -> None:
    device, rng = torch.device("cuda:0"), np.random.default_rng(0)
    busy = torch.randn(4096, 4096, device=device)
    sent = [rng.integers(0, 255, (16, 256, 256, 3), np.uint8) for _ in range(12)]

    def ask(_: str, item: int) -> bool:
        for _ in range(20):
            busy.mul_(1e-3) @ busy
        there = on_their_way[item]()
        assert isinstance(there, torch.Tensor)
        return torch.equal(there.cpu(), torch.from_numpy(sent[item]))

    on_their_way = {}

    def items():  # type: ignore[no-untyped-def]
        for i, tiles in enumerate(sent):
            on_their_way[i] = upload(tiles.copy(), device)  # its memory, pinned or not, is free at once
            yield i

    assert list(in_turn(ask, ["cuda:0"], items(), ahead=True)) == [True] * len(sent)


@pytest.mark.gpu
@cuda
def test_a_slide_is_answered_as_without_uploads_and_as_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    synthetic_slide(tmp_path / "slide.tif", {}, l0_width=700, l0_height=600)
    model = PathChatSegmenter(small_model(seed=4, stops=1.5), name="small", fingerprint="one")
    with open_slide(tmp_path / "slide.tif") as slide:
        tiles = SlideTiles(slide, plan_grid(slide, GridSpec(0.5, 128, 32)))
        on_cpu = [mask for _, masks in answers(tiles, ["nuclei"], model, 3) for mask in masks["nuclei"]]
        model = PathChatSegmenter(model.model.to("cuda"), name="small", fingerprint="one")
        ahead = [mask for _, masks in answers(tiles, ["nuclei"], model, 3) for mask in masks["nuclei"]]
        plain = [rounded(mask) for _, batch in tiles.batches(3) for mask in model.segment_tiles(batch, "nuclei", 0.5)]
    assert any(mask.probability is not None for mask in plain)
    for a, b in zip(ahead, plain, strict=True):
        assert (a.reasoning, a.seg_probability) == (b.reasoning, b.seg_probability)
        np.testing.assert_array_equal(a.probability, b.probability)
    # Another device rounds otherwise, which may turn a word of random weights here and there.
    alike = [(a, b) for a, b in zip(ahead, on_cpu, strict=True) if a.reasoning == b.reasoning]
    assert len(alike) >= 0.9 * len(ahead)
    for a, b in alike:
        if a.probability is not None and b.probability is not None:
            np.testing.assert_allclose(a.probability, b.probability, rtol=0, atol=0.02)
