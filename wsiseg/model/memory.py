"""How much memory a model takes, computed from its configuration: nothing is loaded, nothing is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from wsiseg.model import BUNDLED, model_folder
from wsiseg.model.config import PathChatConfig
from wsiseg.model.folder import TOKENIZER, build_model, stored_keys
from wsiseg.model.prompt import PromptTokenizer

PARTS = {
    "vlm.model.visual.encoder.": "pathology encoder",
    "vlm.model.visual.projector.": "projector",
    "vlm.model.language_model.": "language model",
    "vlm.lm_head.": "language model",
    "seg_adapter.": "Seg-Adapter",
    "image_encoder.": "image encoder",
    "mask_head.": "mask decoder",
}
# Bits for each weight of the language model's layers, scales included: int8 with one float32 for each row (which
# is next to nothing), NF4 in blocks of 64 with doubly quantised scales (Dettmers et al. 2023, arXiv:2305.14314 §3).
WEIGHT_BITS = {"bf16": 16.0, "8-bit": 8.01, "4-bit": 4.0 + 8 / 64 + 32 / (64 * 256)}
_PROMPT_TOKENS = 128  # system turn and query, generous
RUNTIME_BYTES = 1e9  # CUDA context, kernels, fragmentation; rule of thumb


@dataclass(frozen=True)
class Memory:
    """Bytes on the device while `batch` tiles are answered at once."""

    weights: float
    kv_cache: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.kv_cache + self.activations + RUNTIME_BYTES


def part_of(weight: str, otherwise: str = "") -> str:
    """The part of the model that a weight of this name belongs to, or `otherwise`."""
    return next((part for prefix, part in PARTS.items() if weight.startswith(prefix)), otherwise)


def parameter_counts(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Numbers stored for each part, by the names of a model folder."""
    counts: dict[str, int] = {}
    for key, value in tensors.items():
        part = part_of(key)
        counts[part] = counts.get(part, 0) + value.numel()
    return counts


def memory(config: PathChatConfig, *, precision: str, batch: int) -> Memory:
    """Memory for inference.

    Weights: the layers of the language model at `precision` (a key of WEIGHT_BITS), all else, embedding tables
    included, in 16 bits. Keys and values in 16 bits, for prompt, image and the longest answer. Activations: the
    larger of the first pass over the prompt (gate and up of the MLP) and SAM's global attention as
    segment_anything computes it, which holds three (heads, N, N) tables for each image at its peak.
    """
    with torch.device("meta"):
        tokenizer = PromptTokenizer.from_file(model_folder(BUNDLED) / TOKENIZER)
        tensors = stored_keys(build_model(config, tokenizer))
    layers = sum(v.numel() for key, v in tensors.items() if ".language_model.layers." in key)
    others = sum(v.numel() for v in tensors.values()) - layers
    text, image = config.text, config.image
    head_width = text.hidden_size // text.num_attention_heads
    prompt = _PROMPT_TOKENS + config.image_token_count
    kv_of_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_width * 2
    cells = math.prod([(image.image_size or config.tile_size) // 16] * 2)
    attention = 3 * image.num_heads * cells**2 * 2 if image.global_attn_indexes else 0
    return Memory(
        weights=layers * WEIGHT_BITS[precision] / 8 + 2 * others,
        kv_cache=batch * (prompt + config.max_new_tokens) * kv_of_token,
        activations=batch * max(prompt * 2 * text.intermediate_size * 2, attention),
    )
