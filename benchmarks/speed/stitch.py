"""Blending overlapping tiles: CPU seconds per gigapixel of slide. Peer: an accumulator canvas on disk.

TIAToolbox, the peer named in the research notes (unweighted mean, 194 CPU s for two classes), is not
installed beside wsiseg: its requirements clash. Its way, whole-slide sum and count arrays, is what the
memmap canvas does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.speed.probability import OVERLAP, SIDE, TILE, probability_map, tiles
from benchmarks.speed.rows import Row, Setup, measure_cost, with_ratios
from wsiseg.mask import Canvas
from wsiseg.mask.blend import tile_weights

PEER = "memmap canvas: weighted sum and weights of the whole slide"


def measure(setup: Setup) -> list[Row]:
    source = probability_map(setup.folder / "probability.npy")
    rows = []
    for way, function in (
        ("wsiseg Canvas", with_canvas),
        ("wsiseg Canvas, 9 of 10 tiles silent", with_silence),
        (PEER, with_memmap),
        ("arrays in memory", with_arrays),
    ):
        cost = measure_cost(function, source, setup.folder, repeat=setup.repeat)
        rows.append(Row("stitch", way, cost.cpu_s / (SIDE**2 / 1e9), "gigapixel", cost.peak_mb))
    return with_ratios(rows, PEER)


def _some_tiles(source: Path) -> list[np.ndarray]:
    """64 tiles of probabilities (TILE, TILE) float32, dealt out in turn, as making them is not measured."""
    tile = np.load(source, mmap_mode="r")[:TILE, : 64 * 8 + TILE].astype(np.float32) / 255
    return [np.ascontiguousarray(tile[:, i * 8 : i * 8 + TILE]) for i in range(64)]


def with_canvas(source: Path, folder: Path, every: int = 1) -> None:
    given = _some_tiles(source)
    with Canvas(SIDE, SIDE, TILE, OVERLAP, folder) as canvas:
        for i, (x, y) in enumerate(tiles()):
            canvas.add(x, y, given[i % 64] if i % every == 0 else None)
        canvas.finish()
        for _ in canvas.bands():
            pass


def with_silence(source: Path, folder: Path) -> None:
    with_canvas(source, folder, every=10)


def with_memmap(source: Path, folder: Path) -> None:
    shape = (SIDE + TILE, SIDE + TILE)
    total = np.memmap(folder / "sum", np.float32, "w+", shape=shape)
    count = np.memmap(folder / "count", np.float32, "w+", shape=shape)
    _accumulate(source, total, count)


def with_arrays(source: Path, folder: Path) -> None:
    total, count = np.zeros((2, SIDE + TILE, SIDE + TILE), np.float32)
    _accumulate(source, total, count)


def _accumulate(source: Path, total: np.ndarray, count: np.ndarray) -> None:
    given = _some_tiles(source)
    weights = np.outer(tile_weights(TILE, OVERLAP), tile_weights(TILE, OVERLAP))
    for i, (x, y) in enumerate(tiles()):
        total[y : y + TILE, x : x + TILE] += given[i % 64] * weights
        count[y : y + TILE, x : x + TILE] += weights
    for y in range(0, SIDE, 256):
        rows = np.s_[y : y + 256, :SIDE]
        (total[rows] / np.maximum(count[rows], 1e-12) * 255 + 0.5).astype(np.uint8)
