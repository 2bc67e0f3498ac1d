"""`wsiseg render`: a GeoJSON drawn over its slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import (
    PicturePath,
    backend_option,
    max_px_option,
    origin_of_file_option,
    save_picture,
    slide_mpp_option,
    tell,
    tell_if_large,
    warn_if_misplaced,
)


@click.command("render")
@click.argument("slide")
@click.argument("geojson", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=PicturePath(), help="Picture to write, .png or .jpg.")
@max_px_option(2000)
@origin_of_file_option
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
    from wsiseg.belonging import origin_of, take_scale
    from wsiseg.files import check_apart
    from wsiseg.geojson import read_collection
    from wsiseg.render import overlay
    from wsiseg.review import is_kept
    from wsiseg.slide import open_slide

    check_apart(out, slide, geojson)
    tell_if_large(geojson)
    annotations, run = read_collection(geojson)
    kept = [annotation for annotation in annotations if is_kept(annotation.metadata)]
    origin = origin or origin_of(run)
    with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened:
        warn_if_misplaced(annotations, run, opened, origin)
        take_scale(opened, run)
        picture = overlay(opened, kept, origin=origin, max_px=max_px)
    save_picture(picture, out)
    rejected = f", without {len(annotations) - len(kept):,} that were rejected" if len(kept) < len(annotations) else ""
    tell(f"wsiseg: drew {len(kept):,} annotations on {out}{rejected}")
