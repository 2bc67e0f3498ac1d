"""Masked autoencoding (He et al. 2022, arXiv:2111.06377) for encoders that keep the whole grid.

MAE drops masked patches from a plain ViT. Neither of our image encoders allows that: SAM's attention works in
windows with relative positions, and padding takes part in it; a convolution needs its neighbours. So the grid
stays whole and masked places are made blank (SimMIM, Xie et al. 2022, arXiv:2111.09886), which costs four times
the compute and gives exactly the forward pass of inference, windows, positions and all. Where the blank goes in
depends on the stem, so that nothing of a masked pixel leaks:

- patch embedding (SAM, DINOv2): patches do not overlap, so a learned token takes the place of each masked
  patch's embedding.
- convolutional stem: the first convolutions already look across patches, so the pixels themselves are set to
  the mean colour, in squares as large as the deepest stride (32 px): smaller holes would be filled in from their
  edges. Batch norms keep their running statistics: those of half-blank images are not those of whole ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from wsiseg.model.pathchat import PathChatSegR1

_EPSILON = 1e-3  # variance below which a patch is noise rather than shape
_CONV_PATCH = 32


def random_mask(count: int, side: int, ratio: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """(count, side, side) bool, True where masked; every image keeps the same number ⌊side²·(1 − ratio)⌋ ≥ 1."""
    keep = max(1, int(side * side * (1 - ratio)))
    order = torch.rand(count, side * side, device=device).argsort(1).argsort(1)
    return (order >= keep).reshape(count, side, side)


def shape_target(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, 3, H, W) with mean 0 and variance 1 in every patch and channel.

    MAE normalises all channels of a patch together; one by one, the target loses the stain as well and keeps the
    shape, so that features need not remember what the consistency term wants them to forget.
    """
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    variance, mean = torch.var_mean(cut, (3, 5), keepdim=True)
    return ((cut - mean) / (variance + _EPSILON).sqrt()).reshape(pixels.shape)


class MaskedEncoder(nn.Module):
    """Mask token and reconstruction head of one encoder; the encoder stays a part of the model.

    Args:
        features: normalised pixels (B, 3, H, W) → (B, width, H / cell, W / cell).
        patch: side of a masked square, in pixels, a multiple of `cell`.
        embedding: the patch embedding, with its width, where there is one; None for a convolutional stem.
    """

    def __init__(
        self,
        features: Callable[[torch.Tensor], torch.Tensor],
        width: int,
        cell: int,
        patch: int,
        embedding: tuple[nn.Module, int] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.cell, self.patch = features, cell, patch
        self.head = nn.Conv2d(width, 3 * cell * cell, 1)
        self._embedding = embedding[:1] if embedding else None  # in a tuple: not ours to register
        self.token = nn.Parameter(torch.randn(embedding[1]) * 0.02) if embedding else None

    def masked_features(self, pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`features` of `pixels` (B, 3, H, W) with the squares of `mask` (B, H / patch, W / patch) blank."""
        if self._embedding is None:
            return self.features(pixels.masked_fill(_enlarge(mask, self.patch)[:, None], 0.0))
        token = self.token
        assert token is not None

        def blank(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            return torch.where(mask.reshape(*output.shape[:-1], 1), token.to(output.dtype), output)

        handle = self._embedding[0].register_forward_hook(blank)
        try:
            return self.features(pixels)
        finally:
            handle.remove()

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """L_MAE of a batch, and z (B, width), the mean features of what is visible.

        L_MAE is the mean squared error of the head over masked pixels, against `shape_target`.
        """
        features = self.masked_features(pixels, mask)
        drawn = F.pixel_shuffle(self.head(features), self.cell).float()  # (B, 3, H, W)
        hidden = _enlarge(mask, self.patch)[:, None].float()
        error = (drawn - shape_target(pixels.float(), self.patch)) ** 2
        loss = (error.mean(1, keepdim=True) * hidden).sum() / hidden.sum().clamp(min=1)  # `mask_ratio: 0` hides nothing
        seen = 1 - _enlarge(mask, self.patch // self.cell)[:, None].float()
        return loss, (features.float() * seen).sum((2, 3)) / seen.sum((2, 3))


def image_branch(model: PathChatSegR1) -> MaskedEncoder:
    """For the MedSAM image encoder; its features are what the mask decoder gets."""
    encoder, config = model.image_encoder, model.config.image
    if config.stem == "patch":
        embedding = (encoder.vit.patch_embed, config.embed_dim)
        return MaskedEncoder(lambda pixels: encoder(pixels)[0], config.prompt_dim, 16, 16, embedding)
    return MaskedEncoder(lambda pixels: encoder(pixels)[0], config.prompt_dim, 8, _CONV_PATCH)


def pathology_branch(model: PathChatSegR1) -> MaskedEncoder:
    """For the pathology encoder; its features are the cells that the projector gets."""
    encoder, config = model.vlm.model.visual.encoder, model.config.pathology

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return encoder(pixels).transpose(1, 2).unflatten(2, (config.grid, config.grid))

    if config.kind == "dinov2":
        embedding = (encoder.patch_embed, config.width)
        return MaskedEncoder(features, config.width, config.patch_size, config.patch_size, embedding)
    return MaskedEncoder(features, config.width, config.patch_size, _CONV_PATCH)


def _enlarge(mask: torch.Tensor, times: int) -> torch.Tensor:
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)
