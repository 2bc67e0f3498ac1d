"""PathChat-SegR1: one class for every size.

    tile ─ pathology encoder ─ projector ─┐
    query ────────────────────────────────┴─ Qwen2.5-VL text model ─ reasoning … <SEG>
                                                                          │ state of <SEG>
    tile ─ MedSAM image encoder ─────────── mask decoder ─ mask       Seg-Adapter
                                                 └────────────────────────┘

The model writes a reasoning chain and emits `<SEG>` itself; the last hidden state at `<SEG>` prompts the mask
decoder (research/lineage.md §1.4). Without `<SEG>` there is no mask, and the MedSAM encoder never runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from wsiseg.model.config import PathChatConfig
from wsiseg.model.prompt import PromptTokenizer, PromptTokens
from wsiseg.model.sam import STRIDE, ImageEncoder, MaskHead
from wsiseg.model.vision import PathologyTower


class SegAdapter(nn.Module):
    """State of `<SEG>` (B, H) → prompt tokens of the mask decoder (B, n, D)."""

    def __init__(self, hidden_size: int, prompt_dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.layers = nn.Sequential(
            nn.RMSNorm(hidden_size, eps=1e-6),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, prompt_dim * tokens),
        )

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.layers(state).unflatten(-1, (self.tokens, -1))


class PathChatSegR1(nn.Module):
    """The whole model. `tokenizer` must hold `<SEG>` and the chat tokens."""

    def __init__(self, config: PathChatConfig, tokenizer: PromptTokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.vlm = Qwen2_5_VLForConditionalGeneration(_qwen_config(config, tokenizer))
        self.vlm.model.visual = PathologyTower(config.pathology, config.text.hidden_size)
        self.seg_adapter = SegAdapter(config.text.hidden_size, config.image.prompt_dim, config.seg_tokens)
        self.image_encoder = ImageEncoder(config.image)
        self.mask_head = MaskHead(config.image)

    @property
    def device(self) -> torch.device:
        return self.vlm.lm_head.weight.device

    def prompt(self, query: str, mpp: float | None, shots: int = 0) -> PromptTokens:
        """The turn that asks `query` of an image at `mpp` µm per pixel (None: unknown), after `shots` examples."""
        return chat_prompt(self.config, self.tokenizer, query, mpp, shots)

    def pathology_pixels(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles (B, 3, H, W) in [0, 1] → input of the pathology encoder (B, 3, S, S)."""
        side = self.config.pathology.image_size
        pixels = _normalise(_resize(tiles, side, side), self.config.pathology.mean, self.config.pathology.std)
        return pixels.to(self.vlm.model.visual.dtype)

    def image_pixels(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles (B, 3, H, W) in [0, 1] → input of the MedSAM encoder."""
        side = self.config.image.image_size
        height, width = (side or -(-length // STRIDE) * STRIDE for length in tiles.shape[-2:])
        pixels = _normalise(_resize(tiles, height, width), self.config.image.mean, self.config.image.std)
        return pixels.to(next(self.image_encoder.parameters()).dtype)

    def image_tokens(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles (B, 3, H, W) in [0, 1] → what the language model sees of them (B, n, H)."""
        output = self.vlm.model.visual(self.pathology_pixels(tiles))
        return output.pooler_output.reshape(len(tiles), -1, self.config.text.hidden_size)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.vlm.model.language_model.embed_tokens(ids)

    def positions(self, *texts: int) -> torch.Tensor:
        """M-RoPE positions (3, L) of texts of these lengths, with an image between each two."""
        return interleaved_positions(texts, self.config.pathology.grid // 2).to(self.device)

    def masks(self, tiles: torch.Tensor, seg_states: torch.Tensor) -> torch.Tensor:
        """Tiles (B, 3, H, W) in [0, 1] and states of their `<SEG>` (B, hidden) → logits (B, H, W)."""
        embedding, finer = self.image_encoder(self.image_pixels(tiles))
        return self.decode_masks(embedding, finer, seg_states, tiles.shape[-2:])

    def decode_masks(
        self,
        embedding: torch.Tensor,
        finer: list[torch.Tensor],
        seg_states: torch.Tensor,
        size: tuple[int, int] | torch.Size,
    ) -> torch.Tensor:
        """The part of `masks` behind the MedSAM encoder, for features that are kept."""
        low = self.mask_head(embedding, finer, self.seg_adapter(seg_states))
        return F.interpolate(low[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def chat_prompt(
    config: PathChatConfig, tokenizer: PromptTokenizer, query: str, mpp: float | None, shots: int = 0
) -> PromptTokens:
    """`PathChatSegR1.prompt` where there is no model, only its configuration."""
    return tokenizer.prompt(config.read(query), mpp, config.system_prompt, shots)


def tiles_to_tensor(tiles: np.ndarray | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [0, 1]; one scale for all tiles, so neighbours agree."""
    if isinstance(tiles, np.ndarray):
        # torch warns of arrays that cannot be written, though it is only read here: those alone are copied.
        tiles = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
    return tiles.to(device).permute(0, 3, 1, 2).float().div_(255.0)


def layout(device: torch.device) -> torch.memory_format:
    """How pixels and weights of convolutions are to lie in memory.

    Channels last, which is quicker on a CPU. Not on CUDA: there cuDNN plans every new batch size anew, for seconds in
    that layout (docs/speed.md).
    """
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


def interleaved_positions(texts: Sequence[int], side: int) -> torch.Tensor:
    """Positions (3, L) of texts of these lengths, with an image of side × side merged cells between each two.

    Qwen2-VL §2.1 (arXiv:2409.12191): text counts on all three axes; an image that starts at c has t = c,
    h = c + row, w = c + column; the text behind it goes on at c + side. Equal to transformers'
    `get_rope_index` (test), but explicit: without `mm_token_type_ids` that one silently falls back to 1-D.
    """
    cell = torch.arange(side)
    image = torch.stack([torch.zeros(side * side, dtype=torch.long), cell.repeat_interleave(side), cell.repeat(side)])
    parts, at = [], 0
    for i, length in enumerate(texts):
        if i:
            parts.append(at + image)
            at += side
        parts.append((at + torch.arange(length)).expand(3, -1))
        at += length
    return torch.cat(parts, dim=1)


def _resize(tiles: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if tiles.shape[-2:] == (height, width):
        return tiles
    return F.interpolate(tiles, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


def _normalise(tiles: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    pixels = (tiles - _channels(mean, tiles.dtype, tiles.device)) / _channels(std, tiles.dtype, tiles.device)
    return pixels.contiguous(memory_format=layout(tiles.device))


@lru_cache
@torch.inference_mode(False)  # for training, too
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(C, 1, 1), copied to the device once: every copy waits until the device has done what it was given before."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def _qwen_config(config: PathChatConfig, tokenizer: PromptTokenizer) -> Qwen2_5_VLConfig:
    text = config.text
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "bos_token_id": None,
            "eos_token_id": tokenizer.end,
            "tie_word_embeddings": text.tie_word_embeddings,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": list(text.mrope_section),
            },
        },
        # The stock tower is replaced; only its merge size matters, so build the smallest one there is.
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 1, "intermediate_size": 16, "out_hidden_size": 16},
        image_token_id=tokenizer.image_pad,
        vision_start_token_id=tokenizer.vision_start,
        vision_end_token_id=tokenizer.vision_end,
        tie_word_embeddings=text.tie_word_embeddings,
    )
