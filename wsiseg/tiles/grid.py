"""Plan which square tiles of a slide are read: one 1-D rule for both axes, tiles over tissue only.

Planes: `l0_` level-0 pixels; `m_` model pixels, that is level 0 scaled by slide.mpp / grid.mpp on each axis;
`t_` index of a tile row or column in the full lattice. Corners are anchored at (0, 0) of the slide, so the
same slide and the same specification always give the same grid.

No tile hangs over the slide's edge, where a model would see tissue that ends for no reason. Only what is smaller than
a tile, such as a patch of a data set, cannot fill one: it lies in the middle, mirrored around (`mirror_beyond`), as
such pictures do in training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wsiseg.errors import StoreError

if TYPE_CHECKING:
    from wsiseg.slide import Slide
    from wsiseg.slide.tissue import TissueMask


log = logging.getLogger(__name__)

_ENLARGED = 2.0  # a slide enlarged more than this is worth a warning


@dataclass(frozen=True)
class GridSpec:
    """What is asked for: square tiles of `tile_size` model pixels at `mpp` microns per pixel.

    Neighbours share `overlap` model pixels, at the right and bottom edge more. A tile is kept when at least
    `min_tissue` of its part inside the slide is tissue; 0 keeps every tile.

    Raises:
        StoreError: a value out of its range.
    """

    mpp: float
    tile_size: int = 512
    overlap: int = 64
    min_tissue: float = 0.02

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mpp) and 0 < self.mpp <= 1000):
            raise StoreError(f"tile grid: mpp must lie above 0 and at most 1000 µm per pixel, not {self.mpp!r}")
        if not 1 <= self.tile_size <= 16384:
            raise StoreError(f"tile grid: tile size must lie in 1..16384 pixels, not {self.tile_size!r}")
        if not 0 <= self.overlap < self.tile_size:
            raise StoreError(
                f"tile grid: overlap must lie in 0..{self.tile_size - 1}, below the tile size, not {self.overlap!r}"
            )
        if not 0 <= self.min_tissue <= 1:
            raise StoreError(f"tile grid: minimum tissue must lie in 0..1, not {self.min_tissue!r}")
        for name in ("mpp", "min_tissue"):  # 1 and 1.0 are one grid, but two texts in a fingerprint
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True)
class SlideIdentity:
    """Which slide a grid belongs to, in values that survive JSON; `source` is told, never compared."""

    source: str
    fingerprint: str
    vendor: str
    l0_width: int
    l0_height: int
    mpp_x: float
    mpp_y: float
    l0_bounds: tuple[int, int, int, int] | None = None

    @classmethod
    def of(cls, slide: Slide) -> SlideIdentity:
        """Raises MissingMppError when the slide states no microns per pixel."""
        mpp_x, mpp_y = slide.mpp
        return cls(
            source=str(slide.source),
            fingerprint=slide.fingerprint,
            vendor=slide.vendor,
            l0_width=int(slide.dimensions[0]),
            l0_height=int(slide.dimensions[1]),
            mpp_x=float(mpp_x),
            mpp_y=float(mpp_y),
            l0_bounds=slide.l0_bounds,
        )


@dataclass(frozen=True, eq=False)
class Grid:
    """The planned tiles of one slide, in row-major order (y, then x).

    m_xy: (N, 2) int64, top-left corners in model pixels; below 0 where the slide is smaller than a tile.
    tissue: (N,) float32, fraction of tissue in the part of the tile inside the slide.
    """

    spec: GridSpec
    slide: SlideIdentity
    m_width: int
    m_height: int
    m_xy: np.ndarray
    tissue: np.ndarray

    def __len__(self) -> int:
        return len(self.m_xy)

    def only(self, kept: np.ndarray) -> Grid:
        """Without the tiles that are not marked in `kept`, (N,) bool."""
        return replace(self, m_xy=self.m_xy[kept], tissue=self.tissue[kept])

    @property
    def l0_per_m(self) -> tuple[float, float]:
        """Level-0 pixels per model pixel, (x, y)."""
        return self.spec.mpp / self.slide.mpp_x, self.spec.mpp / self.slide.mpp_y

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides the pixels of the tiles: slide, scale, sizes and corners.

        Where the file lies is left out: a slide that was moved is the same slide.
        """
        slide = {key: value for key, value in asdict(self.slide).items() if key != "source"}
        said = json.dumps({"spec": asdict(self.spec), "slide": slide}, sort_keys=True)
        corners = np.ascontiguousarray(self.m_xy, dtype="<i8").tobytes()
        return hashlib.sha256(said.encode() + b"\0" + corners).hexdigest()


def tile_starts(length: int, tile_size: int, overlap: int) -> np.ndarray:
    """Starts (n,) int64 of tiles that cover 0..length on one axis.

    Neighbours share exactly `overlap` pixels, but for the last tile, which is moved back to end where the axis does;
    without it the axis is not covered. A tile that is longer than the axis lies around its middle.

    >>> tile_starts(1000, 512, 64)
    array([  0, 448, 488])
    >>> tile_starts(500, 512, 64)
    array([-6])
    """
    if length < tile_size:
        return np.array([(length - tile_size) // 2], np.int64)
    stride = tile_size - overlap
    starts = np.arange(math.ceil((length - overlap) / stride), dtype=np.int64) * stride
    return np.minimum(starts, length - tile_size)


def mirror_beyond(tile: np.ndarray, m_start: tuple[int, int], m_size: tuple[int, int]) -> None:
    """Fill what of a tile (H, W, 3) lies beyond a slide that is smaller: the slide goes on as its mirror image.

    m_start, m_size: the tile's corner, as `tile_starts` has it, and the slide's size, (x, y).
    """
    for axis, start, length in zip((1, 0), m_start, m_size, strict=True):
        if length < tile.shape[axis]:
            m = np.arange(start, start + tile.shape[axis]) % (2 * length)
            tile[...] = tile.take(np.minimum(m, 2 * length - 1 - m) - start, axis)


def _coverage(starts: np.ndarray, ends: np.ndarray, cells: int) -> np.ndarray:
    """Share (n, cells) of each interval [start, end) that falls into cell k = [k, k + 1); rows sum to 1.

    The last cell reaches on for ever: a thumbnail may be a fraction of a pixel shorter than its slide.
    """
    edges = np.append(np.arange(cells, dtype=np.float64), np.inf)
    shared = np.minimum(ends[:, None], edges[None, 1:]) - np.maximum(starts[:, None], edges[None, :-1])
    return np.clip(shared, 0, None) / (ends - starts)[:, None]


def tissue_fractions(
    mask: np.ndarray,
    m_per_cell: tuple[float, float],
    m_size: tuple[int, int],
    m_starts: tuple[np.ndarray, np.ndarray],
    tile_size: int,
) -> np.ndarray:
    """Tissue fraction (rows, columns) of each tile of the lattice, exact for a mask of square cells.

    mask (h, w) bool; m_per_cell, m_size and m_starts are (x, y). Only the part of a tile inside the slide
    counts.
    """
    x, y = (
        _coverage(np.maximum(starts, 0) / per_cell, np.minimum(starts + tile_size, length) / per_cell, cells)
        for starts, per_cell, length, cells in zip(m_starts, m_per_cell, m_size, mask.shape[::-1], strict=True)
    )
    # Rounded, so that the last bit of a matrix product cannot tip a tile in or out on another machine.
    return np.round(y @ mask.astype(np.float64) @ x.T, 4).astype(np.float32)


def plan_grid(slide: Slide, spec: GridSpec, *, tissue: TissueMask | None = None) -> Grid:
    """The tiles of `slide` that hold tissue; an empty slide gives an empty grid.

    tissue: the slide's mask if it is at hand; computed otherwise.

    Raises:
        MissingMppError: the slide states no microns per pixel.
        SlideError: the thumbnail cannot be read.
    """
    identity = SlideIdentity.of(slide)
    if spec.mpp < min(identity.mpp_x, identity.mpp_y) / _ENLARGED:
        log.warning(
            "%s has %.4g µm per pixel at best: tiles at %.4g are enlarged and show no more detail",
            identity.source, identity.mpp_x, spec.mpp,
        )  # fmt: skip
    m_width, m_height = slide.m_dimensions(spec.mpp)
    m_x = tile_starts(m_width, spec.tile_size, spec.overlap)
    m_y = tile_starts(m_height, spec.tile_size, spec.overlap)
    if tissue is None:
        from wsiseg.slide.tissue import tissue_mask

        tissue = tissue_mask(slide)
    m_per_cell = (
        tissue.l0_per_px[0] * identity.mpp_x / spec.mpp,
        tissue.l0_per_px[1] * identity.mpp_y / spec.mpp,
    )
    fractions = tissue_fractions(tissue.mask, m_per_cell, (m_width, m_height), (m_x, m_y), spec.tile_size)
    t_row, t_column = np.nonzero(fractions >= spec.min_tissue)
    return Grid(
        spec=spec,
        slide=identity,
        m_width=m_width,
        m_height=m_height,
        m_xy=np.stack([m_x[t_column], m_y[t_row]], axis=1),
        tissue=fractions[t_row, t_column],
    )


def touching(grid: Grid, l0_box: tuple[float, float, float, float]) -> Grid:
    """The tiles of `grid` that share area with a box (x, y, width, height) in level-0 pixels.

    Every pixel in the box is covered by the same tiles as in the whole grid, so its answer is the same.
    """
    l0_start = np.array(l0_box[:2])
    l0_xy = grid.m_xy * grid.l0_per_m  # (N, 2)
    l0_size = grid.spec.tile_size * np.array(grid.l0_per_m)
    kept = ((l0_xy < l0_start + l0_box[2:]) & (l0_xy + l0_size > l0_start)).all(axis=1)
    return grid.only(kept)
