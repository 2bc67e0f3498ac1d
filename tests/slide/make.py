"""Small slides of known content for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile


def half(pixels: np.ndarray) -> np.ndarray:
    """Half the size by 2 x 2 means; an odd last row or column is dropped, as scanners do."""
    height, width = (size // 2 * 2 for size in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def pyramid(path: Path, pixels: np.ndarray, levels: int = 1, mpp: tuple[float, float] = (0.5, 0.5)) -> Path:
    """A tiled TIFF with lossless levels, each half of the one before, that OpenSlide and tiffslide read."""
    options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "deflate"}
    options |= {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            tiff.write(pixels, subfiletype=1 if level else 0, **options)
            pixels = half(pixels)
    return path


def smooth(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 that varies over some 8 pixels, so that shifts show and levels agree."""
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    field = ndimage.gaussian_filter(noise, (4, 4, 0))
    return np.clip(128 + 60 * field / field.std(), 0, 255).astype(np.uint8)
