"""Which images of a store training sees, and how often."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np

from wsiseg.errors import DataError
from wsiseg.training.data.store import QuadrupletStore, Sample
from wsiseg.training.recipe import Recipe

_log = logging.getLogger(__name__)


def training_store(recipe: Recipe) -> QuadrupletStore:
    """The recipe's store. Raises DataError if it is not named, no store, or has no training images."""
    if not recipe.data:
        raise DataError("the recipe names no data; give --data STORE.zarr (`wsiseg data import` makes one)")
    store = QuadrupletStore.open(recipe.data)
    if not store.indices(split="train"):
        raise DataError(
            f"{recipe.data} has no images in its train split: divide it anew with `wsiseg data split {recipe.data} "
            "--out NEW.zarr`, which lets a single patient train"
        )
    if foreign := sorted(recipe.source_weights.keys() - store.sources.keys()):
        text = "source_weights names %s, of which %s has nothing: its sources are %s"
        _log.warning(text, ", ".join(foreign), recipe.data, ", ".join(store.sources))
    return store


class SourceMix:
    """Samples of a split, drawn by source: a source without a weight counts by the square root of its size."""

    def __init__(self, store: QuadrupletStore, split: str, weights: dict[str, float], cache: int = 0) -> None:
        self.sample = lru_cache(maxsize=cache)(store.sample)  # decoded images are worth their memory
        self.groups: dict[str, list[int]] = {}
        self.kin: dict[tuple[str, str], list[int]] = {}  # by source and group: patient, organ or case
        for index in store.indices(split=split):
            record = store.records[index]
            self.groups.setdefault(record.source, []).append(index)
            self.kin.setdefault((record.source, record.group), []).append(index)
        self.sources = sorted(self.groups)
        raw = np.array([weights.get(s, len(self.groups[s]) ** 0.5) for s in self.sources], np.float64)
        if self.sources and not raw.any():
            raise DataError(f"source_weights are 0 for all sources with {split} images: {', '.join(self.sources)}")
        self.probability = raw / raw.sum()

    def draw(self, rng: np.random.Generator) -> Sample:
        return self.draw_from(self.sources[int(rng.choice(len(self.sources), p=self.probability))], rng)

    def draw_from(self, source: str, rng: np.random.Generator) -> Sample:
        return self.sample(self.groups[source][int(rng.integers(len(self.groups[source])))])

    def draw_like(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Another image of `sample`'s patient, organ or case, or the same."""
        kin = self.kin[sample.source, sample.group]
        return self.sample(kin[int(rng.integers(len(kin)))])
