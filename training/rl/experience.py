"""A step's answers with all that the update needs to know of them, computed once, without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.reference import Reference
from wsiseg.training.rl.advantage import gae, group_advantage, mixed_advantage, reward_to_go
from wsiseg.training.rl.policy import log_distribution, read_answers, read_prompt, seg_states
from wsiseg.training.rl.probes import stop_regret
from wsiseg.training.rl.prompts import Prompt, Views
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.rewards import total_reward
from wsiseg.training.rl.rollout import Earned, Group, earn, roll_out, token_rewards
from wsiseg.training.rl.value import ValueHead


@dataclass(frozen=True)
class Judged:
    """A group with what it earned and what the critic and the reference policy thought of it."""

    group: Group
    earned: Earned
    total: torch.Tensor  # (G,) R
    values: torch.Tensor  # (G, T) V_old(s_t)
    reference_logp: torch.Tensor  # (G, T)
    regret: torch.Tensor | None  # (G,) stop regret, where it was measured


@dataclass(frozen=True)
class Lesson:
    """What a group's tokens are pushed towards, (G, T) each."""

    advantage: torch.Tensor  # Ã
    target: torch.Tensor  # y, the critic's


@torch.no_grad()
def judge(
    model: PathChatSegR1,
    critic: ValueHead,
    reference: Reference,
    views: Views,
    group: Group,
    recipe: RlRecipe,
    *,
    probe: bool,
) -> Judged:
    """Read a group's answers once with the policy and once with the reference; draw and score their masks."""
    tokens, image = group.prompt.tokens, views.image_tokens[group.prompt.view]
    prompt = read_prompt(model, tokens, image)
    states = read_answers(model, prompt, group.fed)  # (G, T + 1, H)
    asking = seg_states(states, group.lengths, model.config.seg_state)[group.asked]
    size = group.prompt.target.shape
    masks = views.masks(model, group.prompt.view, asking, size) if len(asking) else asking.new_zeros(0, *size)
    earned = earn(group, masks, recipe, model.config.max_new_tokens)
    with reference.unchanged() as policy:
        theirs = read_answers(policy, read_prompt(policy, tokens, image), group.fed)
        reference_logp = log_probabilities(policy, theirs, group, recipe)
    regret = None
    if probe and group.prompt.present:
        regret = stop_regret(model, prompt, views, group, earned.parts.soft, recipe.probes)
    total = total_reward(earned.parts, recipe.reward_weights)
    return Judged(group, earned, total, critic(states[:, :-1]), reference_logp, regret)


def log_probabilities(model: PathChatSegR1, states: torch.Tensor, group: Group, recipe: RlRecipe) -> torch.Tensor:
    """log π(a_t | s_t) of the drawn tokens, (G, T)."""
    return log_distribution(model, states[:, :-1], recipe).gather(2, group.ids[..., None])[..., 0]


def lessons(judged: Sequence[Judged], recipe: RlRecipe, c: float) -> list[Lesson]:
    """Advantages and targets of a step's groups, scaled together."""
    longest = max(j.group.ids.shape[1] for j in judged)

    def stacked(parts: list[torch.Tensor]) -> torch.Tensor:  # (B, G, T), padded with 0
        return torch.stack([F.pad(part, (0, longest - part.shape[1])) for part in parts])

    mask = stacked([j.group.mask for j in judged])
    rewards = token_rewards(torch.stack([j.total for j in judged]), mask, recipe.step_cost)
    returns = reward_to_go(rewards, mask, gamma=recipe.gamma)
    group = group_advantage(rewards.sum(-1))
    if recipe.per_token == "gae":
        values = stacked([j.values for j in judged])
        per_token = gae(rewards, values, mask, gamma=recipe.gamma, lam=recipe.gae_lambda)
    else:
        per_token = mask * (returns - rewards.sum(-1).mean(-1)[:, None, None])
    advantage = mixed_advantage(group, per_token, mask, c=c)
    widths = [j.group.ids.shape[1] for j in judged]
    return [Lesson(a[:, :width], y[:, :width]) for a, y, width in zip(advantage, returns, widths, strict=True)]


def gather(
    model: PathChatSegR1,
    critic: ValueHead,
    reference: Reference,
    prompts: Sequence[Prompt],
    views: Views,
    recipe: RlRecipe,
    generator: torch.Generator | None,
    *,
    probe: bool = False,
) -> list[Judged]:
    """Answers to every prompt, judged. Without a generator: the one greedy answer to each."""
    groups = [roll_out(model, prompt, views, recipe, generator) for prompt in prompts]
    return [judge(model, critic, reference, views, group, recipe, probe=probe) for group in groups]
