"""Layers that the picture itself decides: empty background, stroma between glands, lumens."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_WHITE = 218  # grey value above which unstained glass lies in bright pictures


def glass_of(image: np.ndarray) -> np.ndarray:
    """Empty bright background, (H, W) bool: white and without colour over 5 px, parts ≥ 0.2 % of the area.

    Clefts, fat vacuoles and wide lumens count as empty: brightness cannot tell them from glass. Dim pictures
    give nothing, which means unknown.
    """
    smooth = ndimage.uniform_filter(image.astype(np.float32), size=(5, 5, 1))
    white = (smooth.min(axis=2) > _WHITE) & (np.ptp(smooth, axis=2) < 22)
    return _without_small(white, 0.002 * white.size)


def stroma_of(image: np.ndarray, gland: np.ndarray) -> np.ndarray:
    """Tissue outside the glands, (H, W) bool: stained, 2 px from any gland, opened by 2 px."""
    near_gland = ndimage.binary_dilation(gland > 0, iterations=2)
    stained = ndimage.uniform_filter(image.astype(np.float32), size=(5, 5, 1)).min(axis=2) < _WHITE - 8
    return _without_small(ndimage.binary_opening(stained & ~near_gland, iterations=2), 60)


def lumen_of(image: np.ndarray, gland: np.ndarray) -> np.ndarray:
    """Per gland the largest white space, (H, W) uint16 labels, if it reaches into the gland's middle half.

    Small white spaces near the rim are goblet cells as often as not, and are left out.
    """
    filled = ndimage.binary_fill_holes(gland > 0)
    white = (image.min(axis=2) > _WHITE) & filled
    parts, count = ndimage.label(ndimage.binary_opening(white))
    if count == 0:
        return np.zeros(gland.shape, np.uint16)
    depth = ndimage.distance_transform_edt(filled)
    glands, gland_count = ndimage.label(filled)
    index = np.arange(1, count + 1)
    area = ndimage.sum_labels(parts > 0, parts, index)
    reach = ndimage.maximum(depth, parts, index)
    owner = ndimage.maximum(glands, parts, index).astype(int)
    half = 0.5 * ndimage.maximum(depth, glands, np.arange(1, gland_count + 1))
    lumen = np.zeros(gland.shape, np.uint16)
    for gland_index in range(1, gland_count + 1):
        own = np.flatnonzero((owner == gland_index) & (area >= 40) & (reach > half[gland_index - 1]))
        if len(own):
            lumen[parts == index[own[np.argmax(area[own])]]] = gland_index
    return lumen


def _without_small(mask: np.ndarray, pixels: float) -> np.ndarray:
    parts, count = ndimage.label(mask)
    large = np.bincount(parts.ravel(), minlength=count + 1) >= pixels
    large[0] = False
    return large[parts]
