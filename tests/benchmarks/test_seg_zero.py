"""Seg-Zero's way: what the model writes about a mask is all that the decoder gets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.seg_zero import MOST, Box, SegZero, SegZeroModel, box_logits, boxes_of, read_boxes, write_boxes
from tests.model.small import small_model
from wsiseg.inference.decode import Completion
from wsiseg.training.batch import collate
from wsiseg.training.examples import Example, Question
from wsiseg.training.sft import SftRecipe


@given(st.integers(0, 10**6), st.integers(1, 7))
def test_written_and_read_again_the_boxes_hold_the_whole_mask(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 64), bool)
    for _ in range(parts):
        y, x, h, w = rng.integers(0, 60), rng.integers(0, 60), *rng.integers(1, 20, 2)
        mask[y : y + h, x : x + w] = True
    boxes = boxes_of(mask)
    assert 1 <= len(boxes) <= MOST
    assert read_boxes(f"One gland. {write_boxes(boxes)}") == boxes
    left = mask.copy()
    for x0, y0, x1, y1 in boxes:
        left[round(0.64 * y0 - 0.5) : round(0.64 * y1 + 0.5), round(0.64 * x0 - 0.5) : round(0.64 * x1 + 0.5)] = False
    assert not left.any()


@pytest.mark.parametrize("said", ["", "Boxes", "Boxes: 1 2 3.", "Boxes: 50 0 40 10, 0 0 10 500.", "5 5 10 10"])
def test_what_is_no_box_draws_nothing(said: str) -> None:
    assert read_boxes(said) == []


class _Says(SegZero):
    said: list[str]

    def _complete(
        self, tokens: torch.Tensor, query: str, mpp: float, said: Sequence[str], slots: int
    ) -> list[Completion]:
        ids = [self.model.tokenizer.encode_plain(text) for text in self.said]
        return [Completion(i, torch.randn(8) if n % 2 else None, 0.5, []) for n, i in enumerate(ids)]


def test_the_mask_is_that_of_the_boxes_in_the_text_and_of_nothing_else() -> None:
    model = small_model(seed=3)
    segmenter = _Says(model, name="small", fingerprint="one")
    segmenter.said = ["Boxes: 0 0 50 50.", "No glands.", "Boxes: 0 0 50 50, 60 60 100 100.", "Boxes: 0 0 50 50."]
    tiles = np.repeat(np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3), dtype=np.uint8), 4, axis=0)
    one, none, two, same = (a.probability for a in segmenter.segment_tiles(tiles, "glands", 0.5))
    assert none is None
    assert one is not None
    assert two is not None
    assert same is not None
    np.testing.assert_allclose(one, same, atol=1e-6)  # the state of `<SEG>` goes nowhere
    assert (two >= one - 1e-6).all()
    assert np.abs(two - one).max() > 1e-4
    boxes: list[list[Box]] = [[(0, 0, 50, 50)], [(10, 40, 60, 90)]]
    pixels = torch.from_numpy(tiles[:2]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        embedding, finer = model.image_encoder(model.image_pixels(pixels))
        both = box_logits(model, embedding, finer, boxes, (128, 128))
        alone = box_logits(model, embedding[1:], [f[1:] for f in finer], boxes[1:], (128, 128))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)  # boxes are paired with their own image
    np.testing.assert_allclose(both[0].sigmoid().numpy(), one, atol=2e-3)  # kept in half precision


def test_training_teaches_the_text_and_what_lies_in_a_box() -> None:
    model = small_model(seed=3)
    module = SegZeroModel(model, SftRecipe())
    mask = np.zeros((128, 128), bool)
    mask[10:40, 20:90] = True
    said = f"There is one gland. {write_boxes(boxes_of(mask))}"
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    asked = (Question("glands", said, mask), Question("necrosis", "Dark parts. No necrosis.", None))
    losses = module(collate([Example(image, 0.5, asked)], model.config, model.tokenizer))
    losses["loss"].backward()
    corner = model.mask_head.prompt_encoder.point_embeddings[2].weight.grad
    assert corner is not None
    assert corner.abs().max() > 0
    assert model.vlm.lm_head.weight.grad is not None
    assert all(p.grad is None for p in model.seg_adapter.parameters())
