"""`wsiseg data`: training data in, chains for it, and a look at what is in a store."""

from __future__ import annotations

import click

from wsiseg.cli.data_annotate import annotate_command


@click.group("data", short_help="Import and inspect training data.")
def command() -> None:
    """Turn images and masks into quadruplets (image, mask, query, reasoning), and see what a store holds."""


command.add_command(annotate_command)


@command.command("import")
@click.argument("name", metavar="SET")
@click.argument("path", type=click.Path(exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(), help="The store to write, for example glas.zarr.")
@click.option("--label", help="For `folder`: what the masks outline, for example gland.")
@click.option(
    "--mpp",
    type=click.FloatRange(0, 50, min_open=True),
    help="For `folder`: microns per pixel of the images. For `qupath`: those at which slides are cut, 0.5 by default.",
)
def import_command(name: str, path: str, out: str, label: str | None, mpp: float | None) -> None:
    """Import SET from PATH.

    SET is glas, crag, monuseg, pannuke or camelyon16 (as downloaded), ebhi_seg, nuinsseg, … (with an index.csv),
    `open` (all known sets below PATH that may train shared weights), `folder` (any images/ and masks/ with equal
    names), or `qupath` (what export.groovy writes of a QuPath project; see docs/qupath.md).
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
    click.echo(f"{out}: {len(store)} images, {len(asked)} questions, {absent} of them for what is absent", err=True)


@command.command("stats")
@click.argument("path", metavar="STORE", type=click.Path())
def stats_command(path: str) -> None:
    """Show what STORE holds: images, groups, structures and questions per source and split, and licences."""
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from wsiseg.training.data.store import QuadrupletStore

    store = QuadrupletStore.open(path)
    parts = sorted({(record.source, record.split) for record in store.records})
    asked = Counter((store.records[q.image].source, store.records[q.image].split, q.present) for q in store.quadruplets)
    table = Table("source", "split", "images", "groups", "structures", "there", "absent", box=None)
    for source, split in parts:
        records = [record for record in store.records if (record.source, record.split) == (source, split)]
        structures = Counter(key for record in records for key in record.present)
        table.add_row(
            source,
            split,
            str(len(records)),
            str(len({record.group for record in records})),
            "\n".join(f"{key} {count}" for key, count in structures.most_common()) or "-",
            str(asked[source, split, True]),
            str(asked[source, split, False]),
        )
    console = Console()
    console.print(table)
    for info in store.sources.values():
        limits = " RESEARCH ONLY: train no weights that you share." if info.research_only else ""
        console.print(f"{info.name}: {info.licence}; {info.attribution}; scale {info.mpp}.{limits}", highlight=False)


@command.command("stain-stats")
@click.argument("path", metavar="STORE", type=click.Path())
def stain_stats_command(path: str) -> None:
    """Measure how the stain varies over STORE's training images, for `wsiseg train --stage ssl`.

    Mean and standard deviation of lightness and colour (CIELAB) of every image's tissue; their distributions are
    saved beside the store: open.zarr gives open.stain.json.
    """
    from wsiseg.cli.options import progress_bar
    from wsiseg.training.data.store import QuadrupletStore
    from wsiseg.training.stain import NAMES, measure, save_statistics, statistics_path

    store = QuadrupletStore.open(path)
    with progress_bar("stain") as advance:
        statistics = measure(store, advance)
    save_statistics(statistics, statistics_path(path))
    for name, fitted in zip(NAMES, statistics.fitted, strict=True):
        click.echo(f"{name:<12} {fitted.location:7.1f} ± {fitted.scale:5.1f}  {fitted.distribution}", err=True)
    click.echo(f"{statistics_path(path)}: {statistics.images} images", err=True)
