"""Tiles of a slide at a model's scale: plan them over tissue, stream them, keep them in a Zarr store."""

from __future__ import annotations

from wsiseg.tiles.attributes import is_store
from wsiseg.tiles.embeddings import Embeddings
from wsiseg.tiles.grid import Grid, GridSpec, SlideIdentity, plan_grid, touching
from wsiseg.tiles.store import TileStore
from wsiseg.tiles.stream import OnBadTile, SlideTiles, TileSource
from wsiseg.tiles.write import write_store

__all__ = [
    "Embeddings",
    "Grid",
    "GridSpec",
    "OnBadTile",
    "SlideIdentity",
    "SlideTiles",
    "TileSource",
    "TileStore",
    "is_store",
    "plan_grid",
    "touching",
    "write_store",
]
