"""A start from which RL has something to teach: a model that was taught to outline what was not asked for.

The bundled model is silent where it should be, so that RL from it has nothing to win. Here supervised fine-tuning goes
on with wrong answers: asked for what is not there, the answer is as if something that is there had been asked for. What
the model sees and draws stays as it was; it no longer knows when to emit `<SEG>`, which is what SO-GRPO is to teach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from wsiseg.training.batch import Collate
from wsiseg.training.examples import Example, ExampleStream
from wsiseg.training.loop import Stage, fit
from wsiseg.training.mix import training_store
from wsiseg.training.sft import SftRecipe, build, stream
from wsiseg.training.start import answers, begin


class EagerStream(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Examples without refusals, as far as the view shows something that could be asked for."""

    def __init__(self, examples: ExampleStream) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> Example:
        example = self.examples[position]
        there = next((question for question in example.questions if question.mask is not None), None)
        if there is None:
            return example
        told = (replace(there, query=question.query) for question in example.questions)
        return replace(example, questions=tuple(told))


def train(
    recipe: SftRecipe, out: Path, *, resume: bool = False, report: Callable[[int, dict[str, float]], None] | None = None
) -> Path:
    """As `wsiseg.training.sft.train`, with wrong answers; those of validation are right."""
    store = training_store(recipe)
    model = begin(recipe, out, resume, lambda config: answers(store, config, recipe.seed))
    stage = Stage(
        module=build(model, recipe),
        model=model,
        examples=lambda length: EagerStream(stream(store, model, recipe, "train", recipe.seed, length)),
        validation=lambda length: stream(store, model, recipe, "val", 7, length),
        collate=Collate(model.config, model.tokenizer),
    )
    return fit(stage, recipe, out, resume=resume, report=report)
