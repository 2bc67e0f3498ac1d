"""Discs to ask for, a small model to ask, and a group of its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.small import small_model
from wsiseg.model.folder import save_model
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.data.store import Sample, SourceInfo, write_quadruplets
from wsiseg.training.examples import Example, Question
from wsiseg.training.rl.prompts import Views, encode_views, prompts_of
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.rollout import Group, roll_out

RECIPE = RlRecipe(answers=4, length_low=4, length_high=16)


def talkative_model() -> PathChatSegR1:
    """A model whose answers end in `<SEG>`, in silence, and by being cut off."""
    return small_model(seed=0, stops=2.0)


def disc_example(size: int = 128) -> Example:
    y, x = np.mgrid[:size, :size]
    disc = (y - 50) ** 2 + (x - 70) ** 2 < 900
    image = np.where(disc[..., None], [90, 60, 140], [225, 170, 200]).astype(np.uint8)
    there, absent = Question("outline the discs", "One. It is outlined.", disc), Question("any squares?", "No.", None)
    return Example(image, 0.5, (there, absent))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(talkative_model(), folder)
    return folder


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of dark discs, the glands, on pink; two of them held out."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:160, :160]
    samples = []
    for i in range(6):
        cy, cx = rng.integers(40, 120, 2)
        gland = ((y - cy) ** 2 + (x - cx) ** 2 < 900).astype(np.uint16)
        image = np.where(gland[..., None] > 0, [90, 60, 140], [225, 170, 200]).astype(np.uint8)
        split = "val" if i > 3 else "train"
        samples.append(Sample(image, {"gland": gland}, ("gland",), ("necrosis",), 1.0, "discs", f"p{i}", split, f"{i}"))
    path = tmp_path_factory.mktemp("data") / "discs.zarr"
    write_quadruplets(path, samples, {"discs": SourceInfo("discs", "CC0", "us", "made", "by picture")})
    return path


@pytest.fixture
def drawn() -> Callable[[PathChatSegR1, RlRecipe], tuple[Views, list[Group]]]:
    """Features of the disc picture, and a group of answers to each of its two questions."""

    def draw(model: PathChatSegR1, recipe: RlRecipe) -> tuple[Views, list[Group]]:
        views = encode_views(model, [disc_example()])
        generator = torch.Generator().manual_seed(0)
        groups = [roll_out(model, prompt, views, recipe, generator) for prompt in prompts_of(model, [disc_example()])]
        return views, groups

    return draw
