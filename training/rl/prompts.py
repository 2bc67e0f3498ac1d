"""What is asked: views, the questions about them, and their features, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from wsiseg.errors import DataError
from wsiseg.model.pathchat import PathChatSegR1, tiles_to_tensor
from wsiseg.model.prompt import PromptTokens
from wsiseg.training.examples import Example, ExampleStream


@dataclass(frozen=True)
class Prompt:
    """One question about one view; an absent structure has an empty target."""

    query: str
    tokens: PromptTokens
    view: int  # index into `Views`
    target: torch.Tensor  # (S, S) float in {0, 1}
    present: bool


@dataclass(frozen=True)
class Views:
    """Features of V views, for the language model and for the mask decoder. The encoders do not learn here."""

    image_tokens: torch.Tensor  # (V, n, H)
    embedding: torch.Tensor  # (V, D, h, w)
    finer: list[torch.Tensor]

    def masks(self, model: PathChatSegR1, view: int, states: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Mask logits (N, *size) of one view for N states of `<SEG>` (N, H), drawn in one batch."""
        count = len(states)
        embedding = self.embedding[view].expand(count, -1, -1, -1)
        return model.decode_masks(embedding, [f[view].expand(count, -1, -1, -1) for f in self.finer], states, size)


class AskedExamples(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The views of `stream` with up to `count` questions each, half of them about what is there.

    `ask` gives more refusals than outlines, of which a policy learns in a few steps to be silent whatever it sees: its
    answers are then all alike, and a group of equals teaches nothing. Odd counts take turns. Views that allow no
    question are drawn anew, so that every step of every process has something to learn from. Item k is the same in
    every run.
    """

    _TRIES = 100

    def __init__(self, stream: ExampleStream, count: int) -> None:
        self.stream, self.count = stream, count

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, position: int) -> Example:
        """Raises DataError: the data hold hardly a view that could be asked about."""
        there = (self.count + position % 2) // 2
        for attempt in range(self._TRIES):
            example = self.stream[position + attempt * len(self.stream)]
            outlines = [question for question in example.questions if question.mask is not None]
            refusals = [question for question in example.questions if question.mask is None]
            chosen = (*outlines[:there], *refusals[: self.count - there]) or example.questions[:1]
            if chosen:
                return replace(example, questions=chosen)
        raise DataError(f"{self._TRIES} views in a row allow no question; say what images of the data set do not hold")


def prompts_of(model: PathChatSegR1, examples: Sequence[Example]) -> list[Prompt]:
    """Every question of every example, in order."""
    prompts = []
    for view, example in enumerate(examples):
        for question in example.questions:
            there = question.mask is not None
            mask = question.mask if there else np.zeros(example.image.shape[:2], bool)
            target = torch.from_numpy(np.asarray(mask, np.float32)).to(model.device)
            tokens = model.prompt(question.query, example.mpp)
            prompts.append(Prompt(question.query, tokens, view, target, there))
    return prompts


@torch.no_grad()
def encode_views(model: PathChatSegR1, examples: Sequence[Example]) -> Views:
    """Run both encoders once over the examples' images."""
    tiles = tiles_to_tensor(np.stack([example.image for example in examples]), model.device)
    embedding, finer = model.image_encoder(model.image_pixels(tiles))
    return Views(model.image_tokens(tiles), embedding, finer)
