"""What the scripts share that look at one structure of a set: their options, its images, and a tile of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsiseg.inference import TileMask
from wsiseg.slide.resample import resample_image
from wsiseg.slide.scale import m_size
from wsiseg.tiles.grid import mirror_beyond
from wsiseg.training.data.store import QuadrupletStore, Sample


def parser_for(page: str) -> argparse.ArgumentParser:
    """What they ask for; the first line of `page` says what they do."""
    parser = argparse.ArgumentParser(description=page.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--source", required=True)
    parser.add_argument("--concept", required=True)
    return parser


def samples_with(store: QuadrupletStore, source: str, split: str, concept: str, count: int) -> list[Sample]:
    """At most `count` samples from all over the set that show the structure."""
    known = [i for i in store.indices(split=split, source=source) if concept in store.records[i].present]
    return [store.sample(i) for i in spread(known, count)]


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly over all."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def view(sample: Sample, concept: str, mpp: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of an image as a tile (size, size, 3), and where the structure is in it (size, size) bool.

    An image that is smaller is mirrored around, as `wsiseg segment` shows it to the model.
    """
    height, width = sample.image.shape[:2]
    scale = mpp / (sample.mpp or mpp)
    m_width, m_height = m_size(width, scale), m_size(height, scale)
    m_x, m_y = (m_width - size) // 2, (m_height - size) // 2
    tile = resample_image(sample.image, scale, m_x, m_y, size, size)
    layer = sample.layers.get(concept, np.zeros((height, width))) > 0
    y, x = (
        (np.clip((np.arange(size) + 0.5 + start) * scale, 0, length - 1)).astype(int)
        for start, length in ((m_y, height), (m_x, width))
    )
    truth = layer[y[:, None], x, None]  # (size, size, 1)
    for part in (tile, truth):
        mirror_beyond(part, (m_x, m_y), (m_width, m_height))
    return tile, truth[..., 0]


def drawn(answers: list[TileMask], size: int, threshold: float = 0.5) -> np.ndarray:
    """The outlines (N, size, size) bool of tiles; nothing where the model was silent."""
    silence = np.zeros((size, size), bool)
    return np.stack([silence if a.probability is None else a.probability > threshold for a in answers])
