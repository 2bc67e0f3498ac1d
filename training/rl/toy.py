"""A task whose best stop is known, on which the estimators of `advantage.py` and `loss.py` can be judged.

Four prompts c; at each of K = 16 steps the policy stops (`<SEG>`) with its own probability σ(θ_{c,t}) or goes on at a
cost. Stopping at t is worth q = σ(t − k_c), k_c ∈ {3, 6, 9, 12}; not stopping at all −0.5. The policy and the critic
are tables, so the expected return is exact and so is its optimum; nothing here is a statement about Dice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from wsiseg.training.rl.advantage import gae, group_advantage, mixed_advantage, reward_to_go
from wsiseg.training.rl.loss import policy_loss

STEPS = 16
RIPE = torch.tensor([3.0, 6.0, 9.0, 12.0])  # k_c
COST, TRUNCATED = 0.02, -0.5
GROUP = 8
QUALITY = torch.sigmoid(torch.arange(STEPS) - RIPE[:, None])  # (C, K): q of stopping at t


@dataclass(frozen=True)
class ToyRun:
    """Expected return as a share of the optimum, (seeds, updates + 1)."""

    share: torch.Tensor

    def updates_to(self, level: float = 0.95) -> torch.Tensor:
        """(seeds,) first update at which a seed has reached `level`; infinite where it never does."""
        reached = self.share >= level
        first = reached.float().argmax(1).float()
        return torch.where(reached.any(1), first, torch.inf)


def expected_return(logits: torch.Tensor) -> torch.Tensor:
    """Mean over the prompts of the exact expected return; (…, C, K) → (…)."""
    stop = torch.sigmoid(logits)
    value = torch.full_like(logits[..., 0], TRUNCATED)
    for t in reversed(range(STEPS)):
        value = stop[..., t] * QUALITY[:, t] + (1 - stop[..., t]) * (value - COST)
    return value.mean(-1)


def best_return() -> float:
    """The optimum: backward induction, stopping wherever that is worth more than going on."""
    value = torch.full((len(RIPE),), TRUNCATED)
    for t in reversed(range(STEPS)):
        value = torch.maximum(QUALITY[:, t], value - COST)
    return float(value.mean())


def learn(
    *,
    c: float,
    seeds: int = 24,
    updates: int = 500,
    start_logit: float = -3.5,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    rate: float = 2.0,
    critic_rate: float = 0.3,
    warmup: int = 30,
    lam: float = 0.95,
) -> ToyRun:
    """`seeds` policies at once, from one start, with the mixture weight `c` after `warmup` updates."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.full((seeds, len(RIPE), STEPS), start_logit, requires_grad=True)
    values = torch.zeros(seeds, len(RIPE), STEPS)
    steps = optimizer([logits], lr=rate)  # type: ignore[call-arg]
    shares = [expected_return(logits.detach())]
    for update in range(updates):
        rewards, mask, stopped = _rollout(logits.detach(), generator)  # (seeds, C, G, K)
        seen = values[:, :, None].expand_as(rewards)
        weight = 0.0 if update < warmup else c
        advantage = torch.vmap(lambda r, v, m, weight=weight: _advantage(r, v, m, weight, lam))(rewards, seen, mask)
        going, stopping = F.logsigmoid(-logits)[:, :, None], F.logsigmoid(logits)[:, :, None]
        logp = torch.where(stopped, stopping, going)
        per_token = policy_loss(logp, logp.detach(), advantage, 0.2) * mask
        loss = per_token.sum() / (len(RIPE) * GROUP)  # mean over the answers; the sum over seeds keeps them apart
        steps.zero_grad()
        loss.backward()
        steps.step()
        error = ((reward_to_go(rewards, mask, gamma=1.0) - seen) * mask).sum(2)
        values = values + critic_rate * error / mask.sum(2).clamp(min=1)
        shares.append(expected_return(logits.detach()))
    return ToyRun(torch.stack(shares, 1) / best_return())


def _rollout(
    logits: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, mask (own steps) and where each answer stopped, all (seeds, C, G, K)."""
    shape = (*logits.shape[:2], GROUP, STEPS)
    wants = torch.rand(shape, generator=generator) < torch.sigmoid(logits)[:, :, None]
    before = wants.cumsum(-1) - wants.long()  # stops before this step
    mask = (before == 0).float()
    stopped = wants & (before == 0)
    rewards = torch.where(stopped, QUALITY[:, None], -COST) * mask
    rewards[..., -1] += TRUNCATED * mask[..., -1] * (~stopped[..., -1]).float()
    return rewards, mask, stopped


def _advantage(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, c: float, lam: float
) -> torch.Tensor:
    group = group_advantage((rewards * mask).sum(-1))
    return mixed_advantage(group, gae(rewards, values, mask, gamma=1.0, lam=lam), mask, c=c)
