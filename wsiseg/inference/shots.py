"""Examples: an image with the mask of what is meant, which a model sees before it is asked about a slide."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Protocol, runtime_checkable

import numpy as np

from wsiseg.errors import MissingMppError, QueryError
from wsiseg.inference import Segmenter
from wsiseg.slide import open_slide
from wsiseg.slide.image_backend import read_mask
from wsiseg.slide.resample import resample_image
from wsiseg.slide.scale import m_size
from wsiseg.tiles.grid import tile_starts


@dataclass(frozen=True, eq=False)
class Shot:
    """One example.

    Attributes:
        image: (H, W, 3) uint8. mask: (H, W) bool; of numbers, such as 0 and 255 or labels, all but 0 are the structure.
        mpp: µm per pixel; None: the image is taken as it is, whatever the model's scale.
        name: what messages and the run's record call it.

    Raises:
        QueryError: the image is of another kind, the two differ in size, or the mask is empty or full.
    """

    image: np.ndarray
    mask: np.ndarray
    mpp: float | None
    name: str = "example"

    def __post_init__(self) -> None:
        image, mask = np.asarray(self.image), np.asarray(self.mask)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            said = f"{' x '.join(map(str, image.shape))} {image.dtype}"
            raise QueryError(f"{self.name}: the image must be height x width x 3 uint8 (RGB, 0 to 255), not {said}")
        if mask.shape != image.shape[:2]:
            size, (h, w) = " x ".join(map(str, mask.shape[1::-1] + mask.shape[2:])), image.shape[:2]
            raise QueryError(f"{self.name}: the mask is {size} px and the image {w} x {h}")
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "mask", mask.astype(bool))
        if not self.mask.any():
            raise QueryError(f"{self.name}: the mask marks nothing; pixels above 0 are the structure")
        if self.mask.all():
            raise QueryError(f"{self.name}: the mask marks all of the image; an example also shows what is not meant")

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of pixels, mask and scale."""
        digest = hashlib.sha256(f"{self.image.shape} {self.mpp}".encode())
        for array in (self.image, self.mask):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def view(self, mpp: float, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The tile (size, size, 3) uint8 at `mpp` that shows most of both inside and outside, and its mask.

        An image smaller than a tile is filled up by reflection.

        Raises:
            QueryError: at this scale no tile shows both.
        """
        height, width = self.mask.shape
        scale = mpp / self.mpp if self.mpp else 1.0
        m_width, m_height = m_size(width, scale), m_size(height, scale)
        image = resample_image(self.image, scale, 0, 0, m_width, m_height)
        y, x = (
            np.minimum((np.arange(n) + 0.5) * scale, end - 1).astype(np.intp)
            for n, end in ((m_height, height), (m_width, width))
        )
        mask = self.mask[y[:, None], x[None]]
        pad = tuple((0, max(0, size - n)) for n in mask.shape)
        image, mask = np.pad(image, (*pad, (0, 0)), mode="symmetric"), np.pad(mask, pad, mode="symmetric")
        tops, lefts = (tile_starts(length, size, size // 2).tolist() for length in mask.shape)
        corners = list(product(tops, lefts))
        inside = [int(mask[top : top + size, left : left + size].sum()) for top, left in corners]
        shown = [min(area, size * size - area) for area in inside]
        best = int(np.argmax(shown))
        if not shown[best]:
            raise QueryError(f"{self.name}: seen at {mpp:g} um/px, no tile shows both the structure and what is not it")
        top, left = corners[best]
        return image[top : top + size, left : left + size], mask[top : top + size, left : left + size]


@runtime_checkable
class InContext(Protocol):
    """A `Segmenter` that takes examples."""

    def with_shots(self, shots: Sequence[Shot]) -> Segmenter:
        """The same model after it has seen `shots`, in place of any before."""


def read_shot(image: str | os.PathLike[str], mask: str | os.PathLike[str], mpp: float | None = None) -> Shot:
    """An example from two image files of one size; the mask's pixels above 0 are the structure (see `read_mask`).

    Args:
        mpp: µm per pixel of the image, where the file does not say.

    Raises:
        SlideError: a file is missing or no image.
        MissingMppError: the scale is neither stated nor given.
        QueryError: see `Shot`.
    """
    with open_slide(image, backend="image", slide_mpp=mpp) as opened:
        try:
            mpp_x, mpp_y = opened.mpp
        except MissingMppError as error:
            raise MissingMppError(
                f"{os.fspath(image)} does not state its microns per pixel: give --example-mpp, such as 0.5"
            ) from error
        pixels = opened.read_region(0, 0, 0, *opened.dimensions)
    return Shot(pixels, read_mask(mask) > 0, (mpp_x + mpp_y) / 2, os.fspath(image))
