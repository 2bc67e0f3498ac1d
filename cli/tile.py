"""`wsiseg tile`: patches of a slide, or of a folder of them, in Zarr stores, read once and queried many times."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsiseg.cli.options import (
    Finite,
    backend_option,
    on_bad_tile_option,
    progress_bar,
    slide_mpp_option,
    tell,
    told_when_stopped,
)
from wsiseg.cli.output import tell_failed

if TYPE_CHECKING:
    from wsiseg.tiles import TileStore


@click.command("tile")
@click.argument("slide")
@click.option("--out", required=True, type=click.Path(), help="The store to write, slide.zarr; of a folder, a folder.")
@click.option(
    "--mpp",
    default=0.5,
    show_default=True,
    type=Finite(0, 1000, min_open=True),
    help="Microns per pixel of the patches; the bundled model is made for 0.35 (cells) and 1.1 (tissue).",
)
@click.option(
    "--tile-size",
    default=512,
    show_default=True,
    type=int,
    help="Side of a patch in pixels; the bundled model is made for 256.",
)
@click.option("--overlap", default=64, show_default=True, type=int, help="Pixels that neighbours share.")
@click.option(
    "--min-tissue",
    default=0.02,
    show_default=True,
    type=Finite(0, 1),
    help="Keep patches with at least this part of tissue; 0 keeps all.",
)
@click.option("--no-pixels", is_flag=True, help="Keep only where the patches lie; the slide is read again at use.")
@on_bad_tile_option
@slide_mpp_option
@backend_option
@click.option("--recursive", is_flag=True, help="A folder: look in subfolders too.")
@click.pass_context
def command(
    ctx: click.Context,
    slide: str,
    out: str,
    mpp: float,
    tile_size: int,
    overlap: int,
    min_tissue: float,
    no_pixels: bool,
    slide_mpp: Any,
    recursive: bool,
    **options: Any,
) -> None:
    """Stream the patches of SLIDE (a path or URL) that hold tissue into a Zarr store; of a folder, each slide's.

    Interrupted at any moment, the same command goes on where it stopped. A store of another slide or of
    another grid is never overwritten. Exit code 3: some slides of a folder failed, the others are done.

    \b
    wsiseg tile slide.svs --out slide.zarr
    wsiseg tile slides/ --out stores/
    """
    from wsiseg import fleet
    from wsiseg.tiles import GridSpec

    spec = GridSpec(mpp, tile_size, overlap, min_tissue)
    options["pixels"] = not no_pixels
    with told_when_stopped("the same command goes on from there"), progress_bar("tiles") as progress:
        options["progress"] = progress
        if not os.path.isdir(slide):
            if recursive:
                raise click.UsageError("--recursive is for a folder.", ctx)
            store = fleet.tile_slide(slide, Path(out), spec, slide_mpp=slide_mpp, **options)
            done: list[tuple[str, TileStore | str]] = [(slide, store)]
        else:
            if not out:  # of a variable of the shell that is not set: it would be the folder it is typed in
                raise click.UsageError("many slides need --out FOLDER.", ctx)
            jobs = fleet.jobs_in_folder(slide, None, recursive=recursive, slide_mpp=slide_mpp)
            done = [(job.source, made) for job, made in fleet.tile_slides(jobs, Path(out), spec, **options)]
    for _, made in done:
        if not isinstance(made, str):
            left_out = len(made.attributes.left_out)
            short = f", {left_out} of them left out" if left_out else ""
            tell(f"{made.path}: {len(made.grid)} tiles of {tile_size} px at {mpp:g} µm/px{short}")
    ctx.exit(tell_failed([(source, made) for source, made in done if isinstance(made, str)], len(done), out))
