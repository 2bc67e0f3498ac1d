"""`wsiseg thumbnail`: a small picture of a slide, or of the tissue found on it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import backend_option, slide_mpp_option

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@click.command("thumbnail")
@click.argument("slide")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--tissue", is_flag=True, help="Outline the tissue that was found; dim the rest.")
@click.option(
    "--max-px",
    type=click.IntRange(1, 16384),
    default=2048,
    show_default=True,
    help="Longer side of the picture.",
)
@slide_mpp_option
@backend_option
def command(slide: str, out: Path, tissue: bool, max_px: int, slide_mpp: Any, backend: str | None) -> None:
    """Write a small picture of SLIDE to OUT (.png or .jpg)."""
    if out.suffix.lower() not in FORMATS:
        raise click.BadParameter(f"{out} must end in .png or .jpg", param_hint="OUT")
    from PIL import Image

    from wsiseg.files import atomic_write
    from wsiseg.slide import draw_tissue, open_slide, tissue_mask

    with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened:
        picture = opened.thumbnail(max_px)
        if tissue:
            found = tissue_mask(opened, max_px=max_px)
            picture = draw_tissue(picture, found.mask)
            logging.getLogger("wsiseg").info("%.1f %% of the slide is tissue", 100 * found.fraction)
    with atomic_write(out) as file:
        Image.fromarray(picture).save(file, FORMATS[out.suffix.lower()])
