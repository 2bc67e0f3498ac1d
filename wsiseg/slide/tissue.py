"""Where the tissue lies, from a thumbnail: numpy and scipy, no weights, no download.

Stained tissue absorbs light in colour; glass does not absorb, shadows and dust absorb without colour, scanner
padding and black marker absorb everything, and coloured markers absorb red most (blue, green) or green and
blue alike (red), which haematoxylin and eosin do not. Optical density is -log10(value / white).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from wsiseg.errors import MissingMppError
from wsiseg.slide.base import Slide

_HOLE_UM2 = 250_000.0  # lumens, fat cells, tears up to half a millimetre across count as tissue
_OBJECT_UM2 = 10_000.0  # smaller things are dust; needle biopsies are hundreds of microns wide
_ARTEFACT_UM2 = 10_000.0  # nuclei and pigment are smaller than any marker stroke or padding
_CLOSE_UM = 16.0
_EOSIN = (225, 160, 195)
# Limits for Otsu's threshold: below lies the noise of empty glass, above faint stroma would be lost. Between
# the lower limit and the threshold lie fat cells and loose stroma: tissue where they are joined to some.
_SCORE_RANGE = (0.08, 0.15)


@dataclass(frozen=True)
class TissueMask:
    """Tissue on a thumbnail.

    mask: (height, width) bool. l0_per_px: level-0 pixels per mask pixel, (x, y).
    """

    mask: np.ndarray
    l0_per_px: tuple[float, float]

    @property
    def fraction(self) -> float:
        """Part of the slide that is tissue, 0 to 1."""
        return float(self.mask.mean())


def tissue_mask(slide: Slide, *, max_px: int = 2048, forgiving: bool = False) -> TissueMask:
    """Find the tissue of a slide on a thumbnail whose longer side has `max_px` pixels.

    forgiving: what cannot be decoded counts as tissue, so that nothing is left out unseen; else it is an error.

    Sizes that decide (holes, dust) are in square microns; on a slide without a scale, parts of its area.
    """
    rgb = slide.thumbnail(max_px, unreadable=_EOSIN if forgiving else None)
    height, width = rgb.shape[:2]
    l0_per_px = (slide.dimensions[0] / width, slide.dimensions[1] / height)
    try:
        um_per_px = math.sqrt(l0_per_px[0] * slide.mpp[0] * l0_per_px[1] * slide.mpp[1])
    except MissingMppError:
        um_per_px = None
    return TissueMask(find_tissue(rgb, um_per_px), l0_per_px)


def find_tissue(rgb: np.ndarray, um_per_px: float | None) -> np.ndarray:
    """Tissue of a brightfield image.

    rgb: (height, width, 3) uint8; um_per_px: microns per pixel, None if unknown (the longer side is then
    taken to be 20 mm, as on most slides). Returns (height, width) bool.
    """
    um_per_px = um_per_px or 20_000.0 / max(rgb.shape[:2])
    px_per_um2 = 1.0 / um_per_px**2
    # On a patch of a few hundred microns the limits shrink with the picture.
    object_px = min(_OBJECT_UM2 * px_per_um2, 0.005 * rgb[..., 0].size)
    density = optical_density(rgb)
    artefact = _padding_and_black(rgb, _ARTEFACT_UM2 * px_per_um2) | _markers(
        density, _ARTEFACT_UM2 * px_per_um2
    )
    depth = _highest(density)
    colour = depth - _lowest(density)
    # A shadow is no tissue by itself, but a black fold within tissue is: closing and filling bring it back.
    allowed = ~artefact & ~_shadows(ndimage.gaussian_filter(depth, 1.0), ndimage.gaussian_filter(colour, 1.0))
    score = ndimage.gaussian_filter(depth + colour, 0.5)  # walls of fat cells are one pixel wide
    strong = ndimage.gaussian_filter(score, 1.0) > np.clip(otsu(score[~artefact]), *_SCORE_RANGE)
    tissue = _joined(strong & allowed, (score > _SCORE_RANGE[0]) & allowed)
    tissue = _close(tissue, max(1, round(_CLOSE_UM / um_per_px)))
    tissue = _fill_small_holes(tissue, _HOLE_UM2 * px_per_um2)
    return _drop_small(tissue & ~artefact, object_px)


def draw_tissue(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture for people: the outline of the tissue in green, all else dimmed to blue."""
    drawn = np.where(mask[..., None], rgb, rgb * 0.6 + np.array([0, 0, 90]))
    drawn[mask ^ ndimage.binary_erosion(mask, iterations=2)] = (0, 160, 0)
    return drawn.clip(0, 255).astype(np.uint8)


def optical_density(rgb: np.ndarray) -> np.ndarray:
    """-log10(rgb / white), (height, width, 3) float32, not below 0.

    White is the median of the brightest pixels where these look like glass, else 245 in all channels: an
    image that is tissue all over has no glass to measure.
    """
    brightness = _lowest(rgb)
    bright = rgb[brightness >= max(np.percentile(brightness, 98), 1)]
    white = np.median(bright, axis=0) if len(bright) else np.zeros(3)
    if white.min() < 205 or np.ptp(white) > 25:
        white = np.full(3, 245.0)
    table = -np.log10(np.maximum(np.arange(256), 1)[:, None] / white).astype(np.float32)
    # Channel by channel in memory: each is read alone, many times.
    planes = np.stack([np.take(np.maximum(table[:, c], 0), rgb[..., c]) for c in range(3)])
    return np.moveaxis(planes, 0, 2)


def _highest(channels: np.ndarray) -> np.ndarray:
    """The largest of three channels (h, w, 3); numpy's `max(axis=2)` takes ten times as long."""
    return np.maximum(np.maximum(channels[..., 0], channels[..., 1]), channels[..., 2])


def _lowest(channels: np.ndarray) -> np.ndarray:
    return np.minimum(np.minimum(channels[..., 0], channels[..., 1]), channels[..., 2])


def otsu(values: np.ndarray) -> float:
    """The threshold that separates two classes best (Otsu 1979), on 256 bins. 0 where nothing varies."""
    if values.size == 0 or values.max() <= values.min():
        return 0.0
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / np.maximum(above, 1)) ** 2
    return float(edges[1:-1][np.argmax(between)])


def _shadows(depth: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Coverslip edges, dust, bubbles: density without colour. None in a grey picture."""
    shadow = (depth > _SCORE_RANGE[0] / 2) & (colour < 0.12 * depth)
    return shadow & (shadow.sum() < 0.5 * (depth > _SCORE_RANGE[0]).sum())


def _padding_and_black(rgb: np.ndarray, min_px: float) -> np.ndarray:
    """Scanner padding and black marker: dark, colourless, larger than any nucleus; with their soft edges."""
    highest = _highest(rgb)
    colourless = highest - _lowest(rgb) < 30
    dark, grey = (highest < 80) & colourless, (highest < 200) & colourless
    return _grow(_drop_small(dark, min_px), grey)


def _markers(density: np.ndarray, min_px: float) -> np.ndarray:
    """Blue, green and red marker.

    Haematoxylin absorbs green at least as much as red; blue and green ink absorb red more. Eosin absorbs
    green much more than blue; red ink absorbs both, and evenly: blood, which does so too, is textured.
    """
    red, green, blue = np.moveaxis(density, 2, 0)
    cold = (red > 0.25) & (red > 1.3 * green)
    coldish = (red > 0.04) & (red > 1.08 * green)
    warm = (green > 0.7) & (blue > 0.75 * green) & (red < 0.35 * green)
    if warm.any():
        mean = ndimage.uniform_filter(green, 5)
        warm &= ndimage.uniform_filter(green**2, 5) - mean**2 < 0.05**2
    warmish = (green > 0.04) & (blue > 0.65 * green) & (red < 0.4 * green)
    stained = _highest(density) > 0.1
    found = np.zeros(stained.shape, bool)
    for seed, around in ((cold, coldish), (warm, warmish)):
        marker = _grow(_drop_small(seed, min_px), around)
        # Ink never covers most of what is on the glass; a blue or red stain (trichrome) does.
        if marker.sum() < 0.5 * stained.sum():
            found |= marker
    return found


def _joined(seed: np.ndarray, around: np.ndarray) -> np.ndarray:
    """`seed` and the 8-connected parts of `around` that touch it."""
    labels, _ = ndimage.label(seed | around, np.ones((3, 3)))
    keep = np.zeros(labels.max() + 1, bool)
    keep[labels[seed]] = True
    keep[0] = False
    return keep[labels]


def _grow(seed: np.ndarray, around: np.ndarray) -> np.ndarray:
    """`seed` and what of `around` is joined to it within six pixels, plus two pixels of blended edge."""
    if not seed.any():
        return seed
    grown = ndimage.binary_dilation(seed, iterations=6, mask=around | seed)
    return ndimage.binary_dilation(grown, iterations=2)


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    """Closing with a disc."""
    padded = np.pad(mask, radius + 1)
    closed = ~_dilate(~_dilate(padded, radius), radius)
    return (closed | padded)[radius + 1 : -radius - 1, radius + 1 : -radius - 1]


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilation with a disc, as a union of rows: dy pixels up or down the disc is 2 · √(r² - dy²) + 1 wide."""
    out = mask.copy()
    wide, half = mask.copy(), 0  # the mask, widened by `half` to both sides; the disc's rows grow from its poles
    for dy in range(radius, -1, -1):
        while half < math.isqrt(radius**2 - dy**2):
            half += 1
            wide[:, half:] |= mask[:, :-half]
            wide[:, :-half] |= mask[:, half:]
        out[dy:] |= wide[: len(wide) - dy]
        out[: len(out) - dy] |= wide[dy:]
    return out


def _drop_small(mask: np.ndarray, min_px: float) -> np.ndarray:
    """Without the 8-connected parts below `min_px` pixels."""
    if not mask.any():
        return mask
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    keep = np.bincount(labels.ravel()) >= min_px
    keep[0] = False
    return keep[labels]


def _fill_small_holes(mask: np.ndarray, max_px: float) -> np.ndarray:
    """With the enclosed 4-connected holes up to `max_px` pixels filled."""
    labels, _ = ndimage.label(~mask)
    fill = np.bincount(labels.ravel()) <= max_px
    fill[0] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        fill[edge] = False
    return mask | fill[labels]
