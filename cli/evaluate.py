"""`wsiseg evaluate MODEL DATA…`: the figures of a model on data sets, as a table on stdout and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wsiseg.cli.options import device_option, example_mpp_option, example_option, progress_bar, weights_option

if TYPE_CHECKING:
    from wsiseg.model.config import Weights


@click.command("evaluate", short_help="Measure a model on data sets.")
@click.argument("model")
@click.argument("data", type=click.Path(), nargs=-1, required=True)
@click.option("--split", default="val", show_default=True, help="Which part of DATA: train, val, test.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Ask only N questions of each store, spread evenly over the split."
)
@click.option(
    "--shots",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Before each question, show N examples of the same structure from other patients of the split.",
)
@example_option
@example_mpp_option
@click.option("--json", "json_path", type=click.Path(), help="Also write every figure and case to this file.")
@device_option
@weights_option
def command(
    model: str,
    data: tuple[str, ...],
    split: str,
    limit: int | None,
    shots: int,
    example_files: tuple[tuple[str, str], ...],
    example_mpp: float | None,
    json_path: str | None,
    device: str | None,
    weights: Weights,
) -> None:
    """Ask MODEL every question of DATA and compare its masks, silences and chains with the truth.

    MODEL is `tiny` (the bundled one) or a folder; DATA stores written by `wsiseg data import`, or folders of such.
    Dice, gIoU, cIoU and HD95 with 95 % bootstrap intervals over patients, presence accuracy, BLEU-4 and
    token F1, per set and concept.
    """
    from rich.console import Console

    from wsiseg.files import atomic_write, check_writable
    from wsiseg.inference.shots import read_shot
    from wsiseg.model import load_model
    from wsiseg.training.evaluate import evaluate, open_stores
    from wsiseg.training.figures import report_json, report_table

    if example_mpp and not example_files:
        raise click.UsageError("--example-mpp is for an --example.")
    if json_path == "-":
        raise click.UsageError("--json needs the name of a file: the table goes to stdout.")
    if json_path:
        check_writable(json_path)
    stores = open_stores(data)
    examples = [read_shot(image, mask, example_mpp) for image, mask in example_files]
    segmenter = load_model(model, device=device, weights=weights)
    with progress_bar(f"evaluate {segmenter.name}") as progress:
        report = evaluate(
            segmenter, *stores, split=split, limit=limit, shots=shots, examples=examples, progress=progress
        )
    if json_path:
        with atomic_write(json_path) as file:
            file.write(report_json(report))
    console, table = Console(), report_table(report)
    # On a narrow terminal a wrapped table is easier to read than a cropped one.
    wanted = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, wanted)
    console.print(table)
