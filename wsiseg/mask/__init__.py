"""One mask per class and slide: blend tiles on disk, trace polygons without seams, measure them."""

from __future__ import annotations

from wsiseg.mask.canvas import Canvas
from wsiseg.mask.regions import Region, l0_origin, regions
from wsiseg.mask.shapes import repair, simplify
from wsiseg.mask.trace import contour, trace

__all__ = ["Canvas", "Region", "contour", "l0_origin", "regions", "repair", "simplify", "trace"]
