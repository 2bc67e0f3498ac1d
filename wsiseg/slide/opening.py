"""Choose the backend by content, never by the file's name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg.errors import SlideError
from wsiseg.slide.base import Slide
from wsiseg.slide.patience import patiently
from wsiseg.slide.source import as_source, head, is_url, open_binary
from wsiseg.slide.tiff import TIFF_MAGICS, chain_is_whole

if TYPE_CHECKING:
    import tifffile

BACKENDS = ("openslide", "tiffslide", "image")

# JPEG 2000 (Aperio's own kinds have other numbers), WebP, JPEG XL: OpenSlide sees a slide, and then cannot read it.
_TIFFSLIDE_COMPRESSIONS = (34712, 50001, 50002)


def open_slide(
    source: str | os.PathLike[str],
    *,
    backend: str | None = None,
    slide_mpp: float | tuple[float, float] | None = None,
) -> Slide:
    """Open a slide.

    source: a path, or a URL that fsspec knows. backend: one of BACKENDS; None chooses by content: OpenSlide
    for what it recognises, except OME-TIFF, whose pyramids it does not see, and TIFF in codecs that it lacks;
    tiffslide for these, for other tiled TIFF and for TIFF behind a URL; Pillow for plain images.
    slide_mpp: microns per level-0 pixel, one number or (x, y), in place of what the slide states.

    Raises:
        SlideError: missing, empty, damaged, a directory, or in no known format; or it gives no answer.
        MissingMppError: `slide_mpp` is no microscope's scale.
    """
    name = as_source(source)

    def opened() -> Slide:
        begin = head(name)  # a missing, empty or unreadable file is reported here, whatever the backend
        return _opener(backend or _detect(name, begin))(name, slide_mpp)

    return patiently(name, opened)


def check_unchanged(slide: Slide, *, all_read: bool) -> None:
    """Raise SlideError unless the file of an open slide is still the one that was opened.

    One that has vanished by now may have done so: if `all_read`, all of it was read before.
    """
    if slide.backend == "image":  # which was read whole when it was opened
        return
    try:
        with open_slide(slide.source, backend=slide.backend) as again:
            unchanged = again.fingerprint == slide.fingerprint
    except SlideError:
        if not all_read:  # perhaps for this reason
            raise
        return
    if not unchanged:
        raise SlideError(f"{slide.source} changed while it was being read: run again")


def _opener(backend: str) -> Callable[[str, float | tuple[float, float] | None], Slide]:
    # Imported where used: a plain image needs no OpenSlide, `wsiseg --help` none of them.
    if backend == "openslide":
        from wsiseg.slide.openslide_backend import OpenSlideSlide

        return OpenSlideSlide
    if backend == "tiffslide":
        from wsiseg.slide.tiffslide_backend import TiffSlideSlide

        return TiffSlideSlide
    if backend == "image":
        from wsiseg.slide.image_backend import ImageSlide

        return ImageSlide
    raise SlideError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")


def _detect(source: str, begin: bytes) -> str:
    is_tiff = begin[:4] in TIFF_MAGICS
    if is_url(source):
        _refuse_lone_mirax(source)
        return "tiffslide" if is_tiff else "image"
    import openslide

    if is_tiff and _ask_tiff(source, _is_for_tiffslide):
        return "tiffslide"
    if openslide.OpenSlide.detect_format(source) is not None:
        return "openslide"
    if is_tiff:
        with open_binary(source) as file:
            if not chain_is_whole(file):
                raise SlideError(f"{source} is a truncated TIFF: copy or download the slide again")
        return "tiffslide" if _is_tiled(source) else "image"
    _refuse_lone_mirax(source)
    return "image"


def _refuse_lone_mirax(source: str) -> None:
    """The .mrxs of a slide is itself a picture, of the glass: without its folder it would pass for a plain image."""
    if source.lower().endswith(".mrxs"):
        raise SlideError(
            f"{source} is a MIRAX slide without its pixels: the folder {Path(source).stem}, which holds them, must lie "
            "beside it, whole and on a local disk"
        )


def _is_for_tiffslide(tiff: tifffile.TiffFile) -> bool:
    return bool(tiff.is_ome) or tiff.pages.first.compression in _TIFFSLIDE_COMPRESSIONS


def _is_tiled(source: str) -> bool:
    return _ask_tiff(source, lambda tiff: bool(tiff.pages.first.is_tiled))


def _ask_tiff(source: str, question: Callable[[tifffile.TiffFile], bool]) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(source) as tiff:
            return question(tiff)
    except Exception:  # tifffile raises many kinds on malformed files; the backend then says what is wrong
        return False
