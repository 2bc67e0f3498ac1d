"""Pictures laid together: glands in other surroundings, and healthy organs as they look from afar.

The only set that outlines glands has pictures full of them, with one kind of stroma between. Cut out, thinned
out and laid on muscle, connective tissue or inflamed tissue of other sets, or on stroma of their own, they teach
what a gland is and what merely surrounds it (copy–paste augmentation, Ghiasi et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image
from scipy import ndimage

from wsiseg.training.augment import random_crop
from wsiseg.training.data.store import Sample

GLAND_LAYERS = ("gland", "malignant", "dysplastic", "lumen")
_OPENED_LAYERS = ("lumen", "tissue", "glass")  # of which a painted hole makes another truth
_PATCHES = (40, 28, 20, 14)  # sides in pixels of what stroma is laid together from, the largest that fits first


def on_other_tissue(sample: Sample, ground: Sample, rng: np.random.Generator) -> Sample:
    """`sample` with all but some or all of its glands replaced by `ground`, in `sample`'s size and scale.

    The ground's colours are moved to those of the sample's own stroma, as far as chance will have it. Layers
    of which the picture no longer holds the truth (stroma, tissue, glass) are left out: unknown, never asked.
    What counts as absent is what both pictures rule out. A picture that is all gland stays as it is.
    """
    gland = sample.layers["gland"] > 0
    if gland.all():
        return sample
    kept = _some_glands(gland, rng)
    size = sample.image.shape[0]
    scale = (sample.mpp or 0.5) / (ground.mpp or 0.5) * float(rng.uniform(0.6, 1.1))
    under, _ = random_crop(ground.image, {}, size=size, scale=scale, rng=rng)
    if sample.image.shape[1] != size:
        under = np.asarray(Image.fromarray(under).resize(sample.image.shape[1::-1]))
    around = sample.image[~gland].astype(np.float32)
    flat = under.reshape(-1, 3).astype(np.float32)
    matched = (under - flat.mean(0)) / (flat.std(0) + 4) * (around.std(0) + 4) + around.mean(0)
    strength = rng.uniform(0.3, 1.0)
    colours = under * (1 - strength) + matched * strength
    edge = ndimage.gaussian_filter(kept.astype(np.float32), rng.uniform(0.6, 1.8))[..., None]
    image = sample.image * edge + colours * (1 - edge)
    absent = tuple(name for name in sample.absent if name in ground.absent)
    inside = ndimage.binary_fill_holes(kept)
    layers = {name: np.where(inside, layer, 0) for name, layer in sample.layers.items() if name in GLAND_LAYERS}
    return Sample(
        np.clip(image, 0, 255).round().astype(np.uint8),
        layers,
        tuple(layers),
        absent,
        sample.mpp,
        sample.source,
        sample.group,
        sample.split,
        f"{sample.name} on {ground.name}",
    )


def patchwork(pictures: Sequence[Sample], rng: np.random.Generator) -> Sample:
    """Nine pictures in three rows with soft seams: as much of an organ as can be looked at from afar.

    Who has seen healthy muscle, epithelium or lymphoid tissue only close up takes them for a tumour at low power. No
    layer is kept, so that nothing is asked about but what all of the pictures rule out.
    """
    side = min(pictures[0].image.shape[:2])
    ramp = np.minimum(np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)) / (0.12 * side), 1)
    weight = np.multiply.outer(ramp, ramp)[..., None].astype(np.float32)  # (side, side, 1)
    step = round(0.88 * side)
    canvas, weights = (np.zeros((side + 2 * step, side + 2 * step, depth), np.float32) for depth in (3, 1))
    for k, picture in enumerate(pictures):
        scale = min(picture.image.shape[:2]) / side
        patch, _ = random_crop(picture.image, {}, size=side, scale=scale, rng=rng)
        top, left = step * (k // 3), step * (k % 3)
        canvas[top : top + side, left : left + side] += weight * patch
        weights[top : top + side, left : left + side] += weight
    image = (canvas / weights).round().astype(np.uint8)
    absent = tuple(name for name in pictures[0].absent if all(name in p.absent for p in pictures))
    return replace(pictures[0], image=image, layers={}, present=(), absent=absent, name=f"{pictures[0].name} from afar")


def _some_glands(gland: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All connected parts of `gland` (H, W) bool, or half of the time a random few, at least one."""
    parts, count = ndimage.label(gland)
    if count < 2 or rng.random() < 0.5:
        return gland
    chosen = rng.random(count + 1) < rng.uniform(0.1, 0.8)
    chosen[1 + int(rng.integers(count))] = True
    chosen[0] = False
    return chosen[parts]


def stroma_ground(sample: Sample, rng: np.random.Generator) -> Sample | None:
    """A picture of the stroma of `sample` alone, laid together from patches; None where it has no such patch."""
    stroma = (sample.layers["stroma"] > 0).astype(np.float32)
    for side in _PATCHES:
        y, x = np.nonzero(ndimage.uniform_filter(stroma, side, mode="constant") > 0.93)
        if len(y) >= 4:
            break
    else:
        return None
    height, width = stroma.shape
    ramp = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)) / (side / 5)
    alpha = np.minimum(np.minimum.outer(ramp, ramp), 1)[..., None]  # (side, side, 1)
    canvas = np.empty((height + side, width + side, 3), np.float32)
    canvas[:] = sample.image[y, x].mean(0)
    step = max(1, int(0.6 * side))
    for row in range(0, height + 1, step):
        for column in range(0, width + 1, step):
            k = int(rng.integers(len(y)))
            top, left = min(max(y[k] - side // 2, 0), height - side), min(max(x[k] - side // 2, 0), width - side)
            patch = sample.image[top : top + side, left : left + side]
            patch = np.rot90(patch, int(rng.integers(4)))
            under = canvas[row : row + side, column : column + side]
            under += alpha * (patch - under)
    image = canvas[side // 2 : side // 2 + height, side // 2 : side // 2 + width].round().astype(np.uint8)
    absent = (*sample.absent, *(name for name in GLAND_LAYERS if name != "malignant"))
    return replace(sample, image=image, layers={}, present=(), absent=absent, name=f"stroma of {sample.name}")


def open_lumens(sample: Sample, rng: np.random.Generator) -> Sample:
    """Wide, empty lumens in some of the glands of `sample`, which belong to them as their cells do.

    What was known of lumens, tissue and glass no longer holds: it is left out, unknown.
    """
    gland = sample.layers["gland"] > 0
    parts, count = ndimage.label(gland)
    depth = ndimage.distance_transform_edt(np.pad(gland, 1, mode="edge"))[1:-1, 1:-1]
    deepest = np.maximum(ndimage.maximum(depth, parts, np.arange(count + 1)), 1)
    wavy = ndimage.gaussian_filter(rng.normal(size=gland.shape), 4)
    wavy = 0.12 * wavy / max(1e-6, float(wavy.std()))
    chosen = (rng.random(count + 1) < 0.5) & (deepest > 9)
    chosen[0] = False
    floor = rng.uniform(0.3, 0.7, count + 1)
    lumen = chosen[parts] & (depth / deepest[parts] + wavy > floor[parts])
    edge = ndimage.gaussian_filter(lumen.astype(np.float32), 1.0)[..., None]
    level = rng.uniform(222, 250) + rng.normal(0, 2, 3)
    image = sample.image * (1 - edge) + level * edge
    image = np.clip(image, 0, 255).round().astype(np.uint8)
    layers = {name: layer for name, layer in sample.layers.items() if name not in _OPENED_LAYERS}
    absent = tuple(name for name in sample.absent if name not in _OPENED_LAYERS)
    return replace(sample, image=image, layers=layers, present=tuple(layers), absent=absent)
