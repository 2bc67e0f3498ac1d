"""The paper's ablations in miniature: every variant over several seeds, resumable, in one table.

    wsiseg data stain-stats open.zarr
    python -m benchmarks.quality.ablation benchmarks/quality/ablation.yaml --out runs/ablation --write docs/ablation.md

Runs, variants and held-out sets are those of the recipe file. A run is a folder OUT/seed<N>/<run>: done, it is never
made again; killed, it goes on from its last checkpoint. Each answer to a held-out set is a file beside the run's
model. The table is written anew after every variant, from what there is.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from scipy import stats

from benchmarks.quality import eager, seg_zero
from benchmarks.quality.fixed_seg import FixedSeg
from wsiseg.errors import DataError
from wsiseg.files import atomic_write
from wsiseg.fleet.claim import claimed
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model import load_model, model_folder
from wsiseg.model.folder import load_folder, save_model
from wsiseg.training import pretrain, sft, ssl
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.evaluate import evaluate
from wsiseg.training.figures import ALL
from wsiseg.training.recipe import load_recipe
from wsiseg.training.rl import train as rl
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.run import has_state, read_figures

STAGES: dict[str, tuple[Any, Any]] = {
    "ssl": (ssl.SslRecipe, ssl.train),
    "pretrain": (pretrain.PretrainRecipe, pretrain.train),
    "sft": (sft.SftRecipe, sft.train),
    "rl": (RlRecipe, rl.train),
    "seg-zero": (sft.SftRecipe, seg_zero.train),
    "eager": (sft.SftRecipe, eager.train),
}
SEGMENTERS = {"own": PathChatSegmenter, "fixed-seg": FixedSeg, "seg-zero": seg_zero.SegZero}
FIGURES = ("dice", "emission", "false_emission", "bleu4", "token_f1")


@dataclass(frozen=True)
class HeldOut:
    """A set that no run has seen."""

    data: str
    split: str = "test"
    limit: int | None = None

    @property
    def name(self) -> str:
        return f"{Path(self.data).stem}, {self.split}"


@dataclass(frozen=True)
class Variant:
    """A line of the table: the run that it ends with, how it is asked (`SEGMENTERS`), and what the paper reports."""

    name: str
    run: str
    asked: str = "own"
    paper_dice: float | None = None
    paper_variance: float | None = None
    paper_steps: int | None = None


@dataclass(frozen=True)
class Ablation:
    """The recipe file."""

    data: str
    runs: dict[str, dict[str, Any]]
    variants: list[Variant]
    held_out: list[HeldOut]
    model: str = "tiny"
    stem_weights: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    title: str = "Ablation"
    note: str = ""  # what is to be said of the table

    def chain(self, run: str) -> list[str]:
        """The runs that `run` stands on, first to last. Raises DataError: one is missing, or they go in a circle."""
        names = [run]
        while True:
            if names[0] not in self.runs:
                raise DataError(f"there is no run {names[0]!r} in the recipe; it has: {', '.join(self.runs)}")
            start = self.runs[names[0]].get("start")
            if start is None:
                return names
            if start in names:
                raise DataError(f"the runs {' and '.join(names)} start from each other")
            names.insert(0, start)

    @property
    def possible(self) -> list[Variant]:
        """Variants that can be made: without `stem_weights`, none with a general encoder."""
        general = {name for name, run in self.runs.items() if run["stage"] == "imagenet"}
        return [v for v in self.variants if self.stem_weights or not general & set(self.chain(v.run))]


def read_ablation(path: Path) -> Ablation:
    """Raises DataError: it is no recipe of an ablation."""
    try:
        raw = yaml.safe_load(path.read_text())
        lists = {"variants": Variant, "held_out": HeldOut}
        for key, kind in lists.items():
            raw[key] = [kind(**item) for item in raw[key]]
        ablation = Ablation(**raw)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        known = ", ".join(f.name for f in fields(Ablation))
        raise DataError(f"{path} is no recipe of an ablation ({error}); its keys: {known}") from error
    for variant in ablation.variants:
        if variant.asked not in SEGMENTERS:
            raise DataError(f"variant {variant.name}: asked {variant.asked!r} is none of {', '.join(SEGMENTERS)}")
        for name in ablation.chain(variant.run):
            stage = ablation.runs[name].get("stage")
            if stage not in STAGES and stage not in ("copy", "imagenet"):
                raise DataError(f"run {name}: stage {stage!r} is none of copy, imagenet, {', '.join(STAGES)}")
    return ablation


def make(ablation: Ablation, run: str, seed: int, out: Path) -> Path:
    """The model folder of a run, after it and those that it starts from were made, as far as they were not."""
    keys = dict(ablation.runs[run])
    stage, start = keys.pop("stage"), keys.pop("start", None)
    model = str(make(ablation, start, seed, out)) if start else ablation.model
    folder = out / f"seed{seed}" / run
    if (folder / "done.json").exists():
        return folder / "model"
    click.echo(f"seed {seed}: {run} ({stage}, from {model})", err=True)
    began, resume = time.monotonic(), has_state(folder)
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its first checkpoint
    if stage == "copy":
        shutil.copytree(model_folder(model), folder / "model")
    elif stage == "imagenet":
        general_encoder(model, str(ablation.stem_weights), folder / "model")
    else:
        recipe_class, train = STAGES[stage]
        fixed = {"data": ablation.data, "model": model, "seed": seed} | keys
        train(load_recipe(recipe_class, None, (), **fixed), folder, resume=resume)
    with atomic_write(folder / "done.json") as file:
        file.write(json.dumps({"seconds": time.monotonic() - began, "resumed": resume}).encode())
    return folder / "model"


def general_encoder(model: str, stem_weights: str, out: Path) -> None:
    """Write `model` with ImageNet's weights in the place of the pathology encoder's own."""
    changed = load_folder(model_folder(model))
    encoder: Any = changed.vlm.model.visual.encoder
    encoder.backbone.load_imagenet_weights(stem_weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(changed, out)


def ask(model: Path, variant: Variant, held_out: HeldOut) -> dict[str, float]:
    """`FIGURES` of a model on a held-out set, kept beside the model; emission is of greedy answers."""
    kept = _kept(model, variant, held_out)
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    own = load_model(model, device="cpu")
    assert isinstance(own, PathChatSegmenter)
    segmenter = SEGMENTERS[variant.asked](own.model, name=own.name, fingerprint=own.fingerprint)
    report = evaluate(segmenter, QuadrupletStore.open(held_out.data), split=held_out.split, limit=held_out.limit)
    rows = [row for row in report.rows if row.concept == ALL]
    values = {
        "dice": [(row.dice.value, row.n_present) for row in rows],
        "emission": [(row.sensitivity.value, row.n_present) for row in rows],
        "false_emission": [(1 - row.specificity.value, row.n_absent) for row in rows],
        "bleu4": [(row.bleu4.value, row.n_present + row.n_absent) for row in rows],
        "token_f1": [(row.token_f1.value, row.n_present + row.n_absent) for row in rows],
    }
    found = {name: _mean(pairs) for name, pairs in values.items()}
    with atomic_write(kept) as file:
        file.write(json.dumps(found).encode())
    return found


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    """Mean over the questions of all sources of a set."""
    known = [(value, count) for value, count in pairs if count and not np.isnan(value)]
    return float(np.average([v for v, _ in known], weights=[n for _, n in known])) if known else float("nan")


def dynamics(run: Path) -> dict[str, float]:
    """How an RL run went: gradient variance, stop regret, and the step at which it had converged.

    That is the first validation whose reward has made 95 % of the way from the start to the best one.
    """
    lines = read_figures(run, "train") if (run / "metrics.jsonl").exists() else []
    found = {}
    for name in ("gradient_variance", "stop_regret", "seconds"):
        values = [line[name] for line in lines if name in line]
        if values:
            found[name] = float(np.mean(values))
    asked = read_figures(run, "validation") if lines else []
    held_out = [(line["step"], line["reward"]) for line in asked if "reward" in line]
    if held_out and (best := max(reward for _, reward in held_out)) > held_out[0][1]:
        goal = held_out[0][1] + 0.95 * (best - held_out[0][1])
        found["converged"] = next(step for step, reward in held_out if reward >= goal)
    return found


def interval(values: Sequence[float], digits: int = 3) -> str:
    """Mean over seeds with the 95 % interval of Student's t.

    >>> interval([0.5, 0.6, 0.7])
    '0.600 ± 0.248'
    """
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    half = stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / len(known) ** 0.5
    return f"{np.mean(known):.{digits}f} ± {half:.{digits}f}"


def page(ablation: Ablation, out: Path, command: str) -> Iterator[str]:
    """The lines of docs/ablation.md, from the runs that are done."""
    yield f"# {ablation.title}\n"
    yield (
        "What the parts of training are worth, tried at the bundled model's size with few steps: a miniature of the "
        "paper's table, no reproduction. Every line is a mean over seeds with its 95 % interval (Student's t), from "
        "greedy answers; a model that is silent where "
        'something is counts Dice 0. "Dice, paper" stands beside each set and was measured on the paper\'s own data.\n'
    )
    yield f"```sh\n{command}\n```\n"
    if ablation.note:
        yield f"{ablation.note}\n"
    for held_out in ablation.held_out:
        yield f"## {held_out.name}\n"
        yield "| variant | seeds | Dice | `<SEG>` where due | where not due | BLEU-4 | token F1 | Dice, paper |"
        yield "|---|---|---|---|---|---|---|---|"
        for variant in ablation.possible:
            models = list(_made(ablation, variant, out))
            answers = [json.loads(k.read_text()) for k in (_kept(m, variant, held_out) for m in models) if k.exists()]
            cells = [interval([answer[name] for answer in answers]) for name in FIGURES]
            paper = "–" if variant.paper_dice is None else f"{variant.paper_dice:.2f}"
            yield f"| {variant.name} | {len(answers)} | " + " | ".join(cells) + f" | {paper} |"
        yield ""
    yield "## How training went\n"
    yield (
        "Converged: the first validation at which the reward has made 95 % of the way from the start to its best. "
        "The gradient's variance depends on the size of model and batch; the paper's definition is not known.\n"
    )
    yield "| variant | converged at step | paper | gradient variance | paper | stop regret | seconds a step |"
    yield "|---|---|---|---|---|---|---|"
    for variant in ablation.possible:
        went = [dynamics(model.parent) for model in _made(ablation, variant, out)]
        means = {
            name: interval([d[name] for d in went if name in d], digits)
            for name, digits in (("converged", 0), ("gradient_variance", 5), ("stop_regret", 3), ("seconds", 1))
        }
        yield (
            f"| {variant.name} | {means['converged']} | {variant.paper_steps or '–'} | {means['gradient_variance']} | "
            f"{variant.paper_variance or '–'} | {means['stop_regret']} | {means['seconds']} |"
        )


def _made(ablation: Ablation, variant: Variant, out: Path) -> Iterator[Path]:
    for seed in ablation.seeds:
        folder = out / f"seed{seed}" / variant.run
        if (folder / "done.json").exists():
            yield folder / "model"


def _kept(model: Path, variant: Variant, held_out: HeldOut) -> Path:
    asked = "" if variant.asked == "own" else f"-{variant.asked}"
    return model.parent / f"{Path(held_out.data).stem}-{held_out.split}-{held_out.limit}{asked}.json"


@click.command()
@click.argument("recipe", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of all runs.")
@click.option("--write", type=click.Path(path_type=Path), required=True, help="The page to write.")
def main(recipe: Path, out: Path, write: Path) -> None:
    """Make what is missing of every variant of RECIPE, seed by seed, ask it, and write the page."""
    ablation = read_ablation(recipe)
    command = f"python -m benchmarks.quality.ablation {recipe} --out {out} --write {write}"
    out.mkdir(parents=True, exist_ok=True)
    with claimed(out / ".claim"):  # two at once would train in one folder
        for seed in ablation.seeds:  # a whole table of one seed is worth more than three seeds of one line
            for variant in ablation.possible:
                model = make(ablation, variant.run, seed, out)
                for held_out in ablation.held_out:
                    ask(model, variant, held_out)
                with atomic_write(write) as file:
                    file.write("\n".join(page(ablation, out, command)).encode() + b"\n")


if __name__ == "__main__":
    main()
