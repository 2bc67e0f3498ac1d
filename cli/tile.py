"""`wsiseg tile`: a slide's patches in a Zarr store, read once and queried many times."""

from __future__ import annotations

from typing import Any

import click

from wsiseg.cli.options import backend_option, progress_bar, slide_mpp_option


@click.command("tile")
@click.argument("slide")
@click.option("--out", required=True, type=click.Path(), help="The store to write, for example slide.zarr.")
@click.option(
    "--mpp",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1000, min_open=True),
    help="Microns per pixel of the patches.",
)
@click.option("--tile-size", default=512, show_default=True, type=int, help="Side of a patch in pixels.")
@click.option("--overlap", default=64, show_default=True, type=int, help="Pixels that neighbours share.")
@click.option(
    "--min-tissue",
    default=0.02,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Keep patches with at least this part of tissue; 0 keeps all.",
)
@click.option("--no-pixels", is_flag=True, help="Keep only where the patches lie; the slide is read again at use.")
@slide_mpp_option
@backend_option
def command(
    slide: str,
    out: str,
    mpp: float,
    tile_size: int,
    overlap: int,
    min_tissue: float,
    no_pixels: bool,
    slide_mpp: Any,
    backend: str | None,
) -> None:
    """Stream the patches of SLIDE (a path or URL) that hold tissue into a Zarr store.

    Interrupted at any moment, the same command goes on where it stopped. A store of another slide or of
    another grid is never overwritten.
    """
    from wsiseg.slide import open_slide
    from wsiseg.tiles import GridSpec, plan_grid, write_store

    spec = GridSpec(mpp, tile_size, overlap, min_tissue)
    with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened, progress_bar("tiles") as progress:
        grid = plan_grid(opened, spec)
        write_store(opened, grid, out, pixels=not no_pixels, progress=progress)
    click.echo(f"{out}: {len(grid)} tiles of {tile_size} px at {mpp:g} µm/px", err=True)
