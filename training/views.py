"""Random views of a store's images, without questions: what self-supervised training sees."""

from __future__ import annotations

import numpy as np
import torch

from wsiseg.model.config import PathChatConfig
from wsiseg.model.pathchat import tiles_to_tensor
from wsiseg.training.augment import random_crop
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import is_close, random_scale
from wsiseg.training.mix import SourceMix


class ViewStream(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Views (S, S, 3) uint8 of the model's tile size by position: place, scale, turn and mirror are random, colours are
    the image's own."""

    def __init__(
        self,
        store: QuadrupletStore,
        split: str,
        config: PathChatConfig,
        *,
        seed: int,
        length: int,
        source_weights: dict[str, float] | None = None,
        cache: int = 0,
    ) -> None:
        self.config, self.seed, self.length = config, seed, length
        self.mix = SourceMix(store, split, source_weights or {}, cache)

    def __len__(self) -> int:
        return self.length if self.mix.sources else 0

    def __getitem__(self, position: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, position))
        sample = self.mix.draw(rng)
        size = self.config.tile_size
        scale = random_scale(sample, rng, size, is_close(sample, self.config))
        return random_crop(sample.image, {}, size=size, scale=scale, rng=rng)[0]


def collate_views(views: list[np.ndarray]) -> torch.Tensor:
    """(B, 3, S, S) in [0, 1]."""
    return tiles_to_tensor(np.stack(views))
