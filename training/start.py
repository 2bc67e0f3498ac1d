"""The model that a run begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsiseg.errors import DataError
from wsiseg.files import atomic_write
from wsiseg.model import BUNDLED, model_folder
from wsiseg.model.base import BASE, find_base, is_partial, name_base
from wsiseg.model.config import PRESETS, PathChatConfig, load_config, save_config
from wsiseg.model.folder import CONFIG, TOKENIZER, build_model, folder_fingerprint, load_folder
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.model.prompt import PromptTokenizer
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.data.names import names_of
from wsiseg.training.data.queries import sample_query, training_words
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import ExampleStream
from wsiseg.training.recipe import Recipe
from wsiseg.training.run import START, has_state, no_run
from wsiseg.training.tokenizer import train_tokenizer


def begin(
    recipe: Recipe, out: Path, resume: bool, texts: Callable[[PathChatConfig], Iterable[str]]
) -> PathChatSegR1:
    """The recipe's model, or with `resume` one of the same make whose weights `load_state` will fill in.

    Args:
        texts: what a fresh model must be able to write; its tokenizer is trained on it.

    Raises:
        DataError: `out` holds a run and `resume` is off, or the other way round; or frozen weights would be random.
        ModelError: the model to begin with is missing or broken, or, with `resume`, another one.
    """
    begun = has_state(out)
    if begun and not resume:
        raise DataError(f"{out} holds a run already; add --resume to continue it, or choose another --out")
    if resume and not begun:
        raise no_run(out)
    if resume and recipe.reads_start:
        _check_start(recipe, out)
    if resume and is_partial(out):  # the state holds only what training changes
        model = load_folder(find_base(out))
        model.config = load_config(out / CONFIG)
        return model
    if resume:
        return build_model(load_config(out / CONFIG), PromptTokenizer.from_file(out / TOKENIZER))
    if recipe.model:
        return load_folder(model_folder(recipe.model))
    return _fresh_model(recipe, texts)


def _check_start(recipe: Recipe, out: Path) -> None:
    """DataError if the model that the run is compared with is not the one that it began with."""
    folder, kept = model_folder(recipe.model), out / START
    if kept.is_file() and kept.read_text() != folder_fingerprint(folder):
        raise DataError(
            f"the model in {folder} is another one than when the run in {out} began, which goes on comparing itself "
            "with it: put the old one back, or begin a new run"
        )


def keep_make(model: PathChatSegR1, recipe: Recipe, out: Path) -> None:
    """Write what `begin` needs to resume, unless it is there: the model's configuration and tokenizer; the identity of
    the model that it began with, if that was built from published parts, which no checkpoint repeats."""
    if has_state(out):
        return
    save_config(model.config, out / CONFIG)
    model.tokenizer.save(out / TOKENIZER)
    (out / BASE).unlink(missing_ok=True)
    if recipe.reads_start:
        with atomic_write(out / START) as file:
            file.write(folder_fingerprint(model_folder(recipe.model)).encode())
    if model.config.parts and recipe.model:
        name_base(model_folder(recipe.model), out)


def outline(recipe: Recipe) -> PathChatSegR1:
    """The recipe's model without weights (meta device), for counting: even `paper` takes no memory."""
    folder = model_folder(recipe.model or BUNDLED)
    config = load_config(folder / CONFIG) if recipe.model else PRESETS[recipe.preset]()
    with torch.device("meta"):
        return build_model(config, PromptTokenizer.from_file(folder / TOKENIZER))


def answers(store: QuadrupletStore, config: PathChatConfig, seed: int) -> list[str]:
    """What the chains of a few hundred views say, and those that `wsiseg data annotate` wrote."""
    stream = ExampleStream(store, config, split="train", seed=seed + 1, questions=4, length=300, augment=False)
    said = [question.answer for i in range(len(stream)) for question in stream[i].questions]
    trained = {record.name for record in store.records if record.split == "train"}
    return said + [chain.text for chain in store.chains.values() if chain.text and chain.image in trained]


def _fresh_model(recipe: Recipe, texts: Callable[[PathChatConfig], Iterable[str]]) -> PathChatSegR1:
    if recipe.frozen and not recipe.stem_weights:
        raise DataError(
            "model: null begins with random weights, and `frozen` would keep some of them as they are: give "
            "stem_weights=FILE (EfficientNet-Lite0 of ImageNet), a model to begin with (--model tiny), or frozen=[]"
        )
    torch.manual_seed(recipe.seed)
    config = PRESETS[recipe.preset]()
    if config.fold_case:
        config = replace(config, words=training_words(), names=names_of(CONCEPTS))
    # Every concept's wordings, so that no word of a query is foreign.
    rng = np.random.default_rng(recipe.seed)
    wordings = [sample_query(concept, rng, "train") for concept in CONCEPTS for _ in range(60)]
    model = build_model(config, train_tokenizer([*wordings, *texts(config)], config.text.vocab_size))
    if recipe.stem_weights:
        visual: Any = model.vlm.model.visual
        visual.encoder.backbone.load_imagenet_weights(recipe.stem_weights)
        image: Any = model.image_encoder.vit.patch_embed
        image.backbone.load_imagenet_weights(recipe.stem_weights)
    return model
