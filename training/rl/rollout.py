"""Answers that the policy draws itself, and what they earn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wsiseg.inference.decode import Sampling, decode, encode_prefix
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.losses import soft_dice
from wsiseg.training.rl.prompts import Prompt, Views
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.rewards import (
    Ending,
    RewardParts,
    emission_reward,
    format_reward,
    length_reward,
    occupancy_overlap,
    silence_reward,
)


@dataclass(frozen=True)
class Group:
    """G answers to one prompt, padded on the right to T tokens."""

    prompt: Prompt
    ids: torch.Tensor  # (G, T) what was drawn
    fed: torch.Tensor  # (G, T) what is read: `ids`, with <SEG> last in answers that have a mask
    mask: torch.Tensor  # (G, T) float, 1 on tokens of the answer
    logp: torch.Tensor  # (G, T) log-probabilities under the policy that drew them
    endings: list[Ending]
    texts: list[str]

    @property
    def lengths(self) -> torch.Tensor:
        """(G,) tokens, with the last one, `<SEG>` or the end."""
        return self.mask.sum(1).long()

    @property
    def asked(self) -> torch.Tensor:
        """(G,) bool: answers with a mask."""
        return torch.tensor([ending is Ending.SEG for ending in self.endings], device=self.mask.device)


@dataclass(frozen=True)
class Earned:
    """What G answers earned. `hard_dice` thresholds the masks at ½; silence counts 1 where it is right, else 0."""

    parts: RewardParts
    hard_dice: torch.Tensor  # (G,)


def roll_out(
    model: PathChatSegR1, prompt: Prompt, views: Views, recipe: RlRecipe, generator: torch.Generator | None
) -> Group:
    """Draw a group of answers; its prompt is read once. Without a generator, the one greedy answer.

    An answer ends at `<SEG>`, at the end token, or is cut off at the model's `max_new_tokens`. With `fixed_seg`
    (LISA) `<SEG>` is read in the place of its last token, whatever that was.
    """
    tokenizer = model.tokenizer
    sampling = Sampling(recipe.answers, generator, recipe.temperature) if generator else None
    tokens = views.image_tokens[prompt.view : prompt.view + 1]
    completions = decode(model, tokens, encode_prefix(model, prompt.tokens), sampling)
    group, longest = len(completions), max(len(completion.ids) for completion in completions)
    ids = torch.full((group, longest), tokenizer.end)
    mask, logp = torch.zeros(group, longest), torch.zeros(group, longest)
    endings = []
    for row, completion in enumerate(completions):
        count = len(completion.ids)
        ids[row, :count] = torch.tensor(completion.ids)
        mask[row, :count] = 1
        logp[row, : len(completion.log_probabilities)] = torch.tensor(completion.log_probabilities)
        endings.append(_ending(completion.ids[-1], tokenizer.seg, tokenizer.end, recipe.fixed_seg))
    fed = ids.clone()
    for row, ending in enumerate(endings):
        if ending is Ending.SEG:
            fed[row, len(completions[row].ids) - 1] = tokenizer.seg
    texts = [tokenizer.decode(completion.ids) for completion in completions]
    device = model.device
    return Group(prompt, ids.to(device), fed.to(device), mask.to(device), logp.to(device), endings, texts)


def _ending(last: int, seg: int, end: int, fixed_seg: bool) -> Ending:
    if fixed_seg or last == seg:
        return Ending.SEG
    return Ending.SILENT if last == end else Ending.CUT


@torch.no_grad()
def earn(group: Group, mask_logits: torch.Tensor, recipe: RlRecipe, limit: int) -> Earned:
    """The rewards of a group; `mask_logits` (A, S, S) are those of its `asked` answers, `limit` is T_max."""
    prompt, asked, device = group.prompt, group.asked, group.mask.device
    quiet = torch.tensor([silence_reward(ending, prompt.present) for ending in group.endings], device=device)
    soft, spatial, hard = quiet.clone(), quiet.clone(), quiet.clone()
    if len(mask_logits):
        target = prompt.target.expand(len(mask_logits), -1, -1)
        soft[asked] = soft_dice(mask_logits, target)
        spatial[asked] = occupancy_overlap(mask_logits, target)
        hard[asked] = _hard_dice(mask_logits, target)
    text_rewards = [
        (
            emission_reward(text, ending, recipe.sparse_bonus, recipe.sparse_penalty),
            format_reward(text, ending),
            length_reward(int(tokens), ending, low=recipe.length_low, high=recipe.length_high, limit=limit),
        )
        for text, ending, tokens in zip(group.texts, group.endings, group.lengths, strict=True)
    ]
    sparse, form, length = torch.tensor(text_rewards, device=device).unbind(1)
    return Earned(RewardParts(soft, sparse, spatial, form, length), hard)


def token_rewards(total: torch.Tensor, mask: torch.Tensor, step_cost: float) -> torch.Tensor:
    """r_t = −cost, and R on top of it at the last token: (…,), (…, T) → (…, T).

    >>> token_rewards(torch.tensor([1.0]), torch.tensor([[1.0, 1.0, 0.0]]), 0.1)
    tensor([[-0.1000,  0.9000,  0.0000]])
    """
    after = torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], dim=-1)
    return mask * (total[..., None] * (1 - after) - step_cost)


def _hard_dice(mask_logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """2|P∩G| / (|P| + |G|) at logit 0, (N, S, S) → (N,); an outline of nothing that is not there counts 0."""
    hard = (mask_logits > 0).float().flatten(1)
    truth = target.flatten(1)
    return 2 * (hard * truth).sum(1) / (hard.sum(1) + truth.sum(1)).clamp(min=1)
