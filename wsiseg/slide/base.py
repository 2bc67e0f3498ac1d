"""The one interface to slides: levels, scale, and pixels at any microns per pixel."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from wsiseg.errors import PixelError, SlideError
from wsiseg.slide.patience import patiently
from wsiseg.slide.resample import WHITE, resample_region
from wsiseg.slide.scale import checked_mpp, level_scale, m_size, snapped, supplied_mpp

# A level up to 2 % coarser than asked for still serves: scanners' 0.2527 µm/px means "a quarter".
_LEVEL_TOLERANCE = 1.02
_BLOCK_PX = 256  # native tiles of most scanners


@dataclass(frozen=True)
class Header:
    """What a backend found out about a slide. Sizes are (width, height), scales are (x, y)."""

    vendor: str
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    fingerprint: str
    mpp: tuple[float, float] | None = None
    objective_power: float | None = None
    l0_bounds: tuple[int, int, int, int] | None = None
    associated_images: tuple[str, ...] = ()
    icc_profile: bytes | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


def stated_bounds(properties: Mapping[str, Any], library: str) -> tuple[int, int, int, int] | None:
    """x, y, width, height of the scanned part, where the properties that `library` gives state all of them."""
    stated: list[Any] = [properties.get(f"{library}.bounds-{name}") for name in ("x", "y", "width", "height")]
    if None in stated:
        return None
    x, y, width, height = map(int, stated)
    return x, y, width, height


class Slide(ABC):
    """An open slide. A context manager; reads may run in several threads at once.

    Attributes:
        source: path or URL as given. backend: "openslide", "tiffslide" or "image". vendor: "aperio", …
        level_dimensions: (width, height) per level. level_downsamples: as the backend states them.
        level_scales: level-0 pixels per level pixel, (x, y) per level, with scanners' whole factors restored.
        stated_mpp: microns per level-0 pixel, (x, y), as the file has them. supplied_mpp: what is taken in their place.
        l0_bounds: x, y, width, height of the scanned part, where the slide states it (OpenSlide bounds).
        fingerprint: of the content; the same whichever backend reads it and wherever it lies.
    """

    backend: str

    def __init__(
        self, source: str, header: Header, slide_mpp: float | tuple[float, float] | None = None
    ) -> None:
        self._reads, self._reads_lock = 0, threading.Lock()
        self.source = source
        self.vendor = header.vendor
        self.level_dimensions = header.level_dimensions
        self.level_downsamples = header.level_downsamples
        self.fingerprint = header.fingerprint
        self.stated_mpp = header.mpp
        self.objective_power = header.objective_power
        self.l0_bounds = header.l0_bounds
        self.associated_images = header.associated_images
        self.icc_profile = header.icc_profile
        self.properties = header.properties
        self.supplied_mpp = None if slide_mpp is None else supplied_mpp(slide_mpp)
        l0_width, l0_height = self.dimensions
        self.level_scales = tuple(
            (level_scale(l0_width, width, downsample), level_scale(l0_height, height, downsample))
            for (width, height), downsample in zip(self.level_dimensions, self.level_downsamples, strict=True)
        )

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.level_dimensions[0]

    @property
    def mpp(self) -> tuple[float, float]:
        """Microns per level-0 pixel, (x, y).

        Raises:
            MissingMppError: the slide states none, or an absurd one, and none was supplied.
        """
        return self.supplied_mpp or checked_mpp(self.source, self.stated_mpp)

    def l0_per_m(self, mpp: float) -> tuple[float, float]:
        """Level-0 pixels per pixel of the m_ plane at `mpp`, (x, y)."""
        return mpp / self.mpp[0], mpp / self.mpp[1]

    def m_dimensions(self, mpp: float) -> tuple[int, int]:
        """(width, height) of the whole slide on the m_ plane at `mpp`."""
        per_x, per_y = self.l0_per_m(mpp)
        return m_size(self.dimensions[0], per_x), m_size(self.dimensions[1], per_y)

    def best_level(self, l0_per_m: tuple[float, float]) -> int:
        """The coarsest level that is still as fine as the m_ plane in both directions."""
        fits = [
            level
            for level, scale in enumerate(self.level_scales)
            if all(s <= per * _LEVEL_TOLERANCE for s, per in zip(scale, l0_per_m, strict=True))
        ]
        return max(fits, key=lambda level: self.level_scales[level], default=0)

    def level_for_mpp(self, mpp: float) -> tuple[int, tuple[float, float]]:
        """The level to read for `mpp`, and its pixels per m_ pixel, (x, y)."""
        return self._level_for(self.l0_per_m(mpp))

    def read_region(self, l0_x: int, l0_y: int, level: int, width: int, height: int) -> np.ndarray:
        """Pixels of one level.

        l0_x, l0_y: top left corner in level-0 pixels; width, height: in pixels of the level.
        Returns (height, width, 3) uint8; what lies outside the slide or is transparent is white.

        Raises:
            SlideError: the file cannot be decoded there, or there is no such level.
        """
        if not 0 <= level < len(self.level_dimensions):
            raise SlideError(f"{self.source} has no level {level}: it has {len(self.level_dimensions)}")
        scale_x, scale_y = self.level_scales[level]
        return self.read_level(level, round(l0_x / scale_x), round(l0_y / scale_y), width, height)

    def read_level(self, level: int, r_x: int, r_y: int, width: int, height: int) -> np.ndarray:
        """As `read_region`, with the corner in pixels of the level itself."""
        level_width, level_height = self.level_dimensions[level]
        x0, y0 = max(r_x, 0), max(r_y, 0)
        x1, y1 = min(r_x + width, level_width), min(r_y + height, level_height)
        inside = x0 < x1 and y0 < y1
        if inside and (x0, y0, x1, y1) == (r_x, r_y, r_x + width, r_y + height):
            return self._read(level, r_x, r_y, width, height)
        out = np.full((height, width, 3), WHITE, np.uint8)
        if inside:
            out[y0 - r_y : y1 - r_y, x0 - r_x : x1 - r_x] = self._read(level, x0, y0, x1 - x0, y1 - y0)
        return out

    def read_at_mpp(self, m_x: int, m_y: int, m_width: int, m_height: int, mpp: float) -> np.ndarray:
        """Pixels at `mpp` microns per pixel: the best level, then one antialiased bicubic resize.

        The m_ plane is level 0 scaled by slide mpp / `mpp` along each axis, so that anisotropic slides come
        out isotropic. Overlapping boxes read separately are equal where they overlap.
        Returns (m_height, m_width, 3) uint8; white outside the slide.

        Raises:
            MissingMppError: the slide has no scale.
            SlideError: it cannot be decoded, or gives no answer.
        """
        return self.read_scaled(self.l0_per_m(mpp), m_x, m_y, m_width, m_height)

    def thumbnail(self, max_px: int, unreadable: tuple[int, int, int] | None = None) -> np.ndarray:
        """The whole slide, its longer side `max_px` pixels (or as many as it has).

        unreadable: colour for what cannot be decoded; None makes it an error.
        Returns (height, width, 3) uint8. Needs no microns per pixel.

        Raises:
            SlideError: it cannot be decoded, or gives no answer.
        """
        width, height = self.dimensions
        per_px = max(width, height) / min(max_px, max(width, height))
        out_width, out_height = max(1, round(width / per_px)), max(1, round(height / per_px))
        l0_per_px = width / out_width, height / out_height

        def read(level: int, r_x: int, r_y: int, width: int, height: int) -> np.ndarray:
            try:
                return patiently(self.source, lambda: self._read(level, r_x, r_y, width, height))
            except PixelError:
                return self._readable(level, r_x, r_y, width, height, unreadable)

        return self.read_scaled(l0_per_px, 0, 0, out_width, out_height, read)

    def read_scaled(
        self,
        l0_per_m: tuple[float, float],
        m_x: int,
        m_y: int,
        m_width: int,
        m_height: int,
        read_level: Callable[[int, int, int, int, int], np.ndarray] | None = None,
    ) -> np.ndarray:
        """As `read_at_mpp`, on the plane of `l0_per_m` level-0 pixels per pixel; needs no microns per pixel.

        read_level: gives boxes (level, x, y, width, height) inside a level, in place of the slide itself.
        """
        level, scale = self._level_for(l0_per_m)
        read = partial(read_level or self._read, level)
        return resample_region(read, self.level_dimensions[level], scale, m_x, m_y, m_width, m_height)

    def _readable(
        self, level: int, r_x: int, r_y: int, width: int, height: int, unreadable: tuple[int, int, int] | None
    ) -> np.ndarray:
        """A box inside the level, block by block, those that cannot be decoded in the colour `unreadable`.

        Raises:
            PixelError: of the first that cannot be decoded, without a colour.
        """
        out = np.empty((height, width, 3), np.uint8)
        for y in range(0, height, _BLOCK_PX):
            for x in range(0, width, _BLOCK_PX):
                block = out[y : y + _BLOCK_PX, x : x + _BLOCK_PX]
                try:
                    box = (level, r_x + x, r_y + y, block.shape[1], block.shape[0])
                    block[...] = patiently(self.source, partial(self._read, *box))
                except PixelError:
                    if unreadable is None:
                        raise
                    block[...] = unreadable
        return out

    def _read(self, level: int, r_x: int, r_y: int, width: int, height: int) -> np.ndarray:
        with self._reads_lock:
            self._reads += 1
        try:
            return self._read_inside(level, r_x, r_y, width, height)
        finally:
            with self._reads_lock:
                self._reads -= 1

    def _level_for(self, l0_per_m: tuple[float, float]) -> tuple[int, tuple[float, float]]:
        level = self.best_level(l0_per_m)
        (scale_x, scale_y), (width, height) = self.level_scales[level], self.level_dimensions[level]
        return level, (snapped(l0_per_m[0] / scale_x, width), snapped(l0_per_m[1] / scale_y, height))

    @abstractmethod
    def _read_inside(self, level: int, r_x: int, r_y: int, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 of a box that lies inside the level."""

    def native_source(self) -> Path | None:
        """Local path of a tiled TIFF whose tiles may be decoded directly, or None."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Give back the file. Nothing may be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._reads:  # a read that hangs was given up, and may still use the file: it is left open
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source!r} {self.dimensions[0]}x{self.dimensions[1]}>"
