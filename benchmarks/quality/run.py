"""The quality table: the model beside baselines that read no words, same questions, in docs/quality.md.

    python -m benchmarks.quality.run glas.zarr nuinsseg.zarr --unet runs/unet.pt

Each method and data set is measured by itself and kept in docs/quality.json; a later run with other methods
or sets adds to the table or replaces its own rows, whatever else is there stays.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from benchmarks.quality.baselines import AllForeground, Baseline, ClosedSet, StainThreshold
from wsiseg.files import atomic_write
from wsiseg.inference import Segmenter
from wsiseg.model import BUNDLED, load_model
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.evaluate import evaluate
from wsiseg.training.figures import FIGURES, figures

MODELS = ("model", "earlier")
METHODS = (*MODELS, "foreground", "stain", "unet")
HEADER = """# How good the masks are

Measured masks, silences and words of the bundled model, beside baselines. Research use only. One line per data set,
structure and method; below a figure stands its 95 % bootstrap interval over patients (organs or images, where
patients are not known). Questions of val and test are worded as no question of training was; those that only ask for
a name of training are read plainly, as in use ([model.md](model.md)). The baselines read no words: *all foreground*
and *haematoxylin, Otsu* answer every question alike; the *U-Net* is told which structure is meant, is of the model's
size, started from the same ImageNet weights and was trained on the same views. It has a channel for each structure
that it learnt; of anything else it draws nothing, which is no merit in the column "− silent".

**Time.** The model has had eleven and a half core-hours and nine minutes of GPUs, the U-Net half of that: 784 steps of
48 views in 4.4 minutes on the GPU of the model's last leg, and 1,173 of 16 in 168 minutes of two cores. So beside it
stand two *earlier* weights of the model, asked as it is today (model.safetensors of an earlier commit in a copy of
today's folder), and the U-Net's time lies between theirs: 1bb9ece0 (of 6f81d8e) had no GPU and at most the eleven and a
half core-hours, where the U-Net's GPU steps alone would, at its own rate, have taken it eleven; f863f49c (of a27c0ae)
had them all, and as many minutes of a GPU as the U-Net.

- n +/−: questions about what is there, and about what is not.
- Dice: overlap of mask and truth, 1 at best. HD95: distance of their edges, 95th percentile. Both are means over the
  questions about what is there; silence scores a Dice of 0 and the image's diagonal.
- gIoU, as LISA: mean intersection over union of all questions, silence about what is absent scoring 1; "+/−" its two
  halves.
- cIoU: all intersections over all unions.
- "+ found": share of the questions with a mask where one is due. "− silent": share without where none is due.
  presence: both together.
- Rows of one set are of the same questions only where n is the same: a row keeps the questions of the run that made it.
- An interval without width means that all groups agree, not that nothing is uncertain.
- BLEU-4, token F1: the words of the model's chain against the annotator's. s: seconds per question, on the machine and
  the number of threads of that run (the model's rows: one core), so that rows of different runs do not compare.
"""


def baseline(
    method: str, like: Segmenter, store: QuadrupletStore, unet: Path | None, device: str
) -> Baseline:
    if method == "foreground":
        return AllForeground(like)
    if method == "stain":
        return StainThreshold(like)
    from benchmarks.quality.train_unet import load

    if unet is None:
        raise click.UsageError("--method unet needs --unet, a checkpoint of benchmarks.quality.train_unet")
    network, state = load(unet, device)
    channels = state["settings"]["channels"]
    concept_of = {question.query: question.concept for question in store.quadruplets}
    name = f"U-Net, {state['step']} steps, {state['seconds'] / 60:.0f} min"
    return ClosedSet(name, like, network, channels, concept_of, device)


def markdown(entries: list[dict[str, Any]]) -> str:
    """The page: Dice and silence at a glance, then all figures, one table per data set and split."""
    return "\n".join(
        [
            HEADER,
            *_glance(entries, "Dice where something is due", "Dice", questions=0),
            *_glance(entries, "Share of silence where nothing is due", "− silent", questions=1),
            *_sections(entries),
        ]
    )


def _glance(entries: list[dict[str, Any]], title: str, figure: str, *, questions: int) -> Iterator[str]:
    """One figure, without its interval: a row per set and structure, a column per method.

    questions: which of the two numbers of "n +/−" it is a mean over; where that is 0 there is no row. Nor is there one
        for all structures of a set that has a single one.
    """
    methods = list(dict.fromkeys(entry["name"] for entry in entries))
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row, entry in _ordered(entries):
        asked = row["n +/−"].split("\n")[questions]
        if asked != "0":
            found = cells.setdefault((row["set"], row["concept"], entry["split"], asked), {})
            found[entry["name"]] = row[figure].partition("\n")[0]
    yield f"\n## {title}\n"
    rows_of = Counter((source, split) for source, _, split, _ in cells)
    yield from _table(
        ("set", "structure", "split", "questions", *methods),
        (
            [source, concept, split, asked, *(found.get(method, "") for method in methods)]
            for (source, concept, split, asked), found in cells.items()
            if concept != "all" or rows_of[source, split] > 2
        ),
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (headings, ["---"] * len(headings), *rows):
        yield "| " + " | ".join(cell.replace("\n", "<br>") for cell in cells) + " |"


def _ordered(entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(row, its entry), by set, all structures of it first."""
    rows = [(row, entry) for entry in entries for row in entry["rows"]]
    return sorted(rows, key=lambda pair: (pair[0]["set"], pair[0]["concept"] != "all", pair[0]["concept"]))


def _sections(entries: list[dict[str, Any]]) -> Iterator[str]:
    for data, split in dict.fromkeys((entry["data"], entry["split"]) for entry in entries):
        here = [entry for entry in entries if (entry["data"], entry["split"]) == (data, split)]
        yield f"\n## {data}, {split}\n"
        yield from _table(
            ("set", "structure", "method", *FIGURES, "command"),
            (
                [row["set"], row["concept"], entry["name"], *(row[name] for name in FIGURES), f"`{entry['command']}`"]
                for row, entry in _ordered(here)
            ),
        )


@click.command()
@click.argument("data", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help="earlier: the weights of --model are older ones, and replace no others. [default: the rest; unet with --unet]",
)
@click.option("--model", default=BUNDLED, show_default=True, help="Measured; sets the tiles' geometry.")
@click.option("--unet", type=click.Path(exists=True, path_type=Path), help="Checkpoint of train_unet.")
@click.option("--split", help="[default: val, or test where a store has no val]")
@click.option("--limit", type=click.IntRange(min=1), help="Ask only N questions of each set, spread evenly.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/quality.md"), show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help='CPU threads of torch. With 1, "s" compares methods: one core answers one question at a time in all of them.',
)
def main(
    data: tuple[Path, ...],
    methods: tuple[str, ...],
    model: str,
    unet: Path | None,
    split: str | None,
    limit: int | None,
    out: Path,
    device: str,
    threads: int,
) -> None:
    """Measure methods on every store of DATA and (re)write the table."""
    import torch

    torch.set_num_threads(threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = out.with_suffix(".json")
    entries: list[dict[str, Any]] = orjson.loads(kept.read_bytes()) if kept.exists() else []
    segmenter = load_model(model, device=device)
    methods = methods or tuple(m for m in METHODS if m != "earlier" and (unet or m != "unet"))
    for path in data:
        store = QuadrupletStore.open(path)
        part = split or ("val" if store.indices(split="val") else "test")
        for method in methods:
            is_model = method in MODELS
            answerer = segmenter if is_model else baseline(method, segmenter, store, unet, device)
            print(f"{answerer.name} on {path}", file=sys.stderr, flush=True)
            report = evaluate(answerer, store, split=part, limit=limit)
            entry = {
                "method": method,
                "name": _name(method, answerer),
                "fingerprint": answerer.fingerprint,
                "data": path.name,
                "split": part,
                "command": command_line(method, model, path, unet, part, limit),
                "rows": [{"set": row.source, "concept": row.concept, **figures(row)} for row in report.rows],
                "figures": report.rows,
            }
            key = ("method", "data", "split", *(("name",) if method == "earlier" else ()))
            entries = [old for old in entries if any(old[k] != entry[k] for k in key)] + [entry]
            entries.sort(key=lambda e: (e["data"], e["split"], METHODS.index(e["method"])))
            # Written after each measurement: an interrupted run keeps what it has.
            with atomic_write(kept) as file:
                file.write(orjson.dumps(entries, option=orjson.OPT_INDENT_2))
            with atomic_write(out) as file:
                file.write(markdown(entries).encode() + b"\n")


def _name(method: str, answerer: Segmenter | Baseline) -> str:
    if method not in MODELS:
        return answerer.name
    return f"{'earlier ' * (method == 'earlier')}{answerer.name} ({answerer.fingerprint[:8]})"


def command_line(
    method: str, model: str, path: Path, unet: Path | None, split: str, limit: int | None
) -> str:
    """What to type for this row alone."""
    asked = f"--split {split}" + (f" --limit {limit}" if limit else "")
    if method in MODELS:
        return f"wsiseg evaluate {model} {path.name} {asked}"
    network = f" --unet {unet}" if method == "unet" else ""
    return f"python -m benchmarks.quality.run {path.name} --method {method}{network} --model {model} {asked}"


if __name__ == "__main__":
    main()
