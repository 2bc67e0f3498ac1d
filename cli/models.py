"""`wsiseg models`: which weights there are, where to get them, and models made of them."""

from __future__ import annotations

from pathlib import Path

import click

from wsiseg.cli.options import tell


@click.group("models", short_help="List, fetch, build, merge and inspect models.")
def command() -> None:
    """Published weights in, model folders out.

    \b
    wsiseg models fetch qwen2.5-vl-7b
    wsiseg models fetch h-optimus-0
    wsiseg models build start --language qwen2.5-vl-7b --pathology h-optimus-0 --medsam medsam_vit_b.pth
    """


@command.command("list")
def list_command() -> None:
    """List the bundled model and the published parts that `fetch` and `build` know by name."""
    from wsiseg.model import BUNDLED
    from wsiseg.model.published import PUBLISHED

    rows = [("name", "use", "licence", "hub")]
    rows += [(BUNDLED, "whole model", "bundled", "-")]
    rows += [
        (entry.name, entry.role, entry.licence, entry.repository + (" (gated)" if entry.gated else ""))
        for entry in PUBLISHED.values()
    ]
    rows += [("medsam_vit_b.pth", "MedSAM", "Apache-2.0", "by hand: github.com/bowang-lab/MedSAM")]
    rows += [("sam_vit_{b,l,h}_*.pth", "SAM", "Apache-2.0", "by hand: github.com/facebookresearch/segment-anything")]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


@command.command("show")
@click.argument("model")
def show_command(model: str) -> None:
    """Show what MODEL is made of: sizes, memory, parts, licences. MODEL is `tiny` or a folder."""
    from wsiseg.model import model_folder
    from wsiseg.model.base import find_base, is_partial
    from wsiseg.model.config import load_config
    from wsiseg.model.folder import caution, folder_fingerprint, own_tensors, stored_tensors
    from wsiseg.model.memory import parameter_counts

    folder = model_folder(model)
    config = load_config(folder / "config.json")
    stored = own_tensors(folder)
    click.echo(f"{config.name}  {folder_fingerprint(folder)}  {folder}")
    for part, count in parameter_counts(stored_tensors(folder)).items():
        click.echo(f"  {part:18} {count / 1e6:10.1f} M parameters")
    size = sum(value.numel() * value.element_size() for value in stored.values())
    click.echo(f"  {'stored':18} {size / 1e9:10.2f} GB, {', '.join(sorted({str(v.dtype) for v in stored.values()}))}")
    click.echo(f"  tiles of {config.tile_size} px at {config.mpp} um/px, cells at {config.cell_mpp} um/px")
    if is_partial(folder):
        click.echo(f"  holds what training changed; the rest is in {find_base(folder)}")
    for record in config.parts:
        click.echo(f"  {record.role}: {record.source}, licence {record.licence}, sha256 {record.sha256[:16]}")
    if config.outlines:
        click.echo(f"  learnt to outline: {', '.join(config.outlines)}")
    if warning := caution(folder):
        click.echo(f"  {warning}")
    if config.untrained:
        click.echo(f"  not trained yet: {', '.join(config.untrained)}; a start for `wsiseg train`, not for segmenting")


@command.command("fetch")
@click.argument("name", metavar="NAME[@REVISION]")
def fetch_command(name: str) -> None:
    """Download published weights from the hub and print their folder.

    The folder ends in the commit; NAME@COMMIT fetches those same weights again. After an interruption, fetch again:
    files that arrived whole are kept. HF_HOME says where, HF_HUB_OFFLINE=1 asks nothing of the network.
    """
    from wsiseg.model.hub import fetch

    click.echo(fetch(name))


@command.command("build")
@click.argument("out", type=click.Path())
@click.option("--language", required=True, help="Qwen2.5-VL: a fetched name, a folder, or NAME=FOLDER.")
@click.option("--pathology", required=True, help="The pathology encoder: a fetched name, a folder, or NAME=FOLDER.")
@click.option("--medsam", type=click.Path(), help="MedSAM's checkpoint, medsam_vit_b.pth.")
@click.option("--sam", type=click.Path(), help="Or a SAM checkpoint, sam_vit_b, _l or _h.")
def build_command(out: str, language: str, pathology: str, medsam: str | None, sam: str | None) -> None:
    """Assemble the model folder OUT from published parts: the start of training at the paper's size."""
    checkpoint = medsam or sam
    if checkpoint is None or (medsam and sam):
        raise click.UsageError("give one of --medsam and --sam: they normalise pixels differently")

    from wsiseg.model.build import build_folder
    from wsiseg.model.card import restricted

    kind = "MedSAM" if medsam else "SAM"
    config = build_folder(Path(out), language=language, pathology=pathology, sam=Path(checkpoint), sam_kind=kind)
    tell(f"{out}: not trained yet: {', '.join(config.untrained)}; its README.md has the licences")
    for part in restricted(config):
        tell(f"{out}: what you train from it must not be passed on: {part}")


@command.command("merge")
@click.argument("model")
@click.argument("adapter", type=click.Path(exists=True, file_okay=False))
@click.argument("out", type=click.Path())
def merge_command(model: str, adapter: str, out: str) -> None:
    """Fold the LoRA ADAPTER (a folder as peft saves it) into MODEL and write the model folder OUT."""
    from wsiseg.model.card import restricted
    from wsiseg.model.lora import merge_folder

    for part in restricted(merge_folder(model, Path(adapter), Path(out))):
        tell(f"{out}: must not be passed on: {part}")
