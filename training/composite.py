"""Glands of one picture on the tissue of another: more kinds of surroundings than the training sets show.

Colon glands come with one kind of stroma in the only set that outlines them. Cut out and laid on muscle,
connective tissue or inflamed tissue of other sets, they teach what a gland is and what merely surrounds it
(copy–paste augmentation, Ghiasi et al. 2021).
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from wsiseg.training.augment import random_crop
from wsiseg.training.data.store import Sample

GLAND_LAYERS = ("gland", "malignant", "dysplastic", "lumen")


def on_other_tissue(sample: Sample, ground: Sample, rng: np.random.Generator) -> Sample:
    """`sample` with all but its glands replaced by `ground`, in `sample`'s size and scale.

    The ground's colours are moved to those of the sample's own stroma, as far as chance will have it. Layers
    of which the picture no longer holds the truth (stroma, tissue, glass) are left out: unknown, never asked.
    What counts as absent is what both pictures rule out. A picture that is all gland stays as it is.
    """
    gland = sample.layers["gland"] > 0
    if gland.all():
        return sample
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
    edge = ndimage.gaussian_filter(gland.astype(np.float32), rng.uniform(0.6, 1.8))[..., None]
    image = sample.image * edge + colours * (1 - edge)
    absent = tuple(name for name in sample.absent if name in ground.absent)
    layers = {name: layer for name, layer in sample.layers.items() if name in GLAND_LAYERS}
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
