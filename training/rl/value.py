"""The critic: what an answer is still expected to be worth."""

from __future__ import annotations

import torch
from torch import nn

_CONSTANT = 1e-6  # a variance below this is rounding


class ValueHead(nn.Module):
    """V(s_t) = MLP(RMSNorm(h)), h the policy's last state before token t: (…, H) → (…).

    H → H/4 → 1 with SiLU. It starts as a constant, and its gradient stops at h: a critic that pulls on a small
    language model's states harms it.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        last = nn.Linear(hidden_size // 4, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.RMSNorm(hidden_size, eps=1e-6), nn.Linear(hidden_size, hidden_size // 4), nn.SiLU(), last
        )

    @torch.no_grad()
    def start_at(self, level: float) -> None:
        """Expect `level` everywhere, before it has learned anything: the mean of the first rewards.

        From 0 it first runs for that level, in the same direction for all states, and overshoots: with six questions
        a step it explained less than nothing (−0.4) for ten steps and −0.1 after thirty, from the level 0 and 0.05.
        """
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, level)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.layers(states.detach()).float()[..., 0]


def explained_variance(values: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float | None:
    """1 − Var(y − V) / Var(y) over the tokens: 1 is a perfect critic, 0 one that says the mean, below 0 a worse one.

    None where every answer earned the same: there is no variance to explain.

    >>> y = torch.tensor([0.0, 1.0, 2.0]); explained_variance(torch.tensor([0.5, 1.0, 1.5]), y, torch.ones(3))
    0.75
    >>> explained_variance(y, torch.ones(3), torch.ones(3))
    """
    y, error = target[mask > 0], (target - values)[mask > 0]
    variance = float(y.var(correction=0))
    return 1 - float(error.var(correction=0)) / variance if variance > _CONSTANT else None
