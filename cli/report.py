"""`wsiseg report`: one HTML page on what was found on a slide."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import (
    backend_option,
    origin_of_file_option,
    slide_mpp_option,
    tell,
    tell_if_large,
    warn_if_misplaced,
)
from wsiseg.cli.output import write_stdout


@click.command("report")
@click.argument("slide")
@click.argument("geojson", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="HTML file, or - for stdout."
)
@origin_of_file_option
@slide_mpp_option
@backend_option
def command(slide: str, geojson: Path, out: Path, origin: Any, slide_mpp: Any, backend: str | None) -> None:
    """Write one self-contained HTML page on the outlines of GEOJSON on SLIDE.

    It shows the slide with its outlines, areas and counts by class, sizes of objects, the most confident and the
    most doubtful outlines with what the model said, and what made them.
    """
    from wsiseg.belonging import origin_of, take_scale
    from wsiseg.files import atomic_write, check_apart
    from wsiseg.geojson import read_collection
    from wsiseg.report import write_report
    from wsiseg.slide import open_slide

    check_apart(out, slide, geojson)
    tell_if_large(geojson)
    annotations, run = read_collection(geojson)
    origin = origin or origin_of(run)
    with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened:
        warn_if_misplaced(annotations, run, opened, origin)
        take_scale(opened, run)
        write = partial(write_report, opened, annotations, run, origin=origin)
        if out == Path("-"):
            write_stdout(write)
            return
        with atomic_write(out) as file:
            write(file)
    tell(f"wsiseg: reported on {len(annotations):,} annotations in {out}")
