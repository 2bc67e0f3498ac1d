"""`wsiseg train`: run a training stage from a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from wsiseg.cli.options import progress_bar

STAGES = ("sft",)


@click.command()
@click.option("--stage", type=click.Choice(STAGES), required=True, help="Supervised fine-tuning is `sft`.")
@click.option("--config", type=click.Path(path_type=Path), help="Recipe (YAML); without it, the defaults.")
@click.option("--data", help="Quadruplet store (Zarr), as `wsiseg data` writes it.")
@click.option("--model", help="Folder of the model to start from; by default a fresh one of the recipe's preset.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps.")
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(
    stage: str,
    config: Path | None,
    data: str | None,
    model: str | None,
    out: Path,
    steps: int | None,
    resume: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train from a recipe; KEY=VALUE overrides its fields.

    \b
    wsiseg train --stage sft --config tiny-sft.yaml --data open.zarr --out runs/tiny
    wsiseg train --stage sft --out runs/tiny --resume

    The run's folder holds the resolved recipe, metrics.jsonl, TensorBoard scalars, a state to resume from
    exactly, and the trained model.
    """
    from wsiseg.training.recipe import load_recipe
    from wsiseg.training.sft import train

    if resume and config is None and (out / "recipe.yaml").is_file():
        config = out / "recipe.yaml"
    recipe = load_recipe(config, overrides, stage=stage, data=data, model=model, steps=steps)
    with progress_bar("training") as advance:

        def report(step: int, values: dict[str, float]) -> None:
            if advance:
                advance(step, recipe.steps)

        trained = train(recipe, out, resume=resume, report=report)
    click.echo(f"trained model: {trained}", err=True)
