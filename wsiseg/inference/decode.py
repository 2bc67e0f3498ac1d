"""Batched decoding that computes the shared prompt once and stops each sample at `<SEG>`.

All tiles of a slide are asked the same query, so everything before the image (system turn, examples, query, scale) is
run once, with batch size 1, and its keys and values are repeated for the batch. A sample leaves the batch when
it emits `<SEG>` (after one more step, which gives the state of `<SEG>`) or ends its answer; on a GPU the next one takes
its place. Greedy, token for token, the output equals transformers' `generate` (tests/inference/test_decode.py); with
`Sampling`, each image is answered several times, at random, and its prompt is still computed once.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import torch
from transformers import DynamicCache

from wsiseg.errors import ModelError
from wsiseg.inference.recorded import Chosen, Kept, Recorded, can_record, recorded_steps
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.model.prompt import PromptTokens

# Newer releases of transformers 5 say that it will be called `cache`; older ones know no other name. Not the user's
# concern: pyproject keeps away the release that drops it.
warnings.filterwarnings("ignore", message="`past_key_values` is deprecated", category=FutureWarning)


@dataclass(frozen=True)
class Completion:
    """What one sample wrote.

    `ids` end with `<SEG>` or the end token, unless `max_new_tokens` cut them off. `seg_state` (H,) is the
    state that prompts the mask decoder, None without `<SEG>`. `seg_probability` is P(`<SEG>`) at the step
    where it was emitted, else the largest that it reached. `log_probabilities` are those of `ids` under the
    distribution that they were drawn from; empty for a greedy answer.
    """

    ids: list[int]
    seg_state: torch.Tensor | None
    seg_probability: float
    log_probabilities: list[float]


@dataclass(frozen=True)
class Sampling:
    """Draw `answers` answers to each image from softmax(logits / temperature).

    The same `generator` state, on the model's device, gives the same answers.
    """

    answers: int
    generator: torch.Generator
    temperature: float = 1.0


@dataclass(frozen=True)
class Prefix:
    """Keys and values of what comes before the image, batch size 1, and what every batch needs of the rest.

    `after` (L,): ids of the text behind the image. `positions` (3, 1, …): of image, that text and the longest answer.
    Copied to the device here, once: such a copy waits until the device has done what it was given before.
    """

    cache: DynamicCache
    after: torch.Tensor
    positions: torch.Tensor


@torch.inference_mode()
def encode_prefix(model: PathChatSegR1, prompt: PromptTokens, shots: torch.Tensor | None = None) -> Prefix:
    """Run the shared text once, and the image tokens (K, n, H) of the K examples that it asks of before."""
    texts = [model.embed(torch.tensor([text], device=model.device)) for text in prompt.shared]
    images = [] if shots is None else [tokens[None].to(texts[0].dtype) for tokens in shots]
    if len(images) != len(prompt.shots):
        raise ValueError(f"the prompt has room for {len(prompt.shots)} examples, not {len(images)}")
    parts = [part for pair in zip_longest(texts, images) for part in pair if part is not None]
    positions = model.positions(*map(len, prompt.shared))
    cache = DynamicCache()
    _language(model)(
        inputs_embeds=torch.cat(parts, dim=1),
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    )
    # Every answer token may be read: the last one, too, is where it is a <SEG>, for its state.
    further = positions[0, -1] + 1 + model.positions(0, len(prompt.after) + model.config.max_new_tokens)
    return Prefix(cache, torch.tensor(prompt.after, device=model.device), further[:, None])


@torch.inference_mode()
def decode(
    model: PathChatSegR1,
    image_tokens: torch.Tensor,
    prefix: Prefix,
    sampling: Sampling | None = None,
    *,
    slots: int | None = None,
    hear: Callable[[list[list[int]]], None] | None = None,
) -> list[Completion]:
    """Completions for a batch of images that share the prompt: greedy, or drawn as `sampling` says.

    Args:
        image_tokens: (B, n, H), from `model.image_tokens`.
        slots: how many samples are at work at once; None is all of them.
        hear: called after every step with the ids of all completions so far.

    Returns:
        B completions; with `sampling`, B × answers of them, those to one image side by side.

    Raises:
        ModelError: the model computes NaN.
    """
    if not len(image_tokens):
        return []
    slots, limit = slots or len(image_tokens), model.config.max_new_tokens
    prompt = prefix.cache.get_seq_length() + image_tokens.shape[1] + len(prefix.after)
    is_recorded = sampling is None and can_record(model)
    recorded = recorded_steps(model, prefix.cache, slots, prompt, limit + 1) if is_recorded else nullcontext()
    with recorded as steps:
        if steps:
            kept, first = _read_all(model, prefix, image_tokens, slots)
            return _write(model, _Refilled(steps, slots, kept, first), len(image_tokens), hear)
    completions: list[Completion] = []
    for start in range(0, len(image_tokens), slots):
        growing = _read(model, prefix, image_tokens[start : start + slots], sampling)
        said = [completion.ids for completion in completions]
        tell = None if hear is None else partial(_tell_after, hear, said)
        completions += _write(model, growing, len(growing.samples) * (sampling.answers if sampling else 1), tell)
    return completions


def _tell_after(hear: Callable[[list[list[int]]], None], said: list[list[int]], ids: list[list[int]]) -> None:
    hear([*said, *ids])


def _write(
    model: PathChatSegR1, steps: _Growing | _Refilled, batch: int, hear: Callable[[list[list[int]]], None] | None
) -> list[Completion]:
    """Take these steps until all of so many samples are done."""
    tokenizer, limit = model.tokenizer, model.config.max_new_tokens
    ids: list[list[int]] = [[] for _ in range(batch)]
    log_probabilities: list[list[float]] = [[] for _ in range(batch)]
    states: list[torch.Tensor | None] = [None] * batch
    chance = [0.0] * batch
    done = [False] * batch
    while not all(done):
        chosen = steps.choose()
        for row, sample in enumerate(chosen.samples):
            if done[sample]:
                continue
            if ids[sample] and ids[sample][-1] == tokenizer.seg:  # this step has read <SEG> itself
                states[sample], done[sample] = chosen.last[row].clone(), True  # not a view of all rows
                continue
            if len(ids[sample]) == limit:
                done[sample] = True
                continue
            token, probability = chosen.token[row], chosen.probability[row]
            if math.isnan(probability):  # the first token of the table would be chosen, again and again
                raise computes_nan(model, "words")
            ids[sample].append(token)
            if chosen.log_probability:
                log_probabilities[sample].append(chosen.log_probability[row])
            if token == tokenizer.seg:
                chance[sample] = probability
                if model.config.seg_state == "predictor":
                    states[sample], done[sample] = chosen.last[row].clone(), True
            else:
                chance[sample] = max(chance[sample], probability)
                done[sample] = token == tokenizer.end
        if hear:
            hear(ids)
        steps.go_on([sample for sample in range(batch) if not done[sample]])
    return [Completion(*parts) for parts in zip(ids, states, chance, log_probabilities, strict=True)]


def computes_nan(model: PathChatSegR1, what: str) -> ModelError:
    """The error for a model that gives no numbers in the place of `what`."""
    return ModelError(
        f"the model {model.config.name} computes NaN in the place of {what}: a weight is damaged, or it is too large "
        "for --weights 8bit"
    )


class _Growing:
    """Steps over a cache that grows with every token and shrinks with the batch."""

    def __init__(self, model: PathChatSegR1, prefix: Prefix, rows: int, sampling: Sampling | None) -> None:
        self.model, self.cache, self.sampling = model, copy.deepcopy(prefix.cache), sampling
        self.cache.batch_repeat_interleave(rows)
        self.positions, self.at = prefix.positions, 0  # (3, 1, all tokens to come), and how many of them were read
        self.samples = list(range(rows))  # those of the running batch, a row each
        self.token: list[int] = []

    def read(self, inputs: torch.Tensor) -> None:
        """Read (rows, L, H); then choose."""
        rows, length, _ = inputs.shape
        output = _language(self.model)(
            inputs_embeds=inputs,
            position_ids=self.positions[:, :, self.at : self.at + length].expand(-1, rows, -1),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.at += length
        self.last = output.last_hidden_state[:, -1]  # (rows, H)
        self.logits = self.model.vlm.lm_head(self.last).float()  # (rows, V)

    def choose(self) -> Chosen:
        """One token for each row; the first time, `sampling.answers` rows for each image."""
        tokenizer = self.model.tokenizer
        if self.sampling and not self.token and (answers := self.sampling.answers) > 1:
            # The prompt is read; its answers part here.
            self.last, self.logits = self.last.repeat_interleave(answers, 0), self.logits.repeat_interleave(answers, 0)
            self.cache.batch_repeat_interleave(answers)
            self.samples = list(range(len(self.last)))
        self.logits[:, tokenizer.suppressed] = -torch.inf
        drawn, log_probability = _draw(self.logits, self.sampling) if self.sampling else (self.logits.argmax(-1), [])
        self.token = drawn.tolist()
        probability = self.logits.softmax(-1)[:, tokenizer.seg].tolist()
        return Chosen(self.samples, self.token, probability, self.last, log_probability)

    def go_on(self, waiting: list[int]) -> None:
        """Read the tokens chosen last, of these samples at least."""
        if not waiting:
            return
        token = self.token
        if len(waiting) <= 0.75 * len(self.samples):  # shrink the batch when it pays for the copy
            rows = [self.samples.index(sample) for sample in waiting]
            self.cache.batch_select_indices(torch.tensor(rows, device=self.model.device))
            self.samples, token = waiting, [token[row] for row in rows]
        self.read(self.model.embed(torch.tensor(token, device=self.model.device)[:, None]))


def _draw(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, list[float]]:
    """One token for each row of `logits` (rows, V), with its log-probability."""
    logp = (logits / sampling.temperature).log_softmax(-1)
    # NaN, which it refuses in words of its own, is for `decode` to tell.
    token = torch.multinomial(logp.exp().nan_to_num(1.0), 1, generator=sampling.generator)  # (rows, 1)
    return token[:, 0], logp.gather(1, token)[:, 0].tolist()


class _Refilled:
    """Recorded steps over a few rows at a time: where samples are done, the next ones go on.

    All prompts are read before: in few large batches, and the steps do not wait for them.
    """

    def __init__(self, steps: Recorded, slots: int, kept: Kept, first: Chosen) -> None:
        self.steps, self.slots, self.kept = steps, slots, kept
        self.first: Chosen | None = first
        self.token = first.token  # the first of each sample
        self.begun = 0  # so many samples, or they were done with their first tokens

    def choose(self) -> Chosen:
        first, self.first = self.first, None
        return first or self.steps.choose()

    def go_on(self, waiting: list[int]) -> None:
        """The step over those who have begun is under way; the next may begin."""
        to_come = [sample for sample in waiting if sample >= self.begun]
        free = self.steps.free(set(waiting).difference(to_come), self.slots) if to_come else []
        if free:
            next_ones = to_come[: len(free)]
            self.steps.put(free[: len(next_ones)], next_ones, self.kept, [self.token[s] for s in next_ones])
            self.begun = next_ones[-1] + 1


def _read_all(model: PathChatSegR1, prefix: Prefix, image_tokens: torch.Tensor, slots: int) -> tuple[Kept, Chosen]:
    """The prompts of all samples, `slots` at a time, with the first tokens that are chosen behind them."""
    parts = []
    for start in range(0, len(image_tokens), slots):
        read = _read(model, prefix, image_tokens[start : start + slots])
        if not start:
            kept = Kept(len(image_tokens), read.positions[0, 0, read.at])
        kept.keep(start, read.cache)
        parts.append(read.choose())
        del read  # the next is read without it in memory
    tokens, probabilities = ([n for part in parts for n in getattr(part, name)] for name in ("token", "probability"))
    return kept, Chosen(range(len(tokens)), tokens, probabilities, torch.cat([part.last for part in parts]))


def _read(
    model: PathChatSegR1, prefix: Prefix, image_tokens: torch.Tensor, sampling: Sampling | None = None
) -> _Growing:
    """Steps over all samples (B, n, H), whose prompts have been read."""
    tail = model.embed(prefix.after).expand(len(image_tokens), -1, -1)
    growing = _Growing(model, prefix, len(image_tokens), sampling)
    growing.read(torch.cat([image_tokens.to(tail.dtype), tail], dim=1))
    return growing


def _language(model: PathChatSegR1) -> torch.nn.Module:
    return model.vlm.model.language_model
