"""Pixels in: open any slide, read it at any microns per pixel, find the tissue."""

from __future__ import annotations

from wsiseg.slide.base import Slide
from wsiseg.slide.opening import BACKENDS, check_unchanged, open_slide
from wsiseg.slide.tissue import TissueMask, draw_tissue, tissue_mask

__all__ = ["BACKENDS", "Slide", "TissueMask", "check_unchanged", "draw_tissue", "open_slide", "tissue_mask"]
