"""What is asked: views, the questions about them, and their features, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """`stream` without views of which nothing is known to be there or not: those are drawn anew.

    Every step of every process then has something to learn from. Item k is the same in every run.
    """

    _TRIES = 100

    def __init__(self, stream: ExampleStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, position: int) -> Example:
        """Raises DataError: the data hold hardly a view that could be asked about."""
        for attempt in range(self._TRIES):
            example = self.stream[position + attempt * len(self.stream)]
            if example.questions:
                return example
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
