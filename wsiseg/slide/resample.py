"""One antialiased resize, the same for every tile whatever its neighbours.

Pillow's bicubic resampling (`Image.resize`, libImaging/Resample.c), written so that the weights of an output
pixel depend only on its absolute position. Pillow takes its box as 32-bit floats relative to the image handed
in, so two tiles read separately disagree where they overlap; here they are equal byte for byte. The weights
are Pillow's 22-bit integers, applied as a sparse integer matrix: exact in any order, on one thread (readers
bring their own threads), and as fast as Pillow. Along each axis the planes are: m_ for output pixels, r_ for
pixels of the level that is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_matrix

WHITE = 255
_WEIGHT_BITS = 22  # Pillow's PRECISION_BITS = 32 - 8 - 2
_SUPPORT = 2.0  # of the bicubic kernel, in output pixels when shrinking
_BAND_R_PX = 6_000_000  # pixels of the read level that are held at once
_CACHED = 1 << 18  # values that are weighed at once: what stays in a core's cache


@dataclass(frozen=True)
class AxisWeights:
    """Weights of n output pixels along one axis.

    r_start, r_stop: the half-open range of level pixels that is read.
    matrix: (n, r_stop - r_start) sparse int32; each row sums to about 2**22.
    """

    r_start: int
    r_stop: int
    matrix: csr_matrix


def bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, as in Pillow."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def axis_weights(m0: int, count: int, scale: float, r_size: int) -> AxisWeights:
    """Weights for output pixels m0 .. m0 + count of an axis whose level has `r_size` pixels.

    scale: level pixels per output pixel; output pixel m is centred on level position (m + 0.5) * scale.
    The kernel is clipped to the level and normalised there, so edges do not fade.
    """
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    centre = (np.arange(m0, m0 + count) + 0.5) * scale
    r_first = np.clip(np.trunc(centre - support + 0.5), 0, r_size - 1).astype(np.int64)
    r_stop = np.clip(np.trunc(centre + support + 0.5), 1, r_size).astype(np.int64)
    k = np.arange(math.ceil(support) * 2 + 2)
    weight = bicubic((k + r_first[:, None] - centre[:, None] + 0.5) / stretch)
    weight[k >= (r_stop - r_first)[:, None]] = 0.0
    weight /= weight.sum(axis=1, keepdims=True)
    scaled = weight * (1 << _WEIGHT_BITS)
    taps = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    row, tap = np.nonzero(taps)
    r_index = r_first[row] + tap
    r_start, r_end = int(r_index.min()), int(r_index.max()) + 1
    matrix = csr_matrix((taps[row, tap], (row, r_index - r_start)), shape=(count, r_end - r_start))
    return AxisWeights(r_start, r_end, matrix)


# Tiles of one row share their vertical weights, tiles of one column their horizontal ones.
_cached_axis_weights = lru_cache(maxsize=64)(axis_weights)


def resample_rows(pixels: np.ndarray, weights: AxisWeights) -> np.ndarray:
    """Apply weights along axis 0.

    pixels: (r_stop - r_start, ...) uint8, the level's pixels r_start .. r_stop. Returns (n, ...) uint8.
    """
    values = pixels.reshape(len(pixels), -1)
    out = np.empty((weights.matrix.shape[0], values.shape[1]), np.uint8)
    step = max(1, _CACHED // len(values))
    for start in range(0, values.shape[1], step):
        total = weights.matrix @ values[:, start : start + step].astype(np.int32)
        total += 1 << (_WEIGHT_BITS - 1)
        total >>= _WEIGHT_BITS
        out[:, start : start + step] = np.clip(total, 0, 255, out=total)
    return out.reshape(-1, *pixels.shape[1:])


def resample_region(
    read: Callable[[int, int, int, int], np.ndarray],
    r_size: tuple[int, int],
    scale: tuple[float, float],
    m_x: int,
    m_y: int,
    m_width: int,
    m_height: int,
) -> np.ndarray:
    """Read and resize the output box (m_x, m_y, m_width, m_height) of a level.

    read(r_x, r_y, width, height) -> (height, width, 3) uint8 pixels of the level, only asked inside it.
    r_size: (width, height) of the level; scale: level pixels per output pixel, (x, y).
    Returns (m_height, m_width, 3) uint8; output pixels beyond the level are white. At scale 1 the level's
    pixels come back untouched. Memory stays bounded however much of the level lies under the box.
    """
    out = np.full((m_height, m_width, 3), WHITE, np.uint8)
    # The output plane ends where the level does: ceil, so that no tissue at the edge is lost.
    stop_x, stop_y = (math.ceil(size / s - 1e-6) for size, s in zip(r_size, scale, strict=True))
    x0, x1 = max(m_x, 0), min(m_x + m_width, stop_x)
    y0, y1 = max(m_y, 0), min(m_y + m_height, stop_y)
    if x0 >= x1 or y0 >= y1:
        return out
    if scale == (1.0, 1.0):
        out[y0 - m_y : y1 - m_y, x0 - m_x : x1 - m_x] = read(x0, y0, x1 - x0, y1 - y0)
        return out
    across = _cached_axis_weights(x0, x1 - x0, scale[0], r_size[0])
    r_width = across.r_stop - across.r_start
    rows_per_band = max(1, int(_BAND_R_PX / r_width / scale[1]))
    for top in range(y0, y1, rows_per_band):
        bottom = min(top + rows_per_band, y1)
        down = _cached_axis_weights(top, bottom - top, scale[1], r_size[1])
        pixels = read(across.r_start, down.r_start, r_width, down.r_stop - down.r_start)
        # Pillow's order: across, rounded to bytes, then down.
        narrow = resample_rows(np.ascontiguousarray(pixels.transpose(1, 0, 2)), across)
        narrow = np.ascontiguousarray(narrow.transpose(1, 0, 2))
        out[top - m_y : bottom - m_y, x0 - m_x : x1 - m_x] = resample_rows(narrow, down)
    return out


def resample_image(
    image: np.ndarray, scale: float, m_x: int, m_y: int, m_width: int, m_height: int
) -> np.ndarray:
    """`resample_region` of an image (H, W, 3) uint8 in memory, `scale` of whose pixels make one of the output."""

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        return image[y : y + height, x : x + width]

    height, width = image.shape[:2]
    return resample_region(read, (width, height), (scale, scale), m_x, m_y, m_width, m_height)
