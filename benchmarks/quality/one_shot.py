"""One example against none: the weight of its evidence, and what each half of it is worth (docs/one-shot.md).

python -m benchmarks.quality.one_shot calibrate open.zarr --pairs 12
python -m benchmarks.quality.one_shot compare glas.zarr --split test --limit 48
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson
import torch

from wsiseg.errors import DataError
from wsiseg.files import atomic_write
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.shots import Shot
from wsiseg.model import BUNDLED, load_model
from wsiseg.training.data.queries import sample_query
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.evaluate import evaluate
from wsiseg.training.figures import FIGURES, figures
from wsiseg.training.shots import ShotPool, draw_shots

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
# name → whether an example is shown, its weight in the mask (None: the model's own), whether it stands in the context
HALVES: dict[str, tuple[bool, float | None, bool]] = {
    "zero-shot": (False, None, False),
    "1-shot, mask only": (True, None, False),
    "1-shot, context only": (True, 0.0, True),
    "1-shot, both": (True, None, True),
}


def pick(store: QuadrupletStore, pairs: int) -> list[tuple[int, str]]:
    """Training images to ask about, at most `pairs` for each source and structure, always the same."""
    by: dict[tuple[str, str], list[int]] = {}
    for index in store.indices(split="train"):
        for concept in store.records[index].present:
            by.setdefault((store.records[index].source, concept), []).append(index)
    rng = np.random.default_rng(0)
    return [
        (int(index), concept)
        for (_, concept), indices in sorted(by.items())
        for index in rng.permutation(indices)[:pairs]
    ]


def sweep(model: PathChatSegmenter, store: QuadrupletStore, pairs: int) -> dict[str, np.ndarray]:
    """Dice at each of `WEIGHTS` of one tile a pair, mean for each source and structure of the training split."""
    pool, rng, config = ShotPool(store, "train"), np.random.default_rng(1), model.model.config
    found: dict[str, list[list[float]]] = {}
    for index, concept in pick(store, pairs):
        sample = store.sample(index)
        query = sample_query(concept, rng, "train")
        mpp = model.mpp_for(query)
        shown = draw_shots(pool, concept, sample, 1)
        if not shown or (sample.layers[concept] > 0).all():
            continue
        tile, truth = Shot(sample.image, sample.layers[concept] > 0, sample.mpp).view(mpp, model.tile_size)
        taught = model.with_shots(shown)
        features = taught.look(np.arange(1), truth.shape, lambda tile=tile: tile[None])  # type: ignore[misc]
        dice = []
        for weight in WEIGHTS:
            model.model.config = replace(config, shot_weight=weight, shots_in_context=False)
            (given,) = taught.answer(features, query, mpp)
            if given.probability is None:
                break
            drawn = given.probability > 0.5
            dice.append(2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()))
        if dice:
            found.setdefault(f"{sample.source}, {concept}", []).append(dice)
    model.model.config = config
    return {name: np.mean(values, 0) for name, values in found.items()}


@click.group()
def main() -> None:
    """Measure what an example is worth."""


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default=BUNDLED, show_default=True)
@click.option(
    "--pairs", type=click.IntRange(min=1), default=12, show_default=True, help="Of each source and structure."
)
def calibrate(data: Path, model: str, pairs: int) -> None:
    """Dice on training images for each weight of the examples' evidence; the best is the last line."""
    rows = sweep(_loaded(model), QuadrupletStore.open(data), pairs)
    if not rows:
        raise DataError(f"{model} drew no mask on the training images of {data} that have an example")
    click.echo("| source, structure | " + " | ".join(map(str, WEIGHTS)) + " |\n" + "|---" * (len(WEIGHTS) + 1) + "|")
    mean = np.mean(list(rows.values()), 0)
    for name, dice in [*rows.items(), ("mean", mean)]:
        click.echo(f"| {name} | " + " | ".join(f"{value:.3f}" for value in dice) + " |")
    click.echo(f"\nshot_weight {WEIGHTS[int(mean.argmax())]}")


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default=BUNDLED, show_default=True)
@click.option("--split", default="val", show_default=True)
@click.option("--source", "sources", multiple=True, help="Ask only about images of this source.")
@click.option("--limit", type=click.IntRange(min=1), help="Ask only N questions, spread evenly.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write every figure and case here.")
def compare(
    data: Path, model: str, split: str, sources: tuple[str, ...], limit: int | None, json_path: Path | None
) -> None:
    """Zero-shot, each half of an example alone, and both, as a Markdown table."""
    store, segmenter = QuadrupletStore.open(data), _loaded(model)
    if sources:
        store.quadruplets = [q for q in store.quadruplets if store.records[q.image].source in sources]
    config, reports = segmenter.model.config, {}
    click.echo("| set | structure | | " + " | ".join(FIGURES) + " |\n" + "|---" * (len(FIGURES) + 3) + "|")
    for name, (shown, weight, context) in HALVES.items():
        weight = config.shot_weight if weight is None else weight
        segmenter.model.config = replace(config, shot_weight=weight, shots_in_context=context)
        reports[name] = evaluate(segmenter, store, split=split, limit=limit, shots=int(shown))
        for row in reports[name].rows:
            cells = [row.source, row.concept, name, *figures(row).values()]
            click.echo("| " + " | ".join(cell.replace("\n", "<br>") for cell in cells) + " |")
    if json_path:
        with atomic_write(json_path) as file:
            file.write(orjson.dumps(reports, option=orjson.OPT_INDENT_2))


def _loaded(model: str) -> Any:
    torch.set_num_threads(1)
    return load_model(model, device="cpu")


if __name__ == "__main__":
    main()
