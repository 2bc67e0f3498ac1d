"""A slide as Deep Zoom tiles, whatever reads it.

Planes: `z` Deep Zoom level, of which the last is level 0 and each one before it half as wide; `t_` index of a
tile; `m_` pixels of level z. The image is the whole slide, so that tiles lie on whole pixels at every level;
what QuPath does not show of it (OpenSlide bounds) the page leaves out.
"""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image

from wsiseg.slide import Slide

TILE_PX = 512
OVERLAP_PX = 1  # on each side towards a neighbour: enlarged tiles would show seams without it
_KEPT_TILES = 512  # encoded, some 60 kB each
_JPEG_QUALITY = 85


class DeepZoom:
    """JPEG tiles of an open slide, cut when asked for; may be asked from several threads."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.last_level = (max(slide.dimensions) - 1).bit_length()
        self._cut = lru_cache(_KEPT_TILES)(self._encode)

    @property
    def first_level(self) -> int:
        """The finest level that is one tile."""
        return max(0, self.last_level - ((max(self.slide.dimensions) - 1) // TILE_PX).bit_length())

    def size(self, z: int) -> tuple[int, int]:
        """(width, height) of a level."""
        scale = 1 << (self.last_level - z)
        width, height = self.slide.dimensions
        return -(-width // scale), -(-height // scale)

    def tile(self, z: int, t_x: int, t_y: int) -> bytes | None:
        """A tile with its overlap as JPEG, less wide and high at the edges of the slide; None where there is none.

        Raises SlideError: the slide cannot be read there.
        """
        if not self.first_level <= z <= self.last_level:
            return None
        width, height = self.size(z)
        if not (0 <= t_x * TILE_PX < width and 0 <= t_y * TILE_PX < height):
            return None
        return self._cut(z, t_x, t_y)

    def _encode(self, z: int, t_x: int, t_y: int) -> bytes:
        width, height = self.size(z)
        (m_x, m_width), (m_y, m_height) = _span(t_x, width), _span(t_y, height)
        l0_per_m = float(1 << (self.last_level - z))
        pixels = self.slide.read_scaled((l0_per_m, l0_per_m), m_x, m_y, m_width, m_height)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return encoded.getvalue()


def _span(t: int, length: int) -> tuple[int, int]:
    """Start and length of tile `t` along an axis, in pixels of its level."""
    start = max(t * TILE_PX - OVERLAP_PX, 0)
    return start, min((t + 1) * TILE_PX + OVERLAP_PX, length) - start
