"""A slide that is pure arithmetic, for tests of the planner, the queue and the store."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from wsiseg.slide.scale import m_size


@dataclass
class FakeMask:
    mask: np.ndarray
    l0_per_px: tuple[float, float]


@dataclass
class FakeSlide:
    """Model pixel (x, y) has the colour (x, y, x ^ y) mod 251; reads can fail or be slow."""

    dimensions: tuple[int, int] = (4000, 3000)
    mpp: tuple[float, float] = (0.5, 0.5)
    fingerprint: str = "fake"
    source: str = "fake.svs"
    vendor: str = "fake"
    backend: str = "image"  # whose file is not looked at again
    l0_bounds: tuple[int, int, int, int] | None = None
    fail_after: int | None = None
    seconds_per_tile: float = 0.0
    reads: int = 0

    def m_dimensions(self, mpp: float) -> tuple[int, int]:
        width, height = (m_size(size, mpp / own) for size, own in zip(self.dimensions, self.mpp, strict=True))
        return width, height

    def level_for_mpp(self, mpp: float) -> tuple[int, tuple[float, float]]:
        return 0, (mpp / self.mpp[0], mpp / self.mpp[1])

    def native_source(self) -> None:
        return None

    def read_at_mpp(self, m_x: int, m_y: int, m_width: int, m_height: int, mpp: float) -> np.ndarray:
        self.reads += 1
        if self.fail_after is not None and self.reads > self.fail_after:
            raise OSError("the disk is gone")
        time.sleep(self.seconds_per_tile)
        x = np.arange(m_x, m_x + m_width)[None, :] + np.zeros((m_height, 1), np.int64)
        y = np.arange(m_y, m_y + m_height)[:, None] + np.zeros((1, m_width), np.int64)
        return np.stack([x % 251, y % 251, (x ^ y) % 251], axis=-1).astype(np.uint8)


def all_tissue(slide: FakeSlide) -> FakeMask:
    return FakeMask(np.ones((30, 40), bool), (slide.dimensions[0] / 40, slide.dimensions[1] / 30))
