"""`wsiseg render`: a GeoJSON drawn over its slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import backend_option, slide_mpp_option

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@click.command("render")
@click.argument("slide")
@click.argument("geojson", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Picture to write, .png or .jpg.")
@click.option(
    "--max-px",
    type=click.IntRange(16, 16384),
    default=2000,
    show_default=True,
    help="Longer side of the picture.",
)
@click.option(
    "--origin",
    type=click.Choice(["qupath", "slide"]),
    help="Where 0,0 of the GeoJSON lies; by default what the file says, else as in QuPath.",
)
@slide_mpp_option
@backend_option
def command(
    slide: str,
    geojson: Path,
    out: Path,
    max_px: int,
    origin: Any,
    slide_mpp: Any,
    backend: str | None,
) -> None:
    """Draw the outlines of GEOJSON over SLIDE, with a legend and a scale bar."""
    if out.suffix.lower() not in FORMATS:
        raise click.BadParameter(f"{out} must end in .png or .jpg", param_hint="--out")
    from wsiseg.files import atomic_write
    from wsiseg.geojson import read_collection
    from wsiseg.render import overlay
    from wsiseg.slide import open_slide

    annotations, run = read_collection(geojson)
    if origin is None:
        origin = "slide" if run.get("origin") == "slide" else "qupath"
    with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened:
        picture = overlay(opened, annotations, origin=origin, max_px=max_px)
    with atomic_write(out) as file:
        picture.save(file, FORMATS[out.suffix.lower()])
    click.echo(f"wsiseg: drew {len(annotations):,} annotations on {out}", err=True)
