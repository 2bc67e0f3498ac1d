"""Losses of supervised fine-tuning: λ_CoT · CE + λ_seg · (Dice + BCE) (the paper's SFT stage, DESIGN §4.3)."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def dice_loss(logits: torch.Tensor, target: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """1 − (2Σpg + s) / (Σp + Σg + s) per mask, averaged. `logits`, `target` (B, H, W); target in [0, 1]."""
    probability = logits.sigmoid().flatten(1)
    target = target.flatten(1)
    overlap = (probability * target).sum(1)
    return (1 - (2 * overlap + smooth) / (probability.sum(1) + target.sum(1) + smooth)).mean()


def mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice + BCE; no masks at all give 0 that still carries a gradient of 0."""
    if len(logits) == 0:
        return logits.sum()
    return dice_loss(logits, target) + F.binary_cross_entropy_with_logits(logits, target)


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the supervised tokens; 0 where there are none. `logits` (T, V), `labels` (T,)."""
    if len(labels) == 0:
        return logits.sum()
    return F.cross_entropy(logits.float(), labels)
