"""Examples of a structure for a question about another image of the same store."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np

from wsiseg.inference.shots import Shot
from wsiseg.training.data.store import QuadrupletStore, Sample

_TRIES = 8  # images whose mask covers all of them show nothing by contrast


class ShotPool:
    """The images of a split that hold a structure, to draw examples from."""

    def __init__(self, store: QuadrupletStore, split: str, cache: int = 0) -> None:
        self._sample, self.records = lru_cache(maxsize=cache)(store.sample), store.records
        self.holding: dict[str, list[int]] = {}
        for index in store.indices(split=split):
            for concept in store.records[index].present:
                self.holding.setdefault(concept, []).append(index)

    def draw(self, concept: str, source: str, group: str, rng: np.random.Generator) -> Sample | None:
        """An image of another patient with `concept`: of the same source, or where that has none, of any.

        None where there is no such image, or none with something outside the structure.
        """
        others = [i for i in self.holding.get(concept, ()) if self._key(i) != (source, group)]
        own = [i for i in others if self.records[i].source == source]
        for index in rng.permutation(own or others)[:_TRIES]:
            sample = self._sample(int(index))
            if not (sample.layers[concept] > 0).all():
                return sample
        return None

    def _key(self, index: int) -> tuple[str, str]:
        return self.records[index].source, self.records[index].group


def draw_shots(pool: ShotPool, concept: str, asked: Sample, count: int, seed: int = 0) -> list[Shot]:
    """Up to `count` examples of `concept`, each of another image; the same for the same image, concept and seed."""
    rng = np.random.default_rng((seed, zlib.crc32(f"{asked.name}\0{concept}".encode())))
    found: dict[str, Shot] = {}
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        sample = pool.draw(concept, asked.source, asked.group, rng)
        if sample is None:
            break
        found[sample.name] = Shot(sample.image, sample.layers[concept] > 0, sample.mpp, sample.name)
    return list(found.values())
