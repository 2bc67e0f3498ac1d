"""Microns per pixel: which statements are believed, and how levels relate to level 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wsiseg.errors import MissingMppError

# 100x oil objectives reach 0.05 µm/px; DICOM overviews go up to about 30. Beyond 40 lie the print
# resolutions that image editors write (600, 300, 96 and 72 dpi are 42, 85, 265 and 353 µm/px).
MPP_RANGE = (0.05, 40.0)


def plausible(mpp: tuple[float, float]) -> bool:
    """Whether both values can be a microscope's scale (NaN and infinities cannot)."""
    return all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in mpp)


def tidy(value: object) -> float | None:
    """A number from a slide's metadata, rounded to nine digits, or None.

    Backends divide the same two integers in different ways; nine digits hide that and keep any scale.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return float(f"{number:.9g}")


def stated_mpp(x: object, y: object) -> tuple[float, float] | None:
    """The (x, y) scale that a slide states, or None where one of the two is missing."""
    mpp_x, mpp_y = tidy(x), tidy(y)
    return None if mpp_x is None or mpp_y is None else (mpp_x, mpp_y)


def supplied_mpp(value: float | Sequence[float]) -> tuple[float, float]:
    """The scale given by the user, one number or (x, y).

    Raises:
        MissingMppError: not a scale that a microscope has.
    """
    numbers = np.array(value, float).ravel().tolist()
    mpp = (numbers[0], numbers[-1]) if 1 <= len(numbers) <= 2 else (math.nan, math.nan)
    if not plausible(mpp):
        raise MissingMppError(
            f"--slide-mpp {_show(mpp)} cannot be a slide's scale: give microns per level-0 pixel, "
            f"between {MPP_RANGE[0]} and {MPP_RANGE[1]:g}, for example 0.25 for a 40x scan"
        )
    return mpp


def checked_mpp(source: str, mpp: tuple[float, float] | None) -> tuple[float, float]:
    """The stated scale, if it is one.

    Raises:
        MissingMppError: missing or absurd; the message names --slide-mpp.
    """
    hint = "give it with --slide-mpp, for example --slide-mpp 0.25 for a 40x scan or 0.5 for 20x"
    if mpp is None:
        raise MissingMppError(f"{source} does not state its microns per pixel: {hint}")
    if not plausible(mpp):
        raise MissingMppError(
            f"{source} states {_show(mpp)} microns per pixel, which is no microscope's scale: {hint}"
        )
    return mpp


def _show(mpp: tuple[float, float]) -> str:
    return f"{mpp[0]:g}" if mpp[0] == mpp[1] else f"{mpp[0]:g} x {mpp[1]:g}"


def level_scale(l0_size: int, size: int, downsample: float) -> float:
    """Level-0 pixels per pixel of a level along one axis.

    Scanners shrink by a whole factor and drop or keep the odd last row, so 2967 rows become 1483. The ratio
    of the sizes (2.0007) then misplaces the far edge by up to a level pixel; the whole factor does not.
    """
    factor = round(downsample)
    if factor >= 1 and abs(size - l0_size / factor) < 1:
        return float(factor)
    return l0_size / size


def snapped(scale: float, length_px: int) -> float:
    """`scale`, or 1 where the two differ by less than 1/64 pixel over `length_px` pixels."""
    return 1.0 if abs(scale - 1.0) * length_px < 1 / 64 else scale


def m_size(l0_size: int, l0_per_m: float) -> int:
    """Pixels that an axis of level 0 fills on the m_ plane, at least one."""
    return max(1, math.ceil(l0_size / l0_per_m - 1e-6))
