"""`wsiseg data`: training data in, chains for it, and a look at what is in a store."""

from __future__ import annotations

import click

from wsiseg.cli.data_annotate import annotate_command
from wsiseg.cli.options import Finite, progress_bar, tell
from wsiseg.cli.review import review_command
from wsiseg.errors import DataError


@click.group("data", short_help="Import, inspect and review training data.")
def command() -> None:
    """Turn images and masks into quadruplets (image, mask, query, reasoning), see what a store holds, review it."""


command.add_command(annotate_command)
command.add_command(review_command)


@command.command("import")
@click.argument("name", metavar="SET")
@click.argument("path", type=click.Path(exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(), help="The store to write, for example glas.zarr.")
@click.option("--label", help="For `folder`: what the masks outline, for example gland.")
@click.option(
    "--mpp",
    type=Finite(0, 50, min_open=True),
    help="For `folder`: microns per pixel of the images. For `qupath`: those at which slides are cut, 0.5 by default.",
)
def import_command(name: str, path: str, out: str, label: str | None, mpp: float | None) -> None:
    """Import SET from PATH.

    SET is glas, crag, monuseg, pannuke, camelyon16 or camelyon17 (as downloaded), ebhi_seg, nuinsseg, … (with an
    index.csv), `open` (all known sets below PATH that may train shared weights), `folder` (any images/ and masks/
    with equal names), or `qupath` (what export.groovy writes of a QuPath project, or slides with a GeoJSON beside
    each; see docs/qupath.md).
    """
    from wsiseg.training.data.build import import_folder, import_open, import_qupath, import_set

    if (name != "folder" and label) or (name not in ("folder", "qupath") and mpp):
        raise click.UsageError("--label is for `wsiseg data import folder` only, --mpp for that and for `qupath`")
    if name == "folder":
        if not label or not mpp:
            raise click.UsageError("a folder needs --label (what the masks outline) and --mpp (µm per pixel)")
        store = import_folder(path, out, label=label, mpp=mpp)
    elif name == "qupath":
        store = import_qupath(path, out, mpp=mpp or 0.5)
    elif name == "open":
        store = import_open(path, out)
    else:
        store = import_set(name, path, out)
    asked = store.quadruplets
    absent = sum(not question.present for question in asked)
    tell(f"{out}: {len(store)} images, {len(asked)} questions, {absent} of them for what is absent")


@command.command("stats")
@click.argument("path", metavar="STORE", type=click.Path())
def stats_command(path: str) -> None:
    """Show what STORE holds: images, patients, scales and questions by source and split; structures; licences.

    Of each structure: on how many images, how many objects, what share of the image (median; 5 % and 95 % of the
    images lie below the figures in brackets), and how wide.
    """
    from rich.console import Console
    from rich.table import Table

    from wsiseg.training.data.stats import parts, structures
    from wsiseg.training.data.store import QuadrupletStore

    store = QuadrupletStore.open(path)
    with progress_bar("measuring") as advance:
        measured = structures(store, advance)
    table = Table("source", "split", "images", "groups", "µm/px", "px", "there", "absent", "chains", box=None)
    for part in parts(store):
        scales = [f"{mpp:g}" if mpp else "?" for mpp in part.mpp]
        sizes = [f"{width}×{height}" for height, width in part.sizes]
        counts = (part.there, part.absent, part.chains)
        table.add_row(
            part.source, part.split, str(part.images), str(part.groups), _few(scales), _few(sizes), *map(str, counts)
        )
    console = Console()
    console.print(table, highlight=False)
    table = Table("structure", "split", "images", "objects", "of the area", "wide", "there", "absent", box=None)
    for row in measured:
        low, middle, high = (f"{100 * share:.3g}" for share in row.area)
        wide = f"{row.diameter_um:.3g} µm" if row.diameter_um else "?"
        table.add_row(
            row.concept, row.split, str(row.images), str(row.objects), f"{middle} % ({low}–{high})", wide,
            str(row.there), str(row.absent),
        )  # fmt: skip
    console.print(table, highlight=False)
    for info in store.sources.values():
        limits = " RESEARCH ONLY: train no weights that you share." if info.research_only else ""
        console.print(f"{info.name}: {info.licence}; {info.attribution}; scale {info.mpp}.{limits}", highlight=False)


def _few(words: list[str]) -> str:
    return ", ".join(words[:2]) + (f" and {len(words) - 2} more" if len(words) > 2 else "")


@command.command("split")
@click.argument("path", metavar="STORE", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The store to write.")
@click.option(
    "--val", type=Finite(0, 1, max_open=True), default=0.2, show_default=True, help="Share to validate."
)
@click.option(
    "--test",
    type=Finite(0, 1, max_open=True),
    help="Share to test; without it, images that are for tests stay so and no others become so.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another one, another division.")
def split_command(path: str, out: str, val: float, test: float | None, seed: int) -> None:
    """Divide STORE anew into training, validation and test, by patient, each source on its own.

    Images of one group (patient, slide, field), and groups that share an image, stay together. The same seed gives the
    same division.
    """
    from wsiseg.files import check_writable
    from wsiseg.training.data.split import split_store
    from wsiseg.training.data.stats import parts
    from wsiseg.training.data.store import QuadrupletStore

    shares = {"val": val} | ({} if test is None else {"test": test})
    check_writable(out, replaces=lambda _: False)  # all images are compared first
    store = QuadrupletStore.open(path)
    with progress_bar("looking for images in two groups") as advance:
        divided = split_store(store, out, shares, seed=seed, progress=advance)
    for part in parts(divided):
        tell(f"{part.source} {part.split}: {part.images} images of {part.groups} groups")


@command.command("sample")
@click.argument("path", metavar="STORE", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The store to write.")
@click.option("--questions", "count", type=click.IntRange(min=1), required=True, help="How many questions.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only of this split.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another one, other questions.")
def sample_command(path: str, out: str, count: int, split: str | None, seed: int) -> None:
    """Draw a small store out of STORE: from each source and structure in turn, there and absent."""
    from wsiseg.training.data.sample import draw_questions, sample_store
    from wsiseg.training.data.store import QuadrupletStore

    store = QuadrupletStore.open(path)
    questions = draw_questions(store, count, split=split, seed=seed)
    if not questions:
        raise DataError(f"{path} holds no question{f' of the split {split}' if split else ''}")
    small = sample_store(store, out, questions)
    tell(f"{out}: {len(small)} images, {len(small.quadruplets)} questions")


@command.command("stain-stats")
@click.argument("path", metavar="STORE", type=click.Path())
def stain_stats_command(path: str) -> None:
    """Measure how the stain varies over STORE's training images, for `wsiseg train --stage ssl`.

    Mean and standard deviation of lightness and colour (CIELAB) of every image's tissue; their distributions are
    saved beside the store: open.zarr gives open.stain.json.
    """
    from wsiseg.files import check_writable
    from wsiseg.training.data.store import QuadrupletStore
    from wsiseg.training.stain import NAMES, measure, save_statistics, statistics_path

    store = QuadrupletStore.open(path)
    check_writable(statistics_path(path))  # all images are measured first
    with progress_bar("stain") as advance:
        statistics = measure(store, advance)
    save_statistics(statistics, statistics_path(path))
    for name, fitted in zip(NAMES, statistics.fitted, strict=True):
        tell(f"{name:<12} {fitted.location:7.1f} ± {fitted.scale:5.1f}  {fitted.distribution}")
    tell(f"{statistics_path(path)}: {statistics.images} images")
