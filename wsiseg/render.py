"""A slide with its annotations drawn on it: one picture with a legend and a scale bar, for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont

from wsiseg.errors import MissingMppError, WsisegError
from wsiseg.geojson import Annotation
from wsiseg.mask.regions import Origin, l0_origin
from wsiseg.mask.shapes import rings_of
from wsiseg.qupath import Color

if TYPE_CHECKING:
    from wsiseg.slide import Slide

_OVERSAMPLING = 3  # Pillow draws lines without antialiasing
_BATCH = 1024
_SMALLEST_FONT_PX = 12
_LEGEND_ENTRIES = 12
_LEGEND_CHARACTERS = 50
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def overlay(
    slide: Slide, annotations: Sequence[Annotation], *, origin: Origin = "qupath", max_px: int = 2000
) -> Image.Image:
    """The whole slide, at most `max_px` wide and high, with every outline in the colour of its class.

    Args:
        origin: where (0, 0) of the annotations' coordinates lies; a file's member `wsiseg` says it.

    A slide that states no microns per pixel gets no scale bar.
    """
    picture = Image.fromarray(slide.thumbnail(max_px))
    px_per_l0 = np.array(picture.size) / slide.dimensions
    l0_start = np.array(l0_origin(slide.l0_bounds, origin))
    longest = max(picture.size)
    _draw_outlines(picture, annotations, lambda l0_xy: (l0_xy + l0_start) * px_per_l0, max(2, longest // 600))
    font_px = max(_SMALLEST_FONT_PX, longest // 70)
    _draw_legend(picture, annotations, font_px)
    with suppress(MissingMppError):
        _draw_scale_bar(picture, slide.mpp[0] / px_per_l0[0], _font(font_px))
    return picture


def close_up(
    slide: Slide,
    annotation: Annotation,
    others: Sequence[Annotation],
    box: tuple[float, float, float, float],
    *,
    origin: Origin = "qupath",
    max_px: int = 320,
) -> Image.Image:
    """A piece of the slide, its longer side `max_px`, with one outline drawn strongly and others thinly.

    box: x, y, width, height in the annotations' coordinates.
    """
    x, y, width, height = box
    l0_per_px = max(width, height) / max_px
    l0_start = np.array(l0_origin(slide.l0_bounds, origin))
    left, top = np.round((l0_start + np.array([x, y])) / l0_per_px).astype(int).tolist()
    size = max(1, round(width / l0_per_px)), max(1, round(height / l0_per_px))
    picture = Image.fromarray(slide.read_scaled((l0_per_px, l0_per_px), left, top, *size))
    for drawn, line_px in (([a for a in others if a is not annotation], 1), ([annotation], 3)):
        _draw_outlines(picture, drawn, lambda l0_xy: (l0_xy + l0_start) / l0_per_px - (left, top), line_px)
    return picture


def scale_bar_um(width_um: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50, … µm that is at most a quarter of the picture's width.

    >>> scale_bar_um(1100)
    200.0
    """
    quarter = width_um / 4 * (1 + 1e-9)  # 2,500 px of 0.16 µm are a bit less than 400 µm
    power = 10.0 ** math.floor(math.log10(quarter))
    return max(step * power for step in (1, 2, 5) if step * power <= quarter)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font knows ASCII only; class names may be in any language."""
    for name in ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise WsisegError("this Pillow was built without FreeType: `pip install --force-reinstall pillow`")
    return font


def _draw_outlines(
    picture: Image.Image,
    annotations: Sequence[Annotation],
    to_px: Callable[[np.ndarray], np.ndarray],
    line_px: int,
) -> None:
    """Draw outlines colour by colour. to_px: annotations' coordinates (n, 2) → picture pixels (n, 2)."""
    size = (picture.width * _OVERSAMPLING, picture.height * _OVERSAMPLING)
    geometries: dict[Color, list[shapely.Geometry]] = {}
    for annotation in annotations:
        geometries.setdefault(annotation.color, []).append(annotation.geometry)
    for color, members in geometries.items():
        lines = Image.new("L", size)
        draw = ImageDraw.Draw(lines)
        for first in range(0, len(members), _BATCH):  # a copy of a million outlines takes gigabytes
            polygons = shapely.transform(np.array(members[first : first + _BATCH], object), to_px)
            # A third of a pixel is not seen, and saves most of the vertices of a large slide.
            polygons = shapely.simplify(polygons, 1 / _OVERSAMPLING)
            for ring in rings_of(polygons)[0]:
                xy = shapely.get_coordinates(ring) * _OVERSAMPLING
                draw.line(xy.ravel().tolist(), fill=255, width=line_px * _OVERSAMPLING, joint="curve")
        picture.paste(color, mask=lines.reduce(_OVERSAMPLING))


def _draw_legend(picture: Image.Image, annotations: Sequence[Annotation], font_px: int) -> None:
    """font_px: of the text; less where it would not fit on a narrow or low slide, such as a core biopsy.

    Where even the smallest does not, names are shortened, and classes left out: the scale bar has its place below.
    """
    counts = Counter(
        (annotation.classification or "no class", annotation.color) for annotation in annotations
    )
    draw = ImageDraw.Draw(picture)
    above_scale_bar = picture.height - 7 * font_px // 2
    for em in range(font_px, _SMALLEST_FONT_PX - 1, -1):
        font, lines = _font(em), max(2, (2 * above_scale_bar // em - 4) // 3)
        most = min(_LEGEND_ENTRIES, lines)
        entries = _legend(counts, most, _LEGEND_CHARACTERS)
        width = round(max(draw.textlength(text, font) for text, _ in entries))
        if width + 5 * em <= picture.width and lines >= min(len(counts), _LEGEND_ENTRIES):
            break
    for characters in range(_LEGEND_CHARACTERS, 0, -1):
        entries = _legend(counts, most, characters)
        width = round(max(draw.textlength(text, font) for text, _ in entries))
        if width + 5 * em <= picture.width:
            break
    left, top = em, em
    draw.rectangle((left, top, left + width + 3 * em, top + (len(entries) * 3 + 1) * em // 2), fill=_PAPER)
    for i, (text, color) in enumerate(entries):
        y = top + em // 2 + i * 3 * em // 2
        draw.rectangle((left + em // 2, y, left + 3 * em // 2, y + em), fill=color)
        draw.text((left + 2 * em, y + em // 2), text, fill=_INK, font=font, anchor="lm")


def _legend(counts: Counter[tuple[str, Color]], most: int, characters: int) -> list[tuple[str, Color]]:
    """Text and colour of at most so many lines."""
    shown = most if len(counts) <= most else most - 1
    entries = [(f"{_short(name, characters)} ({n:,})", color) for (name, color), n in counts.most_common(shown)]
    if len(counts) > shown:
        entries.append((f"and {len(counts) - shown} more classes", _PAPER))
    return entries or [("no annotations", _PAPER)]


def _short(name: str, characters: int) -> str:
    """A long query would lie over half of the slide."""
    return name if len(name) <= characters else f"{name[: characters - 1].rstrip()}…"


def _draw_scale_bar(picture: Image.Image, um_per_px: float, font: ImageFont.FreeTypeFont) -> None:
    length_um = scale_bar_um(picture.width * um_per_px)
    length = max(1, round(length_um / um_per_px))
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} um"
    draw = ImageDraw.Draw(picture)
    em = round(font.size)
    width = max(length, round(draw.textlength(text, font)))
    left, bottom = em, picture.height - em
    draw.rectangle((left, bottom - 5 * em // 2, left + width + em, bottom), fill=_PAPER)
    centre = left + (width + em) // 2
    draw.text((centre, bottom - 3 * em // 2), text, fill=_INK, font=font, anchor="mm")
    start = centre - length // 2
    draw.rectangle((start, bottom - 3 * em // 4, start + length - 1, bottom - em // 2), fill=_INK)
