"""`wsiseg convert`: outlines, also those that a person corrected, in the format of another program."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import (
    backend_option,
    format_option,
    origin_of_file_option,
    slide_mpp_option,
    tell,
    tell_if_large,
    warn_if_misplaced,
)
from wsiseg.cli.output import write_stdout


@click.command("convert")
@click.argument("geojson", type=click.Path(path_type=Path))
@format_option
@click.option("--out", default="-", help="Write the outlines here instead of stdout.")
@click.option("--slide", help="The slide of the outlines: where GEOJSON does not say (QuPath's exports), or it moved.")
@origin_of_file_option
@slide_mpp_option
@backend_option
def command(
    geojson: Path,
    output_format: str | None,
    out: str,
    slide: str | None,
    origin: Any,
    slide_mpp: Any,
    backend: str | None,
) -> None:
    """Write the outlines of GEOJSON, made by wsiseg or exported by QuPath, in another format.

    \b
    wsiseg convert out.geojson --out out.parquet
    wsiseg convert corrected.geojson --slide slide.svs --format asap > out.xml
    """
    from wsiseg import formats
    from wsiseg.belonging import slide_facts, source_of, take_scale
    from wsiseg.files import check_apart
    from wsiseg.geojson import read_collection
    from wsiseg.slide import open_slide
    from wsiseg.tiles import SlideIdentity

    if slide is None and (slide_mpp or backend):
        raise click.UsageError("--slide-mpp and --backend are for the slide: give it with --slide.")
    output_format = output_format or formats.format_of(out)
    formats.check_path(output_format, None if out == "-" else out)
    check_apart(out, slide, geojson)
    tell_if_large(geojson)
    annotations, run = read_collection(geojson)
    check_apart(out, source_of(run))
    if slide is not None:
        with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened:
            warn_if_misplaced(annotations, run, opened, origin)
            take_scale(opened, run)
            run = {**run, "slide": slide_facts(SlideIdentity.of(opened))}
    if origin is not None:
        run = {**run, "origin": origin}
    if out == "-":
        write_stdout(partial(formats.stream, annotations, run, name=output_format))
    else:
        formats.write(annotations, run, out, output_format)
    count = len(formats.written(annotations, output_format))
    rejected = f", without {len(annotations) - count:,} that were rejected" if count < len(annotations) else ""
    tell(f"wsiseg: wrote {count:,} annotations as {output_format}{rejected}")
