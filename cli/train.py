"""`wsiseg train`: run a training stage from a recipe."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import progress_bar, tell, told_when_stopped

# stage → (recipe class, train function), imported when the stage is run
STAGES = {
    "ssl": ("wsiseg.training.ssl:SslRecipe", "wsiseg.training.ssl:train"),
    "pretrain": ("wsiseg.training.pretrain:PretrainRecipe", "wsiseg.training.pretrain:train"),
    "sft": ("wsiseg.training.sft:SftRecipe", "wsiseg.training.sft:train"),
    "rl": ("wsiseg.training.rl.recipe:RlRecipe", "wsiseg.training.rl.train:train"),
}


@click.command()
@click.option(
    "--stage",
    type=click.Choice(list(STAGES)),
    required=True,
    help="`ssl` (stain-invariant features), `pretrain` (image and text), `sft` (answers and masks), `rl` (SO-GRPO).",
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="Recipe (YAML), or the name of one that comes with wsiseg."
)
@click.option("--data", help="Quadruplet store, as `wsiseg data` writes it; to pretrain, also pairs (JSONL).")
@click.option("--model", help="Model to start from: a folder, or `tiny`, the bundled one (default).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Only show what would train: parameters, memory, steps.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(
    stage: str,
    config: Path | None,
    data: str | None,
    model: str | None,
    out: Path | None,
    steps: int | None,
    resume: bool,
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train a model: from a recipe, or the bundled model with a stage's defaults; KEY=VALUE overrides their fields.

    \b
    wsiseg train --stage sft --data mine.zarr --out runs/mine
    wsiseg train --stage sft --out runs/mine --resume
    accelerate launch --num_processes 8 -m wsiseg.cli.main train --stage sft …

    The run's folder holds the resolved recipe, metrics.jsonl, TensorBoard scalars, a state to resume from
    exactly, and the trained model.
    """
    from wsiseg.training.recipe import load_recipe
    from wsiseg.training.run import has_state, no_run

    if out is None:
        if not dry_run:
            raise click.UsageError("--out is missing: the folder of the run")
        out = Path()
    recipe_class, train = map(_import, STAGES[stage])
    if resume and not has_state(out) and not (out / "recipe.yaml").is_file():
        raise no_run(out)
    if resume and config is None and (out / "recipe.yaml").is_file():
        config = out / "recipe.yaml"
    if resume and not has_state(out):
        tell(f"wsiseg: {out} has no checkpoint yet: the run begins again")
        resume = False
    recipe = load_recipe(recipe_class, config, overrides, stage=stage, data=data, model=model, steps=steps)
    with told_when_stopped("the same command with --resume goes on from the last checkpoint"), progress_bar(
        "training"
    ) as advance:

        def report(step: int, values: dict[str, float]) -> None:
            if advance:
                advance(step, recipe.steps)

        trained = train(recipe, out, resume=resume, dry_run=dry_run, report=report, say=tell)
    if not dry_run:
        tell(f"trained model: {trained}")


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
