"""What a few marked examples say about every other pixel: prototypes, and the log-odds that follow from them.

The features of the mask decoder are pooled inside and outside the examples' masks, at each of its strides
(masked average pooling: PANet, arXiv:1908.06391 §3.2; PerSAM, arXiv:2305.03048 §3.1). Both works compare by
cosine. Here the two prototypes are taken for what they are, the means of two classes with the examples' own
spread, so that the comparison is a log-odds and needs no temperature:

    log p(in | f) / p(out | f) = (μ₁ − μ₀)ᵀ Σ⁻¹ (f − (μ₁ + μ₀) / 2)

for classes that are equally likely beforehand (Fisher 1936). Features that vary within the classes count little,
and examples that do not tell the classes apart give a log-odds near 0. On training images it beat the cosine
(docs/one-shot.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

# Of Σ, towards a multiple of the identity: an example has about as many cells as a feature has channels.
_SHRINKAGE = 0.1


@dataclass(frozen=True)
class Prototypes:
    """One linear log-odds for each stride of the decoder's features.

    Attributes:
        directions: (D,) each, Σ⁻¹(μ₁ − μ₀). middles: (D,) each, (μ₁ + μ₀) / 2.
    """

    directions: list[torch.Tensor]
    middles: list[torch.Tensor]

    def log_odds(self, features: Sequence[torch.Tensor], size: tuple[int, int] | torch.Size) -> torch.Tensor:
        """Features (B, D, h, w) of each stride → log-odds (B, *size), summed over strides."""
        total = features[0].new_zeros((len(features[0]), *size), dtype=torch.float32)
        with torch.autocast(total.device.type, enabled=False):
            for feature, direction, middle in zip(features, self.directions, self.middles, strict=True):
                odds = torch.einsum("bchw,c->bhw", feature.float() - middle[:, None, None], direction)[:, None]
                total += F.interpolate(odds, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
        return total


def prototypes(features: Sequence[torch.Tensor], masks: torch.Tensor) -> Prototypes:
    """Learn from K examples together.

    Args:
        features: (K, D, h, w) of each stride.
        masks: (K, H, W) bool or in [0, 1]; neither empty nor full, all K taken together.

    Raises:
        ValueError: there is nothing inside the masks, or nothing outside.
    """
    if not 0 < masks.float().mean() < 1:
        raise ValueError("the masks of the examples must hold something, and leave something out")
    with torch.autocast(masks.device.type, enabled=False):  # nothing here bears half precision
        pairs = [_discriminant(feature.float(), masks) for feature in features]
    return Prototypes([direction for direction, _ in pairs], [middle for _, middle in pairs])


def _discriminant(feature: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inside = F.interpolate(masks[:, None].to(feature), size=feature.shape[-2:], mode="area").flatten()  # (N,)
    cells = feature.movedim(1, -1).flatten(0, 2)  # (N, D)
    outside = 1 - inside
    mean_in, mean_out = inside @ cells / inside.sum(), outside @ cells / outside.sum()  # (D,) each
    off_in, off_out = cells - mean_in, cells - mean_out
    spread = ((off_in * inside[:, None]).T @ off_in + (off_out * outside[:, None]).T @ off_out) / len(cells)  # (D, D)
    variance = spread.diagonal().mean() + 1e-6
    identity = torch.eye(len(spread), device=spread.device)
    spread = (1 - _SHRINKAGE) * spread + _SHRINKAGE * variance * identity
    return torch.linalg.solve(spread, mean_in - mean_out), (mean_in + mean_out) / 2
