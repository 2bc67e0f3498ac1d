"""A start from which RL has something to teach: a model that was taught to outline what was not asked for.

The bundled model is silent where it should be, so that RL from it has nothing to win. Here supervised fine-tuning goes
on with wrong answers: asked for what is not there, the answer is as if something that is there had been asked for. What
the model sees and draws stays as it was; it no longer knows when to emit `<SEG>`, which is what SO-GRPO is to teach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.quality.changed import fit_changed
from wsiseg.training.examples import Example
from wsiseg.training.mix import training_store
from wsiseg.training.sft import SftRecipe, build
from wsiseg.training.start import answers, begin


def without_refusals(example: Example) -> Example:
    """Every question answered as the first about something that is there, if there is one."""
    there = next((question for question in example.questions if question.mask is not None), None)
    if there is None:
        return example
    return replace(example, questions=tuple(replace(there, query=question.query) for question in example.questions))


def train(
    recipe: SftRecipe, out: Path, *, resume: bool = False, report: Callable[[int, dict[str, float]], None] | None = None
) -> Path:
    """As `wsiseg.training.sft.train`, with wrong answers."""
    store = training_store(recipe)
    model = begin(recipe, out, resume, lambda config: answers(store, config, recipe.seed))
    module = build(model, recipe)
    return fit_changed(module, model, store, recipe, without_refusals, out, resume=resume, report=report)
