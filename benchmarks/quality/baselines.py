"""Three answers that read no words, each as a `Segmenter`, so that `evaluate` treats them like the model.

They see the model's own tiles: same size, overlap and microns per pixel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from wsiseg.inference import Segmenter, TileMask
from wsiseg.slide.tissue import otsu
from wsiseg.training.data.annotate import TISSUE_OPTICAL_DENSITY

# Optical density per unit of stain in (R, G, B): Ruifrok & Johnston 2001, table 1, haematoxylin and eosin.
HAEMATOXYLIN = np.array([0.650, 0.704, 0.286])
EOSIN = np.array([0.072, 0.990, 0.105])


class Baseline:
    """The geometry of `like`, and a name; subclasses answer."""

    def __init__(self, name: str, like: Segmenter) -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.tile_size, self.overlap, self.mpp_for = like.tile_size, like.overlap, like.mpp_for


class AllForeground(Baseline):
    """Everything is what was asked for. Its Dice is the price of a large structure."""

    def __init__(self, like: Segmenter) -> None:
        super().__init__("all foreground", like)

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        return [TileMask(np.ones(tile.shape[:2], np.float32), "", 1.0) for tile in tiles]


class StainThreshold(Baseline):
    """Haematoxylin above Otsu's threshold over the tissue of all tiles given at once; never glass."""

    def __init__(self, like: Segmenter) -> None:
        super().__init__("haematoxylin, Otsu", like)

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        haematoxylin = haematoxylin_density(tiles)  # (B, H, W)
        # Glass left in, Otsu would part tissue from background.
        tissue = optical_density(tiles).mean(axis=-1) > TISSUE_OPTICAL_DENSITY
        if not tissue.any():
            return [TileMask(None, "", 0.0) for _ in tiles]
        mask = tissue & (haematoxylin > otsu(haematoxylin[tissue]))
        return [TileMask(m.astype(np.float32), "", 1.0) if m.any() else TileMask(None, "", 0.0) for m in mask]


class ClosedSet(Baseline):
    """A network with one channel per concept, told which concept is meant: it cannot read the query.

    Args:
        network: (B, 3, H, W) float in [0, 1] -> (B, len(channels), H, W) logits, on `device`.
        channels: the concepts it knows, in the order of its channels.
        concept_of: query -> concept, from the data set's own quadruplets (an oracle the model does not have).
            A concept outside `channels` is answered with silence.
    """

    def __init__(
        self,
        name: str,
        like: Segmenter,
        network: object,
        channels: Sequence[str],
        concept_of: Mapping[str, str],
        device: str = "cpu",
    ) -> None:
        super().__init__(name, like)
        self.network, self.channels, self.concept_of, self.device = network, channels, concept_of, device

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        import torch

        concept = self.concept_of[query]
        if concept not in self.channels:
            return [TileMask(None, "", 0.0) for _ in tiles]
        channel = self.channels.index(concept)
        with torch.inference_mode():
            images = torch.from_numpy(tiles).to(self.device).permute(0, 3, 1, 2).float() / 255
            probability = self.network(images)[:, channel].sigmoid().float().cpu().numpy()  # type: ignore[operator]
        return [
            TileMask(p, "", float(p.max())) if (p > 0.5).any() else TileMask(None, "", float(p.max()))
            for p in probability
        ]


def optical_density(rgb: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 -> (…, 3) float32 absorbance, −log₁₀(I/255): clear is 0, black 2.41 (as if I = 1)."""
    table = -np.log10(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
    return table[rgb]


def haematoxylin_density(rgb: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 -> (…) float32 amount of haematoxylin by colour deconvolution (Ruifrok & Johnston 2001).

    The three stain vectors have unit length; the third is orthogonal to haematoxylin and eosin and takes what
    neither explains. One unit of stain absorbs its vector, so density = OD · M⁻¹.
    """
    h, e = (vector / np.linalg.norm(vector) for vector in (HAEMATOXYLIN, EOSIN))
    residual = np.cross(h, e)
    unmix = np.linalg.inv(np.stack([h, e, residual / np.linalg.norm(residual)]))  # (OD, stain)
    return optical_density(rgb) @ unmix[:, 0].astype(np.float32)
