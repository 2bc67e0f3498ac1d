"""Losses of supervised fine-tuning: λ_CoT · CE + λ_seg · (Dice + BCE) (the paper's SFT stage, DESIGN §4.3)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

SMOOTH_PX = 1.0  # ε of the overlaps, in pixels


def soft_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(2Σpg + ε) / (Σp + Σg + ε), p = σ(logits), target g in [0, 1], ε = 1 px. (N, H, W) → (N,).

    For an absent target (Σg = 0) this is ε / (Σp + ε): the more is outlined, the less it is worth.

    >>> p = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    >>> round(soft_dice(torch.logit(p, eps=1e-9), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])).item(), 4)  # 2 / 3
    0.6667
    """
    p, g = logits.sigmoid().flatten(1), target.flatten(1)
    return (2 * (p * g).sum(1) + SMOOTH_PX) / (p.sum(1) + g.sum(1) + SMOOTH_PX)


def mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice + BCE; no masks at all give 0 that still carries a gradient of 0."""
    if len(logits) == 0:
        return logits.sum()
    return (1 - soft_dice(logits, target)).mean() + F.binary_cross_entropy_with_logits(logits, target)


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the supervised tokens; 0 where there are none. `logits` (T, V), `labels` (T,)."""
    if len(labels) == 0:
        return logits.sum()
    return F.cross_entropy(logits.float(), labels)
