"""The eye of the language model: a pathology encoder and a projector in the place of Qwen2.5-VL's own tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from wsiseg.errors import ModelError
from wsiseg.model.config import PathologyEncoderConfig
from wsiseg.model.dinov2 import Dinov2
from wsiseg.model.efficientnet import CHANNELS, EfficientNetLite0


class _ConvEncoder(nn.Module):
    """Strides 16 and 32 of EfficientNet-Lite0, side by side at stride 16."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pyramid = self.backbone(pixels)
        coarse = F.interpolate(pyramid[32], scale_factor=2.0, mode="nearest")
        return torch.cat([pyramid[16], coarse], dim=1).flatten(2).transpose(1, 2)  # (B, cells, 432)


class PathologyTower(nn.Module):
    """What transformers expects of `model.model.visual`: raster-ordered cells, merged 2 × 2, at LLM width.

    Contract (transformers 5.23, `Qwen2_5_VLModel.get_image_features`): attributes `dtype` and
    `spatial_merge_size`, and a forward that returns `pooler_output` (sum of merged cells, H).
    """

    spatial_merge_size = 2

    def __init__(self, config: PathologyEncoderConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        if config.kind == "efficientnet":
            self.encoder: nn.Module = _ConvEncoder()
            if config.width != CHANNELS[16] + CHANNELS[32] or config.patch_size != 16:
                raise ModelError("the efficientnet pathology encoder has 432 channels at stride 16")
        elif config.kind == "dinov2":
            try:
                self.encoder = Dinov2(
                    width=config.width, patch_size=config.patch_size, grid=config.grid, **config.arguments
                )
            except TypeError as error:  # of foreign origin: names that it does not have, or not all that it needs
                raise ModelError(f"pathology.arguments make no dinov2 encoder: {error}") from error
        else:
            raise ModelError(f"pathology encoder must be 'efficientnet' or 'dinov2', not {config.kind!r}")
        self.projector = make_projector(config.width, hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.projector.parameters()).dtype

    def forward(
        self, pixel_values: torch.Tensor, grid_thw: torch.Tensor | None = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """`pixel_values` (B, 3, S, S), normalised; `grid_thw` is implied by the fixed size."""
        cells = self.encoder(pixel_values)  # (B, g·g, D)
        batch, _cells, width = cells.shape
        g = self.config.grid // 2
        merged = cells.reshape(batch, g, 2, g, 2, width).permute(0, 1, 3, 2, 4, 5).reshape(batch, g * g, 4 * width)
        return BaseModelOutputWithPooling(last_hidden_state=cells, pooler_output=self.projector(merged).flatten(0, 1))


def make_projector(width: int, hidden_size: int) -> nn.Sequential:
    """2 × 2 cells of the encoder (4 · width) → one token of the language model, as Qwen's own merger does."""
    return nn.Sequential(
        nn.LayerNorm(4 * width), nn.Linear(4 * width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
    )
