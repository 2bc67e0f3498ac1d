"""How much better an action was than expected: GAE per token, one advantage per answer, and their mixture.

All sums run over an answer's own tokens: `mask` (…, T) is 1 there and 0 on padding, which must not enter the
recursion (with a critic that says something on padding, an unmasked one is wrong for real tokens).
"""

from __future__ import annotations

import torch

STD_FLOOR = 1e-4  # of the group's standard deviation, as in TRL
RMS_FLOOR = 0.1  # of the batch scale of GAE: a critic that is right everywhere leaves only noise to be scaled


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> torch.Tensor:
    """Generalised advantage estimation (Schulman 2016, arXiv:1506.02438), (…, T) → (…, T).

    δ_t = r_t + γ V(s_{t+1}) m_{t+1} − V(s_t);   Â_t = m_t (δ_t + γλ Â_{t+1})

    >>> r, v, m = torch.tensor([0.0, 1.0, 9.0]), torch.tensor([0.5, 0.5, 7.0]), torch.tensor([1.0, 1.0, 0.0])
    >>> gae(r, v, m, gamma=1.0, lam=0.5)  # δ = (0, 0.5); the third token is padding
    tensor([0.2500, 0.5000, 0.0000])
    """
    advantage, value_after = torch.zeros_like(rewards[..., 0]), torch.zeros_like(values[..., 0])
    columns: list[torch.Tensor] = []
    for t in reversed(range(rewards.shape[-1])):
        delta = rewards[..., t] + gamma * value_after - values[..., t]
        advantage = mask[..., t] * (delta + gamma * lam * advantage)
        value_after = mask[..., t] * values[..., t]
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=-1)


def reward_to_go(rewards: torch.Tensor, mask: torch.Tensor, *, gamma: float) -> torch.Tensor:
    """G_t = Σ_{l≥t} γ^{l−t} r_l, (…, T): the critic's target, and GAE's λ = 1 without a critic.

    The target is Monte Carlo because with λ = 0.95 a reward at the end reaches a token 200 steps before it with
    weight 3.5e-5: an untrained critic would learn from itself.

    >>> reward_to_go(torch.tensor([-0.1, 1.0]), torch.ones(2), gamma=1.0)
    tensor([0.9000, 1.0000])
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)


def group_advantage(total: torch.Tensor) -> torch.Tensor:
    """GRPO (arXiv:2402.03300): (R − mean_g R) / (std_g R + 1e-4) of G answers to one prompt, (…, G) → (…, G).

    A group whose answers are all worth the same has advantage 0: it teaches nothing about the policy.

    >>> group_advantage(torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    tensor([[-0.7070,  0.7070],
            [ 0.0000,  0.0000]])
    """
    centred = total - total.mean(-1, keepdim=True)
    return centred / (total.std(-1, keepdim=True) + STD_FLOOR)


def mixed_advantage(
    group: torch.Tensor, per_token: torch.Tensor, mask: torch.Tensor, *, c: float
) -> torch.Tensor:
    """Ã = m · ((1 − c) A_group + c Â / max(rms(Â), 0.1)): c = 0 is standard GRPO, c = 1 pure GAE.

    `group` (B, G) counts for every token of an answer; `per_token`, `mask` and the result are (B, G, T). The root
    mean square is taken over the batch's tokens, never over a group: Â is not centred there, and the deviation of
    a group of like answers is near 0.

    Why a mixture: GAE alone gains much with plain gradient descent and little or nothing with Adam, which
    normalises the size of its small but short-sighted gradient; c = 0.6 was never slower than GRPO
    (docs/so-grpo.md §6).

    >>> group, per_token, ones = torch.tensor([[1.0]]), torch.tensor([[[2.0, -2.0]]]), torch.ones(1, 1, 2)
    >>> mixed_advantage(group, per_token, ones, c=0.5)  # rms 2
    tensor([[[1., 0.]]])
    """
    rms = ((per_token.square() * mask).sum() / mask.sum()).sqrt()
    return mask * ((1 - c) * group[..., None] + c * per_token / rms.clamp(min=RMS_FLOOR))
