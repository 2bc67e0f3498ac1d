"""Supervised fine-tuning on examples that are changed on their way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.batch import Collate
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import Example, ExampleStream
from wsiseg.training.loop import Stage, fit
from wsiseg.training.sft import SftRecipe, stream


class ChangedStream(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The examples of a stream, each as `change` makes it."""

    def __init__(self, examples: ExampleStream, change: Callable[[Example], Example]) -> None:
        self.examples, self.change = examples, change

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> Example:
        return self.change(self.examples[position])


def fit_changed(
    module: nn.Module,
    model: PathChatSegR1,
    store: QuadrupletStore,
    recipe: SftRecipe,
    change: Callable[[Example], Example],
    out: Path,
    *,
    resume: bool,
    report: Callable[[int, dict[str, float]], None] | None,
) -> Path:
    """As `wsiseg.training.sft.train`, of `module`, which holds `model`; returns the model's folder."""
    stage = Stage(
        module=module,
        model=model,
        examples=lambda length: ChangedStream(stream(store, model, recipe, "train", recipe.seed, length), change),
        validation=lambda length: ChangedStream(stream(store, model, recipe, "val", 7, length), change),
        collate=Collate(model.config, model.tokenizer),
    )
    return fit(stage, recipe, out, resume=resume, report=report)
