"""The probability map that stitch, trace and write work on: smooth blobs with holes, at many scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

TILE, OVERLAP = 512, 128
SIDE = 8192


def probability_map(path: Path) -> Path:
    """Write (SIDE, SIDE) uint8, probability · 255, as .npy; the same for every run. About 20,000 regions."""
    if not path.exists():
        noise = np.random.default_rng(0).standard_normal((SIDE // 4, SIDE // 4), np.float32)
        field = sum(
            (ndimage.gaussian_filter(noise, sigma, mode="wrap") * sigma for sigma in (5, 12)),
            np.zeros_like(noise),
        )
        field /= field.std()
        tile = np.round(255 / (1 + np.exp(-5 * (field - 0.9)))).astype(np.uint8)
        np.save(path, np.tile(tile, (4, 4)))
    return path


def tiles() -> list[tuple[int, int]]:
    """The corners (x, y) of the tiles that cover the map, in row-major order."""
    starts = range(0, SIDE - OVERLAP, TILE - OVERLAP)
    return [(x, y) for y in starts for x in starts]
