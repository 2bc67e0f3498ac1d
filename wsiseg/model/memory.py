"""How much memory a model takes, computed from its configuration: nothing is loaded, nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from wsiseg.inference import REFILLS
from wsiseg.inference.engine import most_at_once
from wsiseg.model import BUNDLED, model_folder
from wsiseg.model.config import ImageEncoderConfig, PathChatConfig
from wsiseg.model.folder import TOKENIZER, build_model, stored_keys
from wsiseg.model.prompt import PromptTokenizer
from wsiseg.model.sam import STRIDE

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
    """Bytes on the device while one batch of tiles is answered.

    A second, at work beside it, takes as much again but for the weights.
    """

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
    """Memory for inference on a CUDA device.

    Weights: the layers of the language model at `precision` (a key of WEIGHT_BITS), all else, embedding tables
    included, in 16 bits. Keys and values in 16 bits, for prompt, image and the longest answer, and for the prompts that
    wait for a place, whose steps are recorded (so not of quantised weights). Activations: what is seen of all these
    tiles, and the larger of the first pass over the prompts (gate and up of the MLP) and SAM's global attention.
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
    together = REFILLS * batch if precision == "bf16" and batch > 1 else batch
    waiting = together * prompt if precision == "bf16" else 0
    side = (image.image_size or config.tile_size) // STRIDE
    seen = 2 * (config.image_token_count * text.hidden_size + image.prompt_dim * side**2) + 3 * config.tile_size**2
    encoded = min(batch, most_at_once(STRIDE * side)) * _global_attention(image, side)
    return Memory(
        weights=layers * WEIGHT_BITS[precision] / 8 + 2 * others,
        kv_cache=(batch * (prompt + config.max_new_tokens) + waiting) * kv_of_token,
        activations=together * seen + max(batch * prompt * 2 * text.intermediate_size * 2, encoded),
    )


def _global_attention(image: ImageEncoderConfig, side: int) -> float:
    """Bytes of one image, in 16 bits, at the peak of `wsiseg.model.sam` on CUDA: queries, keys, values and the result
    with the channels that stand for the bias, and what they are made of (queries, keys and values, the bias of rows and
    of columns, also scaled, the features and those before the block)."""
    if not image.global_attn_indexes:
        return 0
    width, places = image.embed_dim, image.num_heads * side
    return 2.0 * side**2 * (4 * (width + 2 * places) + 3 * width + 4 * places + 2 * width)
