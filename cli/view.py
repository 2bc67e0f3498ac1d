"""`wsiseg view`: look at a slide and its outlines in a browser, ask it, correct what was found."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import backend_option, device_option, origin_of_file_option, slide_mpp_option, tell_if_large

log = logging.getLogger(__name__)


@click.command("view")
@click.argument("slide")
@click.argument("geojson", type=click.Path(path_type=Path), required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the page saves; by default GEOJSON itself if wsiseg made it, else a new file.",
)
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; by default a free one.")
@click.option("--model", help="Name or folder of the model that answers; the bundled one by default.")
@device_option
@origin_of_file_option
@slide_mpp_option
@backend_option
def command(
    slide: str,
    geojson: Path | None,
    out: Path | None,
    no_browser: bool,
    port: int,
    model: str | None,
    device: str | None,
    origin: Any,
    slide_mpp: Any,
    backend: str | None,
) -> None:
    """Look at SLIDE, with the outlines of GEOJSON, in a browser; ask, review, correct, save.

    The page is served on this machine alone, at an address that only you are told. Ctrl-C ends it.
    """
    from wsiseg.errors import OutputError
    from wsiseg.files import check_apart, check_writable
    from wsiseg.slide import open_slide
    from wsiseg.viewer import Asking, Session, serve

    if out is not None:
        check_writable(out)
        check_apart(out, slide)
        if out.exists() and not (geojson and geojson.exists() and out.samefile(geojson)):
            raise OutputError(
                f"{out} is there already: to go on with it, open it, `wsiseg view {slide} {out}`; else delete it, or "
                "choose another --out"
            )
    with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened:
        if geojson is not None:
            tell_if_large(geojson)
        asking = Asking(model=model, device=device)
        session = Session(opened, geojson, out=out, origin=origin, asking=asking)
        if session.warning:
            log.warning("%s", session.warning)
        serve(
            session,
            port=port,
            browse=not no_browser,
            tell=lambda address: click.echo(f"wsiseg: open {address} (Ctrl-C ends)", err=True),
        )
