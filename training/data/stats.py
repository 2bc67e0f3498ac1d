"""What a store holds: images by source and split, structures by split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wsiseg.training.data.annotate import find_in
from wsiseg.training.data.store import SPLITS, QuadrupletStore


@dataclass(frozen=True)
class Part:
    """The images of one source in one split. `groups` are patients, slides or fields; `mpp` None: not stated."""

    source: str
    split: str
    images: int
    groups: int
    mpp: tuple[float | None, ...]
    sizes: tuple[tuple[int, int], ...]  # height, width; the most frequent first
    there: int  # questions
    absent: int
    chains: int  # that `wsiseg data annotate` wrote


@dataclass(frozen=True)
class Structure:
    """One structure in one split; `area`: 5th, 50th and 95th percentile of its share of the images that have it."""

    concept: str
    split: str
    images: int
    objects: int
    area: tuple[float, float, float]
    diameter_um: float | None  # median over the images, of the median object of each; None: no image states its scale
    there: int  # questions
    absent: int


def parts(store: QuadrupletStore) -> list[Part]:
    asked = Counter((store.records[q.image].source, store.records[q.image].split, q.present) for q in store.quadruplets)
    written = {chain.image: 0 for chain in store.chains.values()}
    for chain in store.chains.values():
        written[chain.image] += bool(chain.text)
    found = []
    for source in sorted({record.source for record in store.records}):
        for split in SPLITS:
            records = [record for record in store.records if (record.source, record.split) == (source, split)]
            if not records:
                continue
            mpp = sorted({record.mpp for record in records if record.mpp is not None})
            found.append(
                Part(
                    source,
                    split,
                    len(records),
                    len({record.group for record in records}),
                    (*mpp, *([None] if any(record.mpp is None for record in records) else [])),
                    tuple(size for size, _ in Counter(record.size for record in records).most_common()),
                    asked[source, split, True],
                    asked[source, split, False],
                    sum(written.get(record.name, 0) for record in records),
                )
            )
    return found


def structures(store: QuadrupletStore, progress: Callable[[int, int], None] | None = None) -> list[Structure]:
    """Measured on every mask. progress: called with (done, total) images."""
    areas: dict[tuple[str, str], list[float]] = defaultdict(list)
    widths: dict[tuple[str, str], list[float]] = defaultdict(list)
    objects = Counter[tuple[str, str]]()
    for i in range(len(store)):
        sample = store.sample(i)
        for concept, layer in sample.layers.items():
            found = find_in(sample.image, layer)
            if found is not None:
                key = concept, sample.split
                areas[key].append(found.area_fraction)
                objects[key] += found.count
                if sample.mpp:
                    widths[key].append(found.diameter_px * sample.mpp)
        if progress:
            progress(i + 1, len(store))
    asked = Counter((q.concept, store.records[q.image].split, q.present) for q in store.quadruplets)
    return [
        Structure(
            concept,
            split,
            len(areas[concept, split]),
            objects[concept, split],
            _percentiles(areas[concept, split]),
            float(np.median(widths[concept, split])) if widths[concept, split] else None,
            asked[concept, split, True],
            asked[concept, split, False],
        )
        for concept, split in sorted(areas, key=lambda key: (key[0], SPLITS.index(key[1])))
    ]


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, (5, 50, 95))
    return float(low), float(middle), float(high)
