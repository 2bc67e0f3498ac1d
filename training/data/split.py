"""Splits by patient: all images of a group, and of groups that share an image, lie in one split."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsiseg.errors import DataError
from wsiseg.training.data.chance import rng_of
from wsiseg.training.data.concepts import concept_of, known_absent
from wsiseg.training.data.queries import sample_query
from wsiseg.training.data.store import SPLITS, Quadruplet, QuadrupletStore, Sample, write_quadruplets

_log = logging.getLogger(__name__)
Group = tuple[str, str]  # source, and patient, slide or field


def split_store(
    store: QuadrupletStore,
    out: str | Path,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> QuadrupletStore:
    """Write `store` anew with other splits: of each source's images about `shares`, whole groups only.

    Without "test" in `shares`, images that are for tests stay so, with all that is linked to them, and the rest is
    divided. Questions about images that move between training and validation or test are worded anew: wordings, too,
    are held back.

    Raises:
        DataError: shares that cannot be.
        OutputError: `out` exists or cannot be written.
    """
    if sum(shares.values()) >= 1 or any(not 0 <= share < 1 for share in shares.values()):
        raise DataError(f"shares of {dict(shares)} leave nothing to train on: together they must be below 1")
    linked = _linked(store, progress)
    fixed = set() if "test" in shares else {linked[_group(store, i)] for i in store.indices(split="test")}
    splits = dict.fromkeys(fixed, "test") | assign(_sizes(store, linked, fixed), shares, seed)
    moved = {i: splits[linked[_group(store, i)]] for i in range(len(store))}
    asked: dict[str, list[Quadruplet]] = defaultdict(list)
    for question in store.quadruplets:
        record = store.records[question.image]
        now = moved[question.image]
        if now == "train" and concept_of(question.concept).held_back:
            continue
        if (record.split == "train") != (now == "train"):
            question = replace(question, query=_worded(record.name, question.concept, now))
        asked[record.name].append(question)
    samples = (_moved(store.sample(i), split) for i, split in moved.items())
    return write_quadruplets(out, samples, store.sources, asked, store.chains.values())


def assign(sizes: Mapping[Group, int], shares: Mapping[str, float], seed: int) -> dict[Group, str]:
    """A split for every group of so many images: source by source, in the order that `seed` shuffles, each to the split
    that lacks most, and none left empty. A source of fewer groups than splits is for training only."""
    wanted = {"train": 1 - sum(shares.values()), **shares}
    wanted = {split: wanted[split] for split in SPLITS if wanted.get(split)}
    splits: dict[Group, str] = {}
    for source in sorted({source for source, _ in sizes}):
        groups = sorted((group for group in sizes if group[0] == source), key=lambda group: _shuffle(seed, group))
        if len(groups) < len(wanted):
            _log.warning("%s: too few patients (%d) for %d splits: training only", source, len(groups), len(wanted))
            splits |= dict.fromkeys(groups, "train")
            continue
        lacking = {split: share * sum(sizes[group] for group in groups) for split, share in wanted.items()}
        empty = set(wanted)
        for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
            split = max(empty if left == len(empty) else wanted, key=lambda split: (lacking[split], split))
            splits[group] = split
            lacking[split] -= sizes[group]
            empty.discard(split)
    return splits


def _linked(store: QuadrupletStore, progress: Callable[[int, int], None] | None) -> dict[Group, Group]:
    """For each group the one that stands for it and all that share an image with it, pixel by pixel.

    A picture of one colour, such as glass, is nobody's.
    """
    stands: dict[Group, Group] = {}
    first: dict[bytes, Group] = {}

    def root(group: Group) -> Group:
        while stands.setdefault(group, group) != group:
            group = stands[group]
        return group

    for i in range(len(store)):
        image = store.sample(i).image
        group = root(_group(store, i))
        if (image != image[0, 0]).any():
            pixels = hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).digest()
            stands[root(first.setdefault(pixels, group))] = group
        if progress:
            progress(i + 1, len(store))
    return {group: root(group) for group in list(stands)}


def _group(store: QuadrupletStore, i: int) -> Group:
    return store.records[i].source, store.records[i].group


def _sizes(store: QuadrupletStore, linked: Mapping[Group, Group], fixed: set[Group]) -> dict[Group, int]:
    sizes = Counter(linked[_group(store, i)] for i in range(len(store)))
    return {group: size for group, size in sizes.items() if group not in fixed}


def _shuffle(seed: int, group: Group) -> str:
    return hashlib.sha256(f"{seed}\0{group[0]}\0{group[1]}".encode()).hexdigest()


def _worded(image: str, concept: str, split: str) -> str:
    return sample_query(concept, rng_of(f"{image}\0{concept}"), "train" if split == "train" else "val")


def _moved(sample: Sample, split: str) -> Sample:
    """The sample in another split: what is held back from training is known absent in the others only."""
    absent = [key for key in sample.absent if split != "train" or not concept_of(key).held_back]
    if sample.split == "train" and split != "train":
        known = known_absent(sample.source, sample.label)
        absent += [key for key in known if concept_of(key).held_back and key not in sample.present]
    return replace(sample, split=split, absent=tuple(dict.fromkeys(absent)))
