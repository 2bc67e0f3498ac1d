"""Examples as tensors for the language model, and what the model makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from wsiseg.model.config import PathChatConfig
from wsiseg.model.pathchat import PathChatSegR1, chat_prompt, interleaved_positions, tiles_to_tensor
from wsiseg.model.prompt import PromptTokenizer
from wsiseg.training.examples import Example, in_plain_words
from wsiseg.training.shots import ShotView

_IGNORE = -100


@dataclass
class Batch:
    """B views, E examples and R questions, as tensors; rows are padded on the right to L tokens."""

    tiles: torch.Tensor  # (B, 3, S, S) in [0, 1]
    image_of: torch.Tensor  # (R,) index of the row's view
    ids: torch.Tensor  # (R, L)
    labels: torch.Tensor  # (R, L) next-token targets, -100 where unsupervised
    positions: torch.Tensor  # (3, R, L)
    answer_at: torch.Tensor  # (R,) last token of the prompt
    present: torch.Tensor  # (R,) bool: the answer ends in <SEG>
    seg_at: torch.Tensor  # (P,) place of <SEG> in the P present rows
    masks: torch.Tensor  # (P, S, S) float
    shots: torch.Tensor  # (E, 3, S, S) in [0, 1]
    shot_masks: torch.Tensor  # (E, S, S) bool
    shot_of: torch.Tensor  # (P,) index of the row's example, -1 where it has none
    images: torch.Tensor  # (M,) for each image of each row in turn, its index in `tiles` and, behind them, `shots`
    wordings: torch.Tensor  # (W, K) further queries, padded on the right
    wording_at: torch.Tensor  # (W,) last token of each
    concepts: torch.Tensor  # (W,) what each means
    plain: Batch | None = None  # the same answers to plain questions for the same structures

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items() if value is not None})


def collate(examples: list[Example], config: PathChatConfig, tokenizer: PromptTokenizer) -> Batch:
    """Examples → one `Batch`. Targets begin with the first token of the answer and end with `<SEG>` or the end."""
    rows, image_of, present, masks, prompts = [], [], [], [], []
    shots: list[ShotView] = []
    shot_of: list[int] = []
    images: list[int] = []
    for index, example in enumerate(examples):
        for question in example.questions:
            prompt = chat_prompt(config, tokenizer, question.query, example.mpp, int(question.shot is not None))
            there = question.mask is not None
            answer = [*tokenizer.encode_plain(question.answer), tokenizer.seg if there else tokenizer.end]
            rows.append((prompt, answer, question.taught))
            prompts.append(sum(len(text) + config.image_token_count for text in prompt.shared) + len(prompt.after))
            image_of.append(index)
            present.append(there)
            if question.shot is not None:
                images.append(len(examples) + len(shots))
                shots.append(question.shot)
            images.append(index)
            if question.mask is not None:
                masks.append(question.mask)
                shot_of.append(len(shots) - 1 if question.shot is not None else -1)
    pads = [tokenizer.image_pad] * config.image_token_count
    length = max(prompt + len(answer) for prompt, (_, answer, _) in zip(prompts, rows, strict=True))
    ids = torch.full((len(rows), length), tokenizer.end)
    labels = torch.full((len(rows), length), _IGNORE)
    positions = torch.zeros((3, len(rows), length), dtype=torch.long)
    for r, (prompt, answer, taught) in enumerate(rows):
        read_first = [token for text in prompt.shared for token in (*text, *pads)]
        line = torch.tensor([*read_first, *prompt.after, *answer])
        ids[r, : len(line)] = line
        start = prompts[r]
        if taught:
            labels[r, start - 1 : start - 1 + len(answer)] = line[start:]
        texts = (*map(len, prompt.shared), length - len(read_first))
        positions[:, r] = interleaved_positions(texts, config.pathology.grid // 2)
    seg_at = [p + len(answer) - 1 for p, (_, answer, _), there in zip(prompts, rows, present, strict=True) if there]
    size = examples[0].image.shape[0]
    said = [(chat_prompt(config, tokenizer, q, e.mpp).before, c) for e in examples for q, c in e.wordings]
    wordings = torch.full((len(said), max((len(text) for text, _ in said), default=0)), tokenizer.end)
    for w, (text, _) in enumerate(said):
        wordings[w, : len(text)] = torch.tensor(text)
    return Batch(
        tiles=_tiles([example.image for example in examples], size),
        image_of=torch.tensor(image_of),
        ids=ids,
        labels=labels,
        positions=positions,
        answer_at=torch.tensor(prompts) - 1,
        present=torch.tensor(present),
        seg_at=torch.tensor(seg_at, dtype=torch.long),
        masks=torch.from_numpy(np.stack(masks)).float() if masks else torch.zeros(0, size, size),
        shots=_tiles([shot.image for shot in shots], size),
        shot_masks=torch.from_numpy(np.stack([s.mask for s in shots])) if shots else torch.zeros(0, size, size).bool(),
        shot_of=torch.tensor(shot_of, dtype=torch.long),
        images=torch.tensor(images),
        wordings=wordings,
        wording_at=torch.tensor([len(text) - 1 for text, _ in said], dtype=torch.long),
        concepts=torch.tensor([concept for _, concept in said], dtype=torch.long),
    )


def _tiles(images: list[np.ndarray], size: int) -> torch.Tensor:
    return tiles_to_tensor(np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8))


@dataclass(frozen=True)
class Collate:
    """`collate` for a loader; views without a question are left out. `plain`: with a batch of plain questions."""

    config: PathChatConfig
    tokenizer: PromptTokenizer
    plain: bool = False

    def __call__(self, examples: list[Example]) -> Batch:
        asked = [example for example in examples if example.questions]
        batch = collate(asked, self.config, self.tokenizer)
        if not self.plain:
            return batch
        plain = [replace(e, questions=tuple(map(in_plain_words, e.questions)), wordings=()) for e in asked]
        return replace(batch, plain=collate(plain, self.config, self.tokenizer))


@dataclass(frozen=True)
class Reading:
    """A batch as the language model read it: T supervised tokens of all rows, in a line."""

    states: torch.Tensor  # (R, L, H) after the final norm
    logits: torch.Tensor  # (T, V)
    labels: torch.Tensor  # (T,)

    @property
    def token_accuracy(self) -> torch.Tensor:
        return (self.logits.argmax(-1) == self.labels).float().mean()  # NaN where no token is taught


def look(model: PathChatSegR1, batch: Batch) -> torch.Tensor:
    """What the language model sees of the batch's views and examples (B + E, n, H)."""
    return model.image_tokens(torch.cat([batch.tiles, batch.shots]))


def read(model: PathChatSegR1, batch: Batch, seen: torch.Tensor | None = None) -> Reading:
    """Teacher-forced pass of the language model over images (`seen`, from `look`), questions and answers."""
    image_tokens = (look(model, batch) if seen is None else seen)[batch.images]  # (M, n, H)
    embeds = model.embed(batch.ids)
    place = (batch.ids == model.tokenizer.image_pad)[..., None]
    embeds = embeds.masked_scatter(place, image_tokens.to(embeds.dtype))
    states = model.vlm.model.language_model(
        inputs_embeds=embeds, position_ids=batch.positions, use_cache=False
    ).last_hidden_state  # (R, L, H); right padding is never attended to by a real token
    supervised = batch.labels != _IGNORE
    return Reading(states, model.vlm.lm_head(states[supervised]), batch.labels[supervised])
