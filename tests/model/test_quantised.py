"""The language model in 8 and 4 bits: smaller, and the same answers but for what rounding moves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wsiseg.errors import ModelError
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model import load_model
from wsiseg.model.memory import WEIGHT_BITS
from wsiseg.model.quantised import Weights
from wsiseg.slide import open_slide


def layers_of(model: PathChatSegmenter) -> Any:
    language: Any = model.model.vlm.model.language_model
    return language.layers


def stored_bytes(layers: nn.Module) -> int:
    """Weights and their scales."""
    total = sum(p.numel() * p.element_size() for p in layers.parameters())
    for module in layers.modules():
        weight = getattr(module, "weight", None)
        if (scales := getattr(weight, "SCB", None)) is not None:
            total += scales.numel() * scales.element_size()
        if (state := getattr(weight, "quant_state", None)) is not None:
            for numbers in (state.absmax, state.state2.absmax):
                total += numbers.numel() * numbers.element_size()
    return total


@pytest.fixture(scope="module")
def tiles(sample_slide: Path) -> np.ndarray:
    with open_slide(sample_slide) as slide:
        return slide.read_at_mpp(500, 900, 512, 256, 0.5).reshape(256, 2, 256, 3).swapaxes(0, 1)


@pytest.mark.parametrize("weights", ["8bit", "4bit"])
def test_the_bundled_model_finds_the_same(weights: Weights, tiles: np.ndarray) -> None:
    whole, small = load_model(device="cpu"), load_model(device="cpu", weights=weights)
    assert isinstance(whole, PathChatSegmenter)
    assert isinstance(small, PathChatSegmenter)
    assert small.fingerprint == f"{whole.fingerprint}-{weights}"
    assert not any(type(module) is nn.Linear for module in layers_of(small).modules())
    assert small.model.vlm.lm_head.weight.dtype == torch.float32

    in_16_bits = stored_bytes(layers_of(whole)) / 2
    bits = WEIGHT_BITS[weights.replace("bit", "-bit")]
    assert stored_bytes(layers_of(small)) / in_16_bits == pytest.approx(bits / 16, rel=0.05)

    for query, there in (("outline the nuclei", True), ("outline the glomeruli", False)):
        for a, b in zip(*(m.segment_tiles(tiles, query, 0.5) for m in (whole, small)), strict=True):
            if not there:
                assert (a.probability, b.probability) == (None, None)
                continue
            assert a.probability is not None
            assert b.probability is not None
            drawn, again = a.probability > 0.5, b.probability > 0.5
            assert drawn.sum() > 500
            assert 2 * (drawn & again).sum() / (drawn.sum() + again.sum()) > 0.97


def test_other_weights_are_not_taken_for_4_bits() -> None:
    with pytest.raises(ModelError, match="no '2bit' weights, but full, 8bit and 4bit"):
        load_model(device="cpu", weights="2bit")  # type: ignore[arg-type]


def test_bitsandbytes_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r'4bit weights need bitsandbytes: pip install "wsiseg\[quantised\]"'):
        load_model(device="cpu", weights="4bit")
