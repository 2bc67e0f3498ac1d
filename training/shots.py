"""Examples of a structure for a question about another image of the same store."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wsiseg.inference.shots import Shot
from wsiseg.training.augment import random_crop
from wsiseg.training.data.store import QuadrupletStore, Sample

_TRIES = 8
_LEAST = 0.002  # of an example's image inside, and outside, its structure


@dataclass(frozen=True)
class ShotView:
    """What training shows of an example: a view (S, S, 3) uint8 with its mask (S, S) bool."""

    image: np.ndarray
    mask: np.ndarray


class ShotPool:
    """The images of a split that hold a structure, to draw examples from; `read` gives the sample of an index."""

    def __init__(self, store: QuadrupletStore, split: str, read: Callable[[int], Sample] | None = None) -> None:
        self._sample, self.records = read or store.sample, store.records
        self.holding: dict[str, list[int]] = {}
        for index in store.indices(split=split):
            for concept in store.records[index].present:
                self.holding.setdefault(concept, []).append(index)

    def draw(self, concept: str, source: str, group: str, rng: np.random.Generator) -> Sample | None:
        """An image of another patient with `concept`: of the same source, or where that has none, of any.

        None where there is no such image, or none that shows both the structure and what is not it.
        """
        others = [i for i in self.holding.get(concept, ()) if self._key(i) != (source, group)]
        own = [i for i in others if self.records[i].source == source]
        for index in rng.permutation(own or others)[:_TRIES]:
            sample = self._sample(int(index))
            if _LEAST <= (sample.layers[concept] > 0).mean() <= 1 - _LEAST:
                return sample
        return None

    def _key(self, index: int) -> tuple[str, str]:
        return self.records[index].source, self.records[index].group


def draw_shots(pool: ShotPool, concept: str, asked: Sample, count: int) -> list[Shot]:
    """Up to `count` examples of `concept`, each of another image; the same for the same image and concept."""
    rng = np.random.default_rng((0, zlib.crc32(f"{asked.name}\0{concept}".encode())))
    found: dict[str, Shot] = {}
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        sample = pool.draw(concept, asked.source, asked.group, rng)
        if sample is None:
            break
        found[sample.name] = Shot(sample.image, sample.layers[concept] > 0, sample.mpp, sample.name)
    return list(found.values())


def random_shot(
    pool: ShotPool, concept: str, patient: tuple[str, str], mpp: float, size: int, rng: np.random.Generator
) -> ShotView | None:
    """A random view of an example at `mpp` µm per pixel, for a question about an image of `patient` (source, group).

    None where there is no example, or the view shows only the structure, or none of it.
    """
    sample = pool.draw(concept, *patient, rng)
    if sample is None:
        return None
    layer = sample.layers[concept]
    y, x = np.nonzero(layer)
    at = int(rng.integers(len(y)))
    scale = min(mpp / (sample.mpp or mpp), 1.25 * min(layer.shape) / size)
    image, cut = random_crop(
        sample.image, {concept: layer}, size=size, scale=scale, rng=rng, center=(int(y[at]), int(x[at]))
    )
    mask = cut[concept] > 0
    return ShotView(image, mask) if mask.any() and not mask.all() else None
