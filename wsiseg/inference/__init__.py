"""Batches of tiles through a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch

    from wsiseg.inference.features import TileFeatures
    from wsiseg.tiles import Embeddings

# The parts of what an `Encoder` sees of a tile: for every query, and for those that end in a mask.
IMAGE_TOKENS, MASK_FEATURES = "image_tokens", "mask_features"
# Batches that a GPU is given together, so that the next tile takes the place of one whose chain is at its end.
REFILLS = 4
ASK_PLAINLY = "if you see it there, ask for it by its name alone"


@dataclass(frozen=True)
class TileMask:
    """The answer for one tile.

    Attributes:
        probability: (H, W) float32 in [0, 1]; None where the model emitted no `<SEG>`.
        reasoning: the chain that it wrote.
        seg_probability: P(`<SEG>`) where it was emitted, else the largest that it reached.
        seg_position: how many tokens the model wrote before `<SEG>`; None without it, or if nobody counted.
    """

    probability: np.ndarray | None
    reasoning: str
    seg_probability: float
    seg_position: int | None = None


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
        """Tiles (B, H, W, 3) uint8 at `mpp` µm per pixel → one answer each, with a mask of the tile's size."""


@runtime_checkable
class KnowsCells(Protocol):
    """A `Segmenter` that knows when single cells are meant, which are outlined one by one."""

    def asks_for_cells(self, query: str) -> bool:
        """Whether the query means cells, or nuclei, and not the tissue that they make."""
        ...


@runtime_checkable
class KnowsLimits(Protocol):
    """A `Segmenter` that knows what its outlines should not be trusted with."""

    def caution_for(self, query: str) -> str:
        """What everyone should be told who gets outlines for this query; "" for nothing."""
        ...


@runtime_checkable
class KnowsNames(Protocol):
    """A `Segmenter` that knows what may be asked for."""

    def hint_for(self, query: str) -> str:
        """What everyone should be told whose query found nothing, to stand in brackets; "" for nothing."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A `Segmenter` that looks at a tile once, whatever is asked about it."""

    @property
    def device(self) -> torch.device: ...

    @property
    def refills(self) -> int:
        """Batches that it is best asked about together."""
        ...

    def look(
        self,
        indices: np.ndarray,
        size: tuple[int, int],
        read: Callable[[], np.ndarray | torch.Tensor],
        kept: Embeddings | None = None,
    ) -> TileFeatures:
        """What it sees of the tiles `indices` (B,) of a grid.

        size: (H, W) of a tile; read() gives the pixels (B, H, W, 3) uint8, here or on the device, if they are needed.
        """
        ...

    def answer(
        self, features: TileFeatures, query: str, mpp: float, at_once: int | None = None
    ) -> list[TileMask]:
        """As `Segmenter.segment_tiles`; at_once: how many tiles, None for all."""
        ...


@runtime_checkable
class Copied(Protocol):
    """A `Segmenter` that can be asked about several batches at the same time."""

    @property
    def copies(self) -> Sequence[Segmenter]:
        """Each is asked about one batch at a time; it may be the same object several times."""
        ...


@runtime_checkable
class Audible(Protocol):
    """A `Segmenter` that can be heard while it writes."""

    def heard_by(self, tell: Callable[[list[str]], None]) -> Segmenter:
        """The same, calling `tell` at every token: what it has written so far about each tile before it, in order.

        Of several batches at a time it tells of all; of one that is answered no more. `tell` is called in any thread.
        """
        ...
