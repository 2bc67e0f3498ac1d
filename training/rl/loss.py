"""The four losses of one step: L = L_pol + β L_KL + c_V L_V + λ_d L_diff, and the step size.

Each function returns a value per token or per mask; `mean_over` divides by the tokens of the whole batch, so that a
long answer counts by its length and gradients of parts of a batch add up to that of the batch (DAPO's divisor).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from wsiseg.training.losses import soft_dice
from wsiseg.training.rl.rewards import occupancy_overlap

_LARGEST_LOG_RATIO = 20.0  # e^20: beyond it, k3 is only a large number that overflows


def policy_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, advantage: torch.Tensor, clip: float
) -> torch.Tensor:
    """−min(ρÃ, clip(ρ, 1 − ε, 1 + ε)Ã) per token with ρ = exp(log π_θ − log π_old) (PPO, arXiv:1707.06347).

    >>> rise = torch.tensor([1.5]).log()  # the policy already does this half as often again
    >>> policy_loss(rise, torch.zeros(1), torch.ones(1), 0.2), policy_loss(rise, torch.zeros(1), -torch.ones(1), 0.2)
    (tensor([-1.2000]), tensor([1.5000]))
    """
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped(logp: torch.Tensor, old_logp: torch.Tensor, advantage: torch.Tensor, clip: float) -> torch.Tensor:
    """Whether the clip holds a token's gradient back, as 0 or 1."""
    ratio = (logp - old_logp).exp()
    return torch.where(advantage > 0, ratio > 1 + clip, (ratio < 1 - clip) & (advantage < 0)).float()


def kl_k3(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """KL(π_θ ‖ π_ref) per token by the k3 estimator: e^d − d − 1 with d = log π_ref − log π_θ; ≥ 0, unbiased.

    >>> kl_k3(torch.zeros(1), torch.zeros(1)).item()
    0.0
    """
    d = (reference_logp - logp).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return d.exp() - d - 1


def value_loss(values: torch.Tensor, old_values: torch.Tensor, target: torch.Tensor, clip: float) -> torch.Tensor:
    """½ max((V − y)², (V_clip − y)²) per token, V_clip within ± `clip` of the rollout's value.

    >>> value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2)  # ½ (0.2 − 1)²
    tensor([0.3200])
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - target).square(), (near - target).square())


def pathwise_loss(
    logits: torch.Tensor, target: torch.Tensor, *, soft: float, spatial: float, bce: float
) -> torch.Tensor:
    """−(w_soft R_soft + w_spatial R_spatial) + b · BCE per mask (N,), for answers with `<SEG>` and a target.

    R depends on θ through the sampled tokens and through h_SEG: ∇E R = E[R ∇log π] + E[∂R/∂M · ∂M/∂h_SEG · ∂h_SEG/∂θ].
    The first term is `policy_loss`, this is the second: two parts of one derivative, nothing is counted twice. The
    cross-entropy beside it is there because ∂R_soft/∂M vanishes where the mask is wrong and sure of it.
    """
    gained = soft * soft_dice(logits, target) + spatial * occupancy_overlap(logits, target)
    return bce * F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1) - gained


def mean_over(per_token: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Σ m·x / `tokens`; padding may hold anything, even what is not a number."""
    return torch.where(mask > 0, per_token, 0.0).sum() / tokens


def step_size(start: float, eta: float, step: int) -> float:
    """α_k = α₀ / (1 + ηk): Σα = ∞ and Σα² < ∞, Robbins and Monro's conditions (for SGD; AdamW is not covered).

    >>> round(step_size(1.0, 9 / 100, 100), 3)  # η = 9 / K ends at a tenth
    0.1
    """
    return start / (1 + eta * step)
