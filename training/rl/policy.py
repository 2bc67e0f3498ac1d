"""What the policy thinks of answers that are written already: states and log-probabilities."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.model.prompt import PromptTokens
from wsiseg.training.rl.recipe import RlRecipe

_NEVER = -1e9  # logit of a token that cannot be drawn; finite, so that p · log p is 0 there


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt with its image, read once: keys and values, and the state that the first token is drawn from."""

    cache: DynamicCache  # batch size 1
    state: torch.Tensor  # (1, H)
    length: int  # tokens
    next_position: int  # M-RoPE counts an image as its side, not as its tokens


def read_prompt(model: PathChatSegR1, prompt: PromptTokens, image_tokens: torch.Tensor) -> ReadPrompt:
    """Read query and image (n, H), with gradient where the model has one."""
    before, after = (model.embed(torch.tensor([ids], device=model.device)) for ids in (prompt.before, prompt.after))
    embeds = torch.cat([before, image_tokens[None].to(before.dtype), after], dim=1)
    positions = model.positions(len(prompt.before), len(prompt.after))  # (3, P)
    cache = DynamicCache()
    states = model.vlm.model.language_model(
        inputs_embeds=embeds, position_ids=positions[:, None], past_key_values=cache, use_cache=True
    ).last_hidden_state
    return ReadPrompt(cache, states[:, -1], embeds.shape[1], int(positions[0, -1]) + 1)


def read_answers(model: PathChatSegR1, prompt: ReadPrompt, fed: torch.Tensor) -> torch.Tensor:
    """States around the tokens of G answers to one prompt: `fed` (G, T) → (G, T + 1, H).

    State t is the one that token t is drawn from, state t + 1 the one that has read it. Answers are padded on the
    right; no token attends to what comes after it, so padding reaches nothing. The prompt is not read again.
    """
    group, length = fed.shape
    positions = prompt.next_position + torch.arange(length, device=fed.device)
    states = model.vlm.model.language_model(
        inputs_embeds=model.embed(fed),
        position_ids=positions.expand(3, group, -1),
        past_key_values=shared_cache(prompt, group),
        use_cache=True,
    ).last_hidden_state
    return torch.cat([prompt.state.expand(group, -1)[:, None], states], dim=1)


def shared_cache(prompt: ReadPrompt, group: int) -> DynamicCache:
    """The prompt's keys and values for G answers; gradients of all of them flow into the one prompt."""
    cache = copy.copy(prompt.cache)
    cache.layers = [copy.copy(layer) for layer in prompt.cache.layers]
    cache.batch_repeat_interleave(group)
    return cache


def log_distribution(model: PathChatSegR1, states: torch.Tensor, recipe: RlRecipe) -> torch.Tensor:
    """log π(· | s) at states (…, H) → (…, V): the distribution that the rollout drew from."""
    logits = model.vlm.lm_head(states).float()
    ban = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    ban[model.tokenizer.suppressed] = True
    return (logits.masked_fill(ban, _NEVER) / recipe.temperature).log_softmax(-1)


def seg_states(states: torch.Tensor, lengths: torch.Tensor, seg_state: str) -> torch.Tensor:
    """h_SEG of answers whose last fed token is `<SEG>`: (G, T + 1, H), (G,) → (G, H)."""
    at = lengths if seg_state == "self" else lengths - 1
    return states[torch.arange(len(states), device=states.device), at]
