"""Whether the outlines of a file belong to a slide, and where on it their coordinates begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsiseg.mask.regions import Origin
    from wsiseg.slide import Slide


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
