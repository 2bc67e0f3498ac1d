"""Tiles of a slide at a model's scale: plan them over tissue, stream them, keep them in a Zarr store."""

from __future__ import annotations

from wsiseg.tiles.grid import Grid, GridSpec, SlideIdentity, plan_grid
from wsiseg.tiles.stream import SlideTiles, TileSource

__all__ = ["Grid", "GridSpec", "SlideIdentity", "SlideTiles", "TileSource", "plan_grid"]
