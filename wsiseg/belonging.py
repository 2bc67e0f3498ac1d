"""Whether the outlines of a file belong to a slide, and where on it they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from wsiseg.errors import GeoJSONError
from wsiseg.mask.regions import Origin, l0_origin
from wsiseg.qupath import clean_text
from wsiseg.slide.scale import plausible

if TYPE_CHECKING:
    from wsiseg.geojson import Annotation
    from wsiseg.slide import Slide
    from wsiseg.tiles import SlideIdentity


@dataclass(frozen=True)
class Place:
    """Where outlines lie: their slide's source, size and microns per level-0 pixel (x, y).

    l0_origin: where (0, 0) of the coordinates lies, in level-0 pixels of the whole slide.
    """

    source: str
    l0_width: int
    l0_height: int
    mpp: tuple[float, float]
    l0_origin: tuple[int, int]


def slide_facts(slide: SlideIdentity) -> dict[str, Any]:
    """The member `wsiseg.slide` of a GeoJSON, from which `place_of` knows the slide again."""
    return {
        "fingerprint": slide.fingerprint,
        "source": clean_text(slide.source),
        "mpp": [slide.mpp_x, slide.mpp_y],
        "dimensions": [slide.l0_width, slide.l0_height],
        **({"bounds": list(slide.l0_bounds)} if slide.l0_bounds else {}),
    }


def source_of(run: Mapping[str, Any]) -> str | None:
    """Path or URL of the slide that such a file was made of; None where it does not say."""
    facts = run.get("slide")
    source = facts.get("source") if isinstance(facts, Mapping) else None
    return source if isinstance(source, str) else None


def place_of(run: Mapping[str, Any]) -> Place:
    """Where the outlines lie whose file has the member `wsiseg` `run`.

    Raises:
        GeoJSONError: it does not say.
    """
    facts = run.get("slide")
    try:
        if not isinstance(facts, Mapping):
            raise TypeError
        width, height = (int(size) for size in facts["dimensions"])
        mpp_x, mpp_y = (float(value) for value in facts["mpp"])
        bounds = tuple(int(value) for value in facts.get("bounds", ())) or None
        if min(width, height) < 1 or not plausible((mpp_x, mpp_y)) or (bounds and len(bounds) != 4):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise GeoJSONError("the outlines do not say on which slide they lie: give it with --slide") from error
    origin = l0_origin(bounds, origin_of(run))  # type: ignore[arg-type]
    return Place(str(facts.get("source", "")), width, height, (mpp_x, mpp_y), origin)


def take_scale(slide: Slide, run: Mapping[str, Any]) -> None:
    """Give `slide` the scale with which its outlines were made; `run` is the member `wsiseg` of their GeoJSON.

    The file of the slide may state none, or a wrong one. A scale that was supplied when the slide was opened stays,
    and so does that of a slide on which the outlines were not made.
    """
    if slide.supplied_mpp is None and not not_of_this_slide(run, slide):
        with suppress(GeoJSONError):
            slide.supplied_mpp = place_of(run).mpp


def origin_of(run: Mapping[str, Any]) -> Origin:
    """The origin that `run`, the member `wsiseg` of a GeoJSON, states; without one QuPath's."""
    return "slide" if run.get("origin") == "slide" else "qupath"


def not_of_this_slide(run: Mapping[str, Any], slide: Slide) -> str:
    """A warning if `run`, the member `wsiseg` of a GeoJSON, says that it was made on another slide; else ""."""
    made_on = run.get("slide")
    fingerprint = made_on.get("fingerprint") if isinstance(made_on, dict) else None
    if fingerprint in (None, slide.fingerprint):
        return ""
    return "the outlines were made on another slide, or on this one before its file was changed: they may lie wrong"


def misplaced(annotations: Sequence[Annotation], run: Mapping[str, Any], slide: Slide, origin: Origin) -> str:
    """A warning if outlines were made on another slide, or lie wholly outside of this one; else "".

    run: the member `wsiseg` of their GeoJSON; QuPath's exports have none. origin: where (0, 0) of them lies.
    """
    if warning := not_of_this_slide(run, slide):
        return warning
    l0_start = np.tile(l0_origin(slide.l0_bounds, origin), 2)
    boxes = shapely.bounds(np.array([annotation.geometry for annotation in annotations], object)) + l0_start
    outside = int(((boxes[:, 2:] <= 0) | (boxes[:, :2] >= slide.dimensions)).any(axis=1).sum())
    if not outside:
        return ""
    return (
        f"{outside:,} of {len(annotations):,} outlines lie outside the slide: "
        f"they are of another slide, or do not count from the origin {origin!r}"
    )
