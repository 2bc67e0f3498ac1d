"""The loop that all stages share: what the command line starts, and how the work may be split."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from click.testing import CliRunner

from wsiseg.cli.train import STAGES, _import, command
from wsiseg.errors import DataError
from wsiseg.training import loop
from wsiseg.training.recipe import load_recipe
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.train import train as train_rl
from wsiseg.training.run import read_figures
from wsiseg.training.sft import SftRecipe, train

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*-*.yaml")), ids=lambda path: path.stem)
def test_recipes_that_come_with_wsiseg_are_right(path: Path) -> None:
    size, stage, *_ = path.stem.split("-")
    recipe = load_recipe(_import(STAGES[stage][0]), path)
    assert recipe.preset == size


def test_weights_that_nobody_trained_are_not_frozen(store: Path, tmp_path: Path) -> None:
    recipe = load_recipe(SftRecipe, "tiny-sft.yaml", data=str(store))
    with pytest.raises(DataError, match="stem_weights"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_dry_run_needs_no_data_and_writes_nothing(stage: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = CliRunner().invoke(command, ["--stage", stage, "--out", str(out), "--dry-run", "--steps", "7"])
    assert done.exit_code == 0, done.output
    assert "image encoder " in done.output
    assert "memory per process" in done.output
    assert "7 steps of" in done.output
    assert not out.exists()


def test_the_run_keeps_what_it_was_told(store: Path, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--stage", "pretrain", "--data", str(store), "--model", str(start), "--out", str(out), "--steps", "1"]
    overrides = ["workers=0", "batch_images=2", "validation_images=2", "precision=fp32", "accumulation=2"]
    done = CliRunner().invoke(command, [*arguments, *overrides])
    assert done.exit_code == 0, done.output
    recipe = load_recipe(_import(STAGES["pretrain"][0]), out / "recipe.yaml")
    assert (recipe.steps, recipe.batch_images, recipe.data) == (1, 2, str(store))
    (line,) = read_figures(out, "train")
    assert {"loss", "norm", "rate", "seconds", "waiting"} <= line.keys()
    assert 0 <= line["waiting"] <= 1
    assert line["rate"] == pytest.approx(recipe.learning_rate / recipe.warmup_steps)  # of step 1, not of backbones
    assert list((out / "tensorboard").iterdir())
    again = CliRunner().invoke(command, ["--stage", "pretrain", "--out", str(out), "--resume"])
    assert again.exit_code == 0, again.output  # nothing is left to do: the recipe is the run's own
    assert len(read_figures(out, "train")) == 1


def test_a_figure_that_a_batch_has_none_of_is_left_out_of_the_mean() -> None:
    """As Dice, of batches in which nothing is outlined: as 0 it made a model look worse than it is."""

    class Told(torch.nn.Linear):
        def forward(self, dice: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": 2.0 + 0 * self.weight.sum(), "dice": dice}

    recipe, nothing = SftRecipe(precision="fp32", accumulation=3), torch.tensor(torch.nan)
    module, batches = Told(1, 1), [torch.tensor(0.8), nothing, torch.tensor(0.6)]
    assert loop._means(module, batches, torch.device("cpu"), recipe) == pytest.approx({"loss": 2.0, "dice": 0.7})
    world = Accelerator(mixed_precision="no", gradient_accumulation_steps=3)
    steps = iter([*batches, *[nothing] * 3])
    for step, dice in enumerate(({"dice": 0.7}, {})):
        values = loop._step(step, steps, module, torch.optim.SGD(module.parameters()), world, recipe)
        assert {key: values[key] for key in ("loss", "dice") if key in values} == pytest.approx({"loss": 2.0} | dice)


@pytest.mark.parametrize(("clip_norm", "moved"), [(0.5, 0.5), (0.0, 4.0)], ids=["clipped", "0 clips nothing"])
def test_the_gradient_is_as_long_as_it_may_be(clip_norm: float, moved: float) -> None:
    """0 made it nothing: a run learned nothing, and did not say so."""

    class Slope(torch.nn.Linear):
        def forward(self, steepness: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": steepness * self.weight.sum()}

    module, recipe = Slope(1, 1, bias=False), SftRecipe(precision="fp32", clip_norm=clip_norm)
    world = Accelerator(mixed_precision="no", gradient_accumulation_steps=1)
    before, optimizer = module.weight.item(), torch.optim.SGD(module.parameters(), lr=1.0)
    values = loop._step(0, iter([torch.tensor(4.0)]), module, optimizer, world, recipe)
    assert before - module.weight.item() == pytest.approx(moved, rel=1e-4)
    assert values["norm"] == pytest.approx(4.0)


def test_figures_go_to_weights_and_biases_too_and_a_resumed_run_is_the_same_there(
    store: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = SftRecipe(
        data=str(store), model=str(start), steps=1, batch_images=2, queries_per_image=1, workers=0, precision="fp32",
        validation_images=2, checkpoint_every=1, wandb="glands",
    )  # fmt: skip
    train(recipe, tmp_path / "run")
    train(dataclasses.replace(recipe, steps=2), tmp_path / "run", resume=True)
    (name,) = {path.name for path in (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")}
    assert name == f"run-{(tmp_path / 'run' / 'wandb-run').read_text()}.wandb"
    sent = b"".join(path.read_bytes() for path in (tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
    for line in read_figures(tmp_path / "run", "train"):
        assert b"train/loss" in sent
        assert repr(line["loss"]).encode() in sent
    assert b"validation/dice" in sent


def test_a_run_that_weights_and_biases_refuses_does_not_start(
    store: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    arguments = ["--stage", "sft", "--data", str(store), "--model", str(start), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(command, [*arguments, "wandb=glands", "workers=0"])
    assert done.exit_code != 0
    assert 'pip install "wsiseg[wandb]"' in str(done.exception)
    assert not read_figures(tmp_path / "run", "train")


def test_a_cpu_without_bf16_arithmetic_trains_in_fp32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU computes in bf16")

    def product(precision: Literal["bf16", "fp32"]) -> torch.dtype:
        with loop.autocast(precision, torch.device("cpu")):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    monkeypatch.setattr(loop, "_cpu_computes_in_bf16", lambda: True)
    loop.warn_of_precision("bf16")
    assert (product("bf16"), product("fp32")) == (torch.bfloat16, torch.float32)
    assert not caplog.text
    monkeypatch.setattr(loop, "_cpu_computes_in_bf16", lambda: False)
    loop.warn_of_precision("bf16")
    assert product("bf16") == torch.float32
    assert "fp32" in caplog.text


def test_a_process_trains_in_one_precision_after_another(
    store: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_cpu_computes_in_bf16", lambda: True)
    keys: dict[str, Any] = {"data": str(store), "model": str(start), "steps": 1, "batch_images": 1, "workers": 0}
    keys |= {"warmup_steps": 0, "queries_per_image": 2, "validation_images": 0}
    order: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32", "bf16")
    losses = []
    for number, precision in enumerate(order):
        train(SftRecipe(**keys, precision=precision), tmp_path / str(number))
        losses += [figures["loss"] for figures in read_figures(tmp_path / str(number), "train")]
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-6), "both would be of one precision"
    train_rl(RlRecipe(**keys, precision="fp32", answers=2, length_low=4, length_high=16), tmp_path / "rl")
    assert read_figures(tmp_path / "rl", "train")


def test_two_processes_do_what_one_does_with_twice_the_accumulation(store: Path, start: Path, tmp_path: Path) -> None:
    recipe = SftRecipe(
        data=str(store),
        model=str(start),
        steps=3,
        accumulation=2,
        batch_images=2,
        queries_per_image=2,
        warmup_steps=1,
        precision="fp32",
        workers=0,
        validation_images=0,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two processes: sums in another order differ, and three steps make much of it
    try:
        train(recipe, tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    out = tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "wsiseg.cli.main", "train"]
    arguments = ["--stage", "sft", "--config", str(tmp_path / "one" / "recipe.yaml"), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run([*launch, *arguments, "accumulation=1"], check=True, env=environment, timeout=500)
    one, two = (read_figures(tmp_path / name, "train") for name in ("one", "two"))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)
    assert [line["norm"] for line in one] == pytest.approx([line["norm"] for line in two], rel=1e-3)
    assert len({line["loss"] for line in one}) == 3
