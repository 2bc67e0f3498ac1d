"""Did it stop at the right moment? Probes ask what a mask would have been worth earlier (lineage.md §3.8).

    stop regret = max_k R_soft(t_k) − R_soft(T)      0: no probe beats the stop that was taken
"""

from __future__ import annotations

import torch

from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.losses import soft_dice
from wsiseg.training.rl.policy import ReadPrompt, read_answers, shared_cache
from wsiseg.training.rl.prompts import Views
from wsiseg.training.rl.rewards import Ending
from wsiseg.training.rl.rollout import Group


def probe_places(group: Group, probes: int) -> torch.Tensor:
    """How many tokens each probe has read, (G, K): spread over the answer, the last one just before its stop.

    >>> torch.round(torch.tensor([[40.0]]) * torch.arange(1, 5) / 4)  # an answer of 40 tokens and its stop, K = 4
    tensor([[10., 20., 30., 40.]])
    """
    stops = torch.tensor([ending is not Ending.CUT for ending in group.endings], device=group.mask.device)
    words = (group.lengths - stops.long()).clamp(min=0)
    share = torch.arange(1, probes + 1, device=words.device) / probes
    return (words[:, None] * share).round().long()


def probe_states(model: PathChatSegR1, prompt: ReadPrompt, fed: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """States of `<SEG>` said after `places` (G, K) tokens of the answers `fed` (G, T): (G, K, H), in one pass.

    The K probes stand behind the answer; each sees the prompt, its part of the answer and itself, at the position
    of the token that it would have replaced. The same as K passes, each with an answer cut short (test).
    """
    group, length = fed.shape
    probes, known = places.shape[1], prompt.length
    device = fed.device
    row = torch.arange(length, device=device)
    sees = torch.zeros(group, length + probes, known + length + probes, dtype=torch.bool, device=device)
    sees[:, :, :known] = True
    sees[:, :length, known : known + length] = row[:, None] >= row
    sees[:, length:, known : known + length] = row < places[..., None]
    own = torch.arange(probes, device=device)
    sees[:, length + own, known + length + own] = True
    seg = torch.full((group, probes), model.tokenizer.seg, device=device)
    at = prompt.next_position + torch.cat([row.expand(group, -1), places], dim=1)  # (G, T + K)
    states = model.vlm.model.language_model(
        inputs_embeds=model.embed(torch.cat([fed, seg], dim=1)),
        attention_mask={"full_attention": sees[:, None]},
        position_ids=at.expand(3, -1, -1),
        past_key_values=shared_cache(prompt, group),
        use_cache=True,
    ).last_hidden_state
    return states[:, length:]


@torch.no_grad()
def stop_regret(
    model: PathChatSegR1, prompt: ReadPrompt, views: Views, group: Group, soft: torch.Tensor, probes: int
) -> torch.Tensor:
    """(G,) ≥ 0: what the best probe's mask is worth above the answer's own R_soft `soft` (G,), which for an answer
    without a mask is 0. For prompts whose structure is there; elsewhere no stop is right."""
    places = probe_places(group, probes)
    if model.config.seg_state == "self":
        states = probe_states(model, prompt, group.fed, places)  # (G, K, H)
    else:  # the state before <SEG> is the answer's own
        own = read_answers(model, prompt, group.fed)
        states = own.gather(1, places[..., None].expand(-1, -1, own.shape[-1]))
    target = group.prompt.target
    logits = views.masks(model, group.prompt.view, states.flatten(0, 1), target.shape)
    worth = soft_dice(logits, target.expand(len(logits), -1, -1)).unflatten(0, states.shape[:2])
    return (worth.amax(1) - soft).clamp(min=0)
