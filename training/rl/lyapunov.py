"""How far each saved policy was from the final one: the paper's "Lyapunov function", measured.

    V(θ_k) = E_{s ~ π_final} KL(π_final(· | s) ‖ π_k(· | s))

It is no Lyapunov function of this algorithm (docs/so-grpo.md §6): whether it falls is seen, not proved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from wsiseg.model.folder import save_tensors
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.rl.policy import log_distribution, read_answers, read_prompt
from wsiseg.training.rl.prompts import Views
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.rollout import Group

_log = logging.getLogger(__name__)


def save_policy(model: PathChatSegR1, folder: Path, step: int) -> None:
    """Keep what learns of the language model, as `folder`/step-000025.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    learning = {name: p.detach() for name, p in model.vlm.named_parameters() if p.requires_grad}
    save_tensors(learning, folder / f"step-{step:06d}.safetensors")


def forget_policies(folder: Path, after: int) -> None:
    """Remove those of later steps: of a run that ended before its checkpoint, perhaps of another one."""
    for path in folder.glob("step-*.safetensors"):
        if int(path.stem.removeprefix("step-")) > after:
            path.unlink()


@torch.no_grad()
def kl_to_final(
    model: PathChatSegR1, folder: Path, groups: Sequence[Group], views: Views, recipe: RlRecipe
) -> dict[int, float]:
    """V of every policy in `folder`, by step, in nats per token; `groups` are answers of `model`, the final one.

    The divergence at a state is exact (over the vocabulary); the states are those of the final policy's answers.
    """
    final = [_distribution(model, group, views, recipe) for group in groups]
    distances = {}
    for path in sorted(folder.glob("step-*.safetensors")):
        try:
            policy = load_file(path)
        except (OSError, SafetensorError) as error:
            _log.warning("%s is left out: it is damaged (%s)", path, error)
            continue
        with _swapped(model, policy):
            total = tokens = 0.0
            for group, p in zip(groups, final, strict=True):
                q = _distribution(model, group, views, recipe)
                total += float(((p.exp() * (p - q)).sum(-1) * group.mask).sum())
                tokens += float(group.mask.sum())
        distances[int(path.stem.removeprefix("step-"))] = total / tokens
    return distances


def _distribution(model: PathChatSegR1, group: Group, views: Views, recipe: RlRecipe) -> torch.Tensor:
    prompt = read_prompt(model, group.prompt.tokens, views.image_tokens[group.prompt.view])
    return log_distribution(model, read_answers(model, prompt, group.fed)[:, :-1], recipe)


@contextmanager
def _swapped(model: PathChatSegR1, policy: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside the block the model speaks with these weights."""
    own = {name: p for name, p in model.vlm.named_parameters() if p.requires_grad}
    kept = {name: p.detach().clone() for name, p in own.items()}
    try:
        for name, value in policy.items():
            own[name].copy_(value)
        torch.clear_autocast_cache()  # in bf16 it holds the weights of the policy before
        yield
    finally:
        for name, value in kept.items():
            own[name].copy_(value)
        torch.clear_autocast_cache()
