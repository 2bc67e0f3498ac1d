"""`wsiseg segment SLIDE --query TEXT > out.geojson`: the main job."""

from __future__ import annotations

from typing import Any

import click

from wsiseg.cli.options import backend_option, device_option, origin_option, progress_bar, slide_mpp_option
from wsiseg.cli.output import write_stdout


@click.command("segment", short_help="Outline what a query asks for: a slide in, GeoJSON out.")
@click.argument("source")
@click.option(
    "--query", "queries", multiple=True, required=True, help="What to outline. Several: one class each."
)
@click.option("--out", default="-", help="Write the GeoJSON here instead of stdout.")
@click.option("--reasoning", help="Also write what the model said about every tile here, as JSON lines.")
@click.option("--model", help="Name or folder of a model; the bundled one by default.")
@slide_mpp_option
@click.option(
    "--mpp",
    type=click.FloatRange(min=0, min_open=True),
    help="Microns per pixel at which the model looks; by default its own choice for the query.",
)
@backend_option
@origin_option
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Probability from which a pixel belongs to an outline.",
)
@click.option(
    "--min-area",
    "min_area_um2",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Drop smaller outlines and fill smaller holes, in µm².",
)
@click.option(
    "--simplify",
    "simplify_um",
    type=click.FloatRange(min=0),
    help="How far outlines may move to save points, in µm; by default half a model pixel.",
)
@device_option
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Tiles at once.")
def command(source: str, queries: tuple[str, ...], out: str, reasoning: str | None, **options: Any) -> None:
    """Outline on SOURCE what the queries ask for, as GeoJSON that QuPath opens.

    SOURCE is a slide, a plain image, a URL of one, or a store written by `wsiseg tile`.

    \b
    wsiseg segment slide.svs --query "outline the nuclei" > out.geojson
    wsiseg segment slide.svs --query nuclei --query glands --out out.geojson
    """
    from wsiseg.files import check_writable
    from wsiseg.pipeline import segment

    for path in (out if out != "-" else None, reasoning):
        if path is not None:
            check_writable(path)
    with progress_bar("segment") as progress:
        result = segment(source, queries, progress=progress, **options)
    if reasoning is not None:
        result.write_reasoning(reasoning)
    if out == "-":
        write_stdout(result.write_to)
    else:
        result.write(out)
