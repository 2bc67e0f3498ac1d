"""One pass over a step's answers: gradients group by group, so that memory is that of one prompt's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.rl.experience import Judged, Lesson
from wsiseg.training.rl.loss import clipped, kl_k3, mean_over, pathwise_loss, policy_loss, value_loss
from wsiseg.training.rl.policy import log_distribution, read_answers, read_prompt, seg_states
from wsiseg.training.rl.prompts import Views
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.value import ValueHead


class Learner(nn.Module):
    """What learns: the model, and the critic that is dropped afterwards."""

    def __init__(self, model: PathChatSegR1) -> None:
        super().__init__()
        self.model = model
        self.critic = ValueHead(model.config.text.hidden_size)

    @property
    def policy_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the language model: those that decide what is said, and when it stops."""
        return [p for p in self.model.vlm.parameters() if p.requires_grad]

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]


@dataclass(frozen=True)
class Shares:
    """What the batch as a whole divides by."""

    tokens: torch.Tensor
    masks: torch.Tensor  # answers with <SEG> whose structure is there


def shares(judged: Sequence[Judged], world: Any) -> Shares:
    """Means over the processes, so that the mean of their gradients is that of all of their tokens and masks."""
    tokens = torch.stack([j.group.mask.sum() for j in judged]).sum()
    masks = tokens.new_tensor(sum(int(j.group.asked.sum()) for j in judged if j.group.prompt.present))
    return Shares(*world.reduce(torch.stack([tokens, masks]), reduction="mean"))


def group_losses(
    learner: Learner, views: Views, judged: Judged, lesson: Lesson, recipe: RlRecipe, whole: Shares
) -> dict[str, torch.Tensor]:
    """A group's share of the losses L_pol, L_KL, L_V and L_diff (docs/so-grpo.md §4), and of the figures."""
    model, group = learner.model, judged.group
    prompt = read_prompt(model, group.prompt.tokens, views.image_tokens[group.prompt.view])
    states = read_answers(model, prompt, group.fed)
    everything = log_distribution(model, states[:, :-1], recipe)
    logp = everything.gather(2, group.ids[..., None])[..., 0]  # (G, T)
    values = learner.critic(states[:, :-1])

    def mean(per_token: torch.Tensor) -> torch.Tensor:
        return mean_over(per_token, group.mask, whole.tokens)

    pathwise = logp.new_zeros(())
    asked = group.asked
    if recipe.pathwise and group.prompt.present and asked.any():
        asking = seg_states(states, group.lengths, model.config.seg_state)[asked]
        asking = asking if recipe.pathwise_to_llm else asking.detach()
        target = group.prompt.target
        masks = views.masks(model, group.prompt.view, asking, target.shape)
        pathwise = pathwise_loss(
            masks,
            target.expand(len(masks), -1, -1),
            soft=recipe.reward_soft,
            spatial=recipe.reward_spatial,
            bce=recipe.pathwise_bce,
        ).sum()
        pathwise = pathwise / whole.masks
    parts = {
        "policy": mean(policy_loss(logp, group.logp, lesson.advantage, recipe.clip_ratio)),
        "kl": mean(kl_k3(logp, judged.reference_logp)),
        "value": mean(value_loss(values, judged.values, lesson.target, recipe.value_clip)),
        "pathwise": pathwise,
    }
    loss = (
        parts["policy"]
        + recipe.kl * parts["kl"]
        + recipe.value_weight * parts["value"]
        + recipe.pathwise * parts["pathwise"]
    )
    with torch.no_grad():
        figures = {
            "entropy": mean(-(everything.exp() * everything).sum(-1)),
            "clip_fraction": mean(clipped(logp, group.logp, lesson.advantage, recipe.clip_ratio)),
        }
    return {"loss": loss, **{name: part.detach() for name, part in parts.items()}, **figures}


def accumulate(
    learner: Learner,
    views: Views,
    judged: Sequence[Judged],
    taught: Sequence[Lesson],
    recipe: RlRecipe,
    world: Any,
) -> dict[str, float]:
    """Leave this process's part of the gradient in the parameters; returns losses and figures of the whole batch.

    `gradient_variance` is the trace of the covariance of the policy's gradient, estimated from the B groups of this
    process: with g = Σ_b g_b, B/(B − 1) · (Σ‖g_b‖² − ‖g‖²/B). One group alone has none.
    """
    whole, parameters = shares(judged, world), learner.trained_parameters
    policy = {id(parameter) for parameter in learner.policy_parameters}
    sums: dict[str, torch.Tensor] = {}
    squares = whole.tokens.new_zeros(())
    for one, lesson in zip(judged, taught, strict=True):
        values = group_losses(learner, views, one, lesson, recipe, whole)
        gradients = torch.autograd.grad(values["loss"], parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            if id(parameter) in policy:
                squares += gradient.square().sum()
        for name, value in values.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
    means = world.reduce(torch.stack(list(sums.values())), reduction="mean")
    figures = dict(zip(sums, means.tolist(), strict=True))
    total = sum(float(p.grad.square().sum()) for p in learner.policy_parameters if p.grad is not None)
    count = len(judged)
    if count > 1:
        figures["gradient_variance"] = count / (count - 1) * (float(squares) - total / count)
    return figures
