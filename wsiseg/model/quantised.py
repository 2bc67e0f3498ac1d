"""The language model's layers in 8 or 4 bits, for a card that its 16 bits do not fit, through bitsandbytes.

8 bits: LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339), columns with outliers stay in 16. 4 bits: NF4 with doubly
quantised scales (Dettmers et al. 2023, arXiv:2305.14314). Embeddings, head, encoders and mask decoder stay as they are:
`<SEG>` is a row of the first two, and the others are small.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from wsiseg.errors import ModelError
from wsiseg.model.config import Weights
from wsiseg.model.pathchat import PathChatSegR1

_OUTLIER = 6.0  # of LLM.int8(): activations beyond it are multiplied in 16 bits


def quantise_language(model: PathChatSegR1, weights: Weights, device: str) -> PathChatSegR1:
    """Move a model that is in the host's memory to `device`, the linear layers of its language model quantised.

    They are quantised one by one on their way: the device never holds them whole.

    Raises:
        ModelError: bitsandbytes is not installed, or does not know the device; there are no such weights.
        torch.OutOfMemoryError: the device is full.
    """
    if weights not in ("8bit", "4bit"):  # from a run.json, which anybody may have written
        raise ModelError(f"there are no {weights!r} weights, but full, 8bit and 4bit")
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ModelError(f'{weights} weights need bitsandbytes: pip install "wsiseg[quantised]"') from error
    # It says at every multiplication that 8 bits are made from 16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    language: Any = model.vlm.model.language_model
    for block in language.layers.modules():
        for name, layer in block.named_children():
            if isinstance(layer, nn.Linear):
                setattr(block, name, _quantised(bnb, layer, weights))
    try:
        return model.to(device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise ModelError(f"bitsandbytes cannot make {weights} weights on {device}: {error}") from error


def _quantised(bnb: Any, layer: nn.Linear, weights: Weights) -> nn.Module:
    with torch.device("meta"):  # the weights are those of `layer`
        shape = (layer.in_features, layer.out_features, layer.bias is not None)
        if weights == "8bit":
            new = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=_OUTLIER)
            new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            new = bnb.nn.Linear4bit(*shape, compute_dtype=layer.weight.dtype, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=new)
    new.bias = layer.bias
    return new
