"""Pre-training: the language model learns to speak of what the pathology encoder sees.

Next-token prediction on image–text pairs, L = −1/T Σₜ log p(xₜ | image, question, x₍<t₎) over the T tokens of a
batch's answers. Pairs come from a JSONL file (captions), or are the questions and chains of a quadruplet store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from wsiseg.model.config import PathChatConfig
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.batch import Batch, Collate, read
from wsiseg.training.captions import CaptionStream, read_captions
from wsiseg.training.examples import ExampleStream
from wsiseg.training.loop import Examples, Report, Say, Stage, fit, plan
from wsiseg.training.losses import token_loss
from wsiseg.training.mix import training_store
from wsiseg.training.recipe import Amount, Count, Natural, Share
from wsiseg.training.start import answers, begin, outline
from wsiseg.training.trainable import SEGMENTING, TuningRecipe, set_trainable


@dataclass(frozen=True)
class PretrainRecipe(TuningRecipe):
    """Next-token prediction (DESIGN §4.2). `data` is a quadruplet store, or a JSONL file of image–text pairs.

    The segmenting half (image encoder, Seg-Adapter, mask decoder) takes no part and stays as it is. `chain_share` is
    as for `sft`.
    """

    stage: Literal["pretrain"] = "pretrain"
    steps: Count = 1000
    learning_rate: Amount = 5e-4
    warmup_steps: Natural = 50
    queries_per_image: Count = 3
    chain_share: Share = 0.5


class PretrainModel(nn.Module):
    """`forward` gives the loss of a batch."""

    def __init__(self, model: PathChatSegR1) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        reading = read(self.model, batch)
        return {"loss": token_loss(reading.logits, reading.labels), "token_accuracy": reading.token_accuracy}


def build(model: PathChatSegR1, recipe: PretrainRecipe) -> PretrainModel:
    """`model` with the recipe's adapters, frozen but for the language side."""
    torch.manual_seed(recipe.seed)
    set_trainable(model, recipe, SEGMENTING)
    return PretrainModel(model)


def train(
    recipe: PretrainRecipe,
    out: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    report: Report | None = None,
    say: Say | None = None,
) -> Path:
    """Run the recipe in the folder `out`, as `wsiseg.training.sft.train` does.

    Raises:
        DataError: the pairs or the store cannot be used.
    """
    if dry_run:
        return plan(build(outline(recipe), recipe), recipe, out, say)
    source = _pairs(recipe) if recipe.data.endswith(".jsonl") else _quadruplets(recipe)
    model = begin(recipe, out, resume, source.texts)
    stage = Stage(
        module=build(model, recipe),
        model=model,
        examples=lambda length: source.examples(model.config, "train", recipe.seed, length),
        validation=lambda length: source.examples(model.config, "val", 7, length),
        collate=Collate(model.config, model.tokenizer),
    )
    return fit(stage, recipe, out, resume=resume, report=report, say=say)


@dataclass(frozen=True)
class _Source:
    """Where examples come from: `examples(config, split, seed, length)`, and texts to train a tokenizer on."""

    examples: Callable[[PathChatConfig, str, int, int], Examples]
    texts: Callable[[PathChatConfig], list[str]]


def _pairs(recipe: PretrainRecipe) -> _Source:
    captions = read_captions(Path(recipe.data))
    return _Source(
        lambda config, split, seed, length: CaptionStream(captions, split, config.tile_size, seed=seed, length=length),
        lambda config: [caption.text for caption in captions],
    )


def _quadruplets(recipe: PretrainRecipe) -> _Source:
    store = training_store(recipe)

    def examples(config: PathChatConfig, split: str, seed: int, length: int) -> Examples:
        return ExampleStream(
            store,
            config,
            split=split,
            seed=seed,
            questions=recipe.queries_per_image,
            length=length,
            source_weights=recipe.source_weights,
            augment=split == "train",
            cache=recipe.cached_images if split == "train" else 0,
            chain_share=recipe.chain_share,
        )

    return _Source(examples, lambda config: answers(store, config, recipe.seed))
