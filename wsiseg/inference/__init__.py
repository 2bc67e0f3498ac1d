"""Batches of tiles through a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class TileMask:
    """The answer for one tile.

    Attributes:
        probability: (H, W) float32 in [0, 1]; None where the model emitted no `<SEG>`.
        reasoning: the chain that it wrote.
        seg_probability: P(`<SEG>`) where it was emitted, else the largest that it reached.
    """

    probability: np.ndarray | None
    reasoning: str
    seg_probability: float


class Segmenter(Protocol):
    """Whatever answers a query on tiles: PathChat-SegR1, a baseline, the fake model of `wsiseg.testing`."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def tile_size(self) -> int: ...

    @property
    def overlap(self) -> int: ...

    def mpp_for(self, query: str) -> float:
        """µm per pixel at which this query is best answered."""

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        """Tiles (B, H, W, 3) uint8 at `mpp` µm per pixel → one answer each."""
