"""`wsiseg thumbnail`: a small picture of a slide, or of the tissue found on it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import PicturePath, backend_option, max_px_option, save_picture, slide_mpp_option


@click.command("thumbnail")
@click.argument("slide")
@click.argument("out", type=PicturePath())
@click.option("--tissue", is_flag=True, help="Outline the tissue that was found; dim the rest.")
@max_px_option(2048)
@slide_mpp_option
@backend_option
def command(slide: str, out: Path, tissue: bool, max_px: int, slide_mpp: Any, backend: str | None) -> None:
    """Write a small picture of SLIDE to OUT (.png or .jpg)."""
    from PIL import Image

    from wsiseg.files import check_apart
    from wsiseg.slide import draw_tissue, open_slide, tissue_mask

    check_apart(out, slide)
    with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened:
        picture = opened.thumbnail(max_px)
        if tissue:
            found = tissue_mask(opened, max_px=max_px)
            picture = draw_tissue(picture, found.mask)
            logging.getLogger("wsiseg").info("%.1f %% of the slide is tissue", 100 * found.fraction)
    save_picture(Image.fromarray(picture), out)
