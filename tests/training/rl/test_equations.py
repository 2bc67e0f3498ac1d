"""Rewards, advantages and losses against other ways to the same number (lineage.md §3.9)."""

from __future__ import annotations

import pytest
import torch

from wsiseg.training.losses import soft_dice
from wsiseg.training.rl.advantage import gae, group_advantage, mixed_advantage, reward_to_go
from wsiseg.training.rl.loss import clipped, kl_k3, mean_over, pathwise_loss, policy_loss
from wsiseg.training.rl.rewards import (
    Ending,
    emission_reward,
    format_reward,
    length_reward,
    occupancy_overlap,
    silence_reward,
)


def answers(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and mask (6, 20) of answers of 3 to 20 tokens; padding is zero."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(20) < torch.tensor([3, 20, 7, 11, 19, 5])[:, None]).double()
    rewards, values = (torch.randn(6, 20, generator=generator, dtype=torch.double) * mask for _ in "rv")
    return rewards, values, mask


def test_gae_is_the_sum_of_discounted_errors() -> None:
    rewards, values, mask = answers()
    gamma, lam = 0.97, 0.9
    for row in range(6):
        length = int(mask[row].sum())
        after = [*values[row, 1:length].tolist(), 0.0]
        delta = [float(rewards[row, t]) + gamma * after[t] - float(values[row, t]) for t in range(length)]
        expected = [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)]
        found = gae(rewards[row], values[row], mask[row], gamma=gamma, lam=lam)
        torch.testing.assert_close(found[:length], torch.tensor(expected, dtype=torch.double))
        assert not found[length:].any()


def test_a_critic_that_talks_on_padding_changes_nothing() -> None:
    rewards, values, mask = answers()
    noisy = values + 7 * (1 - mask)
    assert torch.equal(
        gae(rewards, values, mask, gamma=1.0, lam=0.95), gae(rewards, noisy, mask, gamma=1.0, lam=0.95)
    )


def test_without_critic_and_with_one_reward_at_the_end_gae_is_grpo() -> None:
    _, _, mask = answers()
    total = torch.tensor([0.1, 0.9, 0.4, 0.4, -1.0, 0.3], dtype=torch.double)
    last = torch.zeros_like(mask)
    last[torch.arange(6), mask.sum(1).long() - 1] = 1
    advantage = gae(total[:, None] * last, torch.zeros_like(mask), mask, gamma=1.0, lam=1.0)
    normalised = (advantage - mask * total.mean()) / (total.std() + 1e-4)
    torch.testing.assert_close(normalised, mask * group_advantage(total)[:, None])
    mixed = mixed_advantage(group_advantage(total)[None], advantage[None], mask[None], c=0.0)
    torch.testing.assert_close(mixed[0], mask * group_advantage(total)[:, None])


def test_the_two_ends_of_the_mixture() -> None:
    rewards, values, mask = answers()
    advantage = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    group = group_advantage(rewards.sum(1))
    pure = mixed_advantage(group[None], advantage[None], mask[None], c=1.0)[0]
    assert (pure[mask > 0].square().mean().sqrt() - 1).abs() < 1e-9
    torch.testing.assert_close(pure / pure[0, 0], advantage / advantage[0, 0])
    alike = group_advantage(torch.full((1, 6), 0.3))  # nothing to choose between: only GAE speaks
    assert alike.abs().max() < 1e-3


def test_the_clipped_loss_is_that_of_trl_and_padding_is_left_out() -> None:
    generator = torch.Generator().manual_seed(1)
    logp, old, advantage = (torch.randn(4, 9, generator=generator) for _ in range(3))
    mask = (torch.arange(9) < torch.tensor([9, 4, 1, 6])[:, None]).float()
    total, held = 0.0, 0.0
    for i, j in torch.nonzero(mask).tolist():  # TRL's GRPO loss ("dapo"), written out
        ratio = float((logp[i, j] - old[i, j]).exp())
        a = float(advantage[i, j])
        total -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        held += (ratio > 1.2 and a > 0) or (ratio < 0.8 and a < 0)
    found = mean_over(policy_loss(logp, old, advantage, 0.2), mask, mask.sum())
    assert float(found) == pytest.approx(total / 20, rel=1e-5)
    assert float((clipped(logp, old, advantage, 0.2) * mask).sum()) == held
    broken = torch.where(mask > 0, policy_loss(logp, old, advantage, 0.2), torch.nan)
    assert float(mean_over(broken, mask, mask.sum())) == pytest.approx(float(found))


def test_k3_is_never_negative_and_is_the_divergence_on_average() -> None:
    generator = torch.Generator().manual_seed(2)
    policy, reference = (torch.randn(12, generator=generator).log_softmax(0) for _ in "pr")
    estimates = kl_k3(policy, reference)
    assert (estimates >= 0).all()
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * estimates).sum(), exact)


def test_gradients_of_the_overlaps_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 16, 16, generator=generator, dtype=torch.double, requires_grad=True)
    target = (torch.rand(2, 16, 16, generator=generator) > 0.6).double()
    assert torch.autograd.gradcheck(lambda x: soft_dice(x, target), logits, atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: occupancy_overlap(x, target), logits, atol=1e-6)
    # dR/dp = (2gD − 2Σpg − ε) / D², times p(1 − p)
    p = logits.detach().sigmoid()
    size = (p.sum((1, 2)) + target.sum((1, 2)) + 1)[:, None, None]
    shared = (p * target).sum((1, 2))[:, None, None]
    by_hand = (2 * target * size - 2 * shared - 1) / size**2 * p * (1 - p)
    (found,) = torch.autograd.grad(soft_dice(logits, target).sum(), logits)
    torch.testing.assert_close(found, by_hand)


def test_the_cross_entropy_keeps_a_wrong_and_certain_mask_teachable() -> None:
    target = torch.zeros(1, 64, 64)
    target[:, :20, :20] = 1
    sizes = {}
    for bce in (0.0, 0.5):
        logits = torch.full((1, 64, 64), -8.0, requires_grad=True)
        (gradient,) = torch.autograd.grad(pathwise_loss(logits, target, soft=1, spatial=0.5, bce=bce).sum(), logits)
        sizes[bce] = float(gradient[:, :20, :20].abs().sum())
    assert sizes[0.5] > 5 * sizes[0.0]


def test_silence_is_right_only_where_nothing_is_there() -> None:
    worth = {(e, there): silence_reward(e, there) for e in (Ending.SILENT, Ending.CUT) for there in (True, False)}
    assert [key for key, value in worth.items() if value] == [(Ending.SILENT, False)]
    nothing = torch.zeros(1, 256, 256)
    assert float(soft_dice(torch.full((1, 256, 256), -8.0), nothing)) < 0.05  # an empty mask is no silence
    assert float(occupancy_overlap(torch.full((1, 256, 256), -8.0), nothing)) < 0.05
    assert length_reward(0, Ending.CUT, low=1, high=2, limit=3) == -1


def test_the_target_of_the_critic_is_what_was_still_to_come() -> None:
    rewards, _, mask = answers()
    reversed_sums = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(reward_to_go(rewards, mask, gamma=1.0), reversed_sums)


def test_the_pathwise_loss_is_that_of_its_parts() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 16, 16, generator=generator)
    target = (torch.rand(3, 16, 16, generator=generator) > 0.6).float()
    bce = -(target * logits.sigmoid().log() + (1 - target) * (-logits).sigmoid().log()).mean((1, 2))
    by_hand = 0.5 * bce - soft_dice(logits, target) - 0.25 * occupancy_overlap(logits, target)
    torch.testing.assert_close(pathwise_loss(logits, target, soft=1.0, spatial=0.25, bce=0.5), by_hand)


def test_k3_is_itself_up_to_far_policies_and_finite_beyond() -> None:
    apart = torch.tensor([-5.0, 5.0])
    torch.testing.assert_close(kl_k3(torch.zeros(2), apart), apart.exp() - apart - 1)
    assert torch.isfinite(kl_k3(torch.zeros(1), torch.tensor([200.0]))).all()


def test_occupancy_is_told_by_eight_cells_a_side() -> None:
    logits, target = torch.full((1, 16, 16), -50.0), torch.zeros(1, 16, 16)
    logits[0, 0, 0], target[0, 3, 3] = 50, 1  # cells of 2 x 2 pixels: not in the same one
    assert occupancy_overlap(logits, target).item() == pytest.approx(1 / 3)


def test_what_a_chain_is_paid_for() -> None:
    for text in ("No gland is seen here.", "Two glands on the left."):
        assert format_reward(text, Ending.CUT) == 0
    assert emission_reward("Two on the left. They are dark. They are many.", Ending.SEG) == -0.1  # said long before
    assert format_reward("A nodule. It is annotated.", Ending.SEG) == 1  # no refusal: "no" and "not" are words
