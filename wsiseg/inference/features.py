"""What a model sees of one batch of tiles: each part computed at its first use, and once, whatever is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch

from wsiseg.tiles.embeddings import Embeddings

_HALF_MAX = torch.finfo(torch.float16).max


class TileFeatures:
    """The parts of one batch, tile by tile, in half precision.

    Half precision whether or not anything is kept: so an answer is the same, bit for bit, from a slide, from
    a store, and from embeddings that an earlier query left there.

    Attributes:
        indices: (B,) int64, the tiles in their grid. size: (H, W) of a tile.
    """

    def __init__(
        self,
        encode: Callable[[str, np.ndarray | torch.Tensor], list[torch.Tensor]],
        indices: np.ndarray,
        size: tuple[int, int],
        read: Callable[[], np.ndarray | torch.Tensor],
        kept: Embeddings | None,
        device: torch.device,
    ) -> None:
        """encode(part, tiles (b, H, W, 3)) -> arrays (b, …); read() -> all tiles of the batch (B, H, W, 3)."""
        self.indices, self.size = indices, size
        self._encode, self._read, self._kept, self._device = encode, read, kept, device
        self._seen: dict[tuple[str, int], list[torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def pixels(self) -> np.ndarray | torch.Tensor:
        """(B, H, W, 3) uint8, read when first needed; perhaps on the device."""
        return self._read()

    def part(self, name: str, rows: Sequence[int]) -> list[torch.Tensor]:
        """The arrays (len(rows), …) float16 of one part, for these tiles of the batch.

        Raises:
            StoreError, SlideError: pixels are needed and cannot be read.
        """
        if self._kept is not None and (missing := self._missing(name, rows)):
            for row, kept in zip(missing, self._kept.read(name, self.indices[missing]), strict=True):
                if kept is not None:
                    self._seen[name, row] = [torch.from_numpy(array).to(self._device) for array in kept]
        if missing := self._missing(name, rows):
            every = missing == list(range(len(self)))  # an index would wait for the device
            arrays = [_halved(array) for array in self._encode(name, self.pixels if every else self.pixels[missing])]
            self._seen.update({(name, row): [array[i] for array in arrays] for i, row in enumerate(missing)})
            if self._kept is not None:
                on_host = [array.cpu().numpy() for array in arrays]
                added = ([array[i] for array in on_host] for i in range(len(missing)))
                self._kept.add(name, self.indices[missing], added)
        return [torch.stack(arrays) for arrays in zip(*(self._seen[name, row] for row in rows), strict=True)]

    def _missing(self, name: str, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if (name, row) not in self._seen]


def _halved(array: torch.Tensor) -> torch.Tensor:
    """As float16, C-contiguous; what is too large becomes the largest number, not infinity."""
    halved = array.to(torch.float16, memory_format=torch.contiguous_format)
    return halved.clamp(-_HALF_MAX, _HALF_MAX)  # not before: bfloat16 has no such number, and rounds it up
