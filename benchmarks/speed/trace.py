"""From a mask to polygons: CPU seconds for a map of 8,192². Peer: rasterio.features.shapes, 4-connected.

cv2 and contourpy stand beside it. cv2 runs its contours through pixel centres: its areas are wrong by some
per cent, and part of its polygons is invalid. Whole-image contourpy draws the smooth outlines that
`contour` draws. TIAToolbox and LazySlide trace with cv2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import shapely

from benchmarks.speed.probability import SIDE, probability_map
from benchmarks.speed.rows import Row, Setup, measure_cost, with_ratios
from wsiseg.mask import contour, simplify, trace

PEER = "rasterio.features.shapes"
SIMPLIFY_PEER = "shapely.simplify, preserve_topology"
HALF = 128  # the lowest value that belongs to the foreground
BAND = 256


def measure(setup: Setup) -> list[Row]:
    source = probability_map(setup.folder / "probability.npy")
    unit = f"{SIDE:,}² map"
    pixels = int(_mask(source).sum())
    traced = []
    for way, function in (
        ("wsiseg trace (exact)", with_trace),
        ("wsiseg contour (smooth)", with_contour),
        (PEER, with_rasterio),
        ("cv2.findContours", with_cv2),
        ("contourpy, whole (smooth)", with_contourpy),
    ):
        cost = measure_cost(function, source, repeat=setup.repeat)
        polygons = cost.result
        valid = shapely.is_valid(polygons)
        area = shapely.area(polygons).sum() / pixels - 1
        said = "" if way == PEER else f": {valid.mean():.1%} valid, area {area:+.2%}"
        traced.append(Row("trace", way + said, cost.cpu_s, unit, cost.peak_mb))
    outlines = setup.folder / "outlines.npy"
    smooth = contour(_bands(source), SIDE, HALF)
    np.save(outlines, shapely.to_wkb(smooth), allow_pickle=True)
    simplified = []
    for way, thin in (("wsiseg simplify", with_simplify), (SIMPLIFY_PEER, with_shapely)):
        cost = measure_cost(thin, outlines, repeat=setup.repeat)
        simplified.append(Row("simplify", way, cost.cpu_s, f"{len(smooth):,} outlines", cost.peak_mb))
    return with_ratios(traced, PEER) + with_ratios(simplified, SIMPLIFY_PEER)


def _bands(source: Path) -> Iterator[tuple[int, np.ndarray]]:
    raster = np.load(source, mmap_mode="r")
    return ((y, np.asarray(raster[y : y + BAND])) for y in range(0, SIDE, BAND))


def _mask(source: Path) -> np.ndarray:
    return (np.load(source) >= HALF).view(np.uint8)


def with_trace(source: Path) -> np.ndarray:
    return trace(((y, band >= HALF) for y, band in _bands(source)), SIDE)


def with_contour(source: Path) -> np.ndarray:
    return contour(_bands(source), SIDE, HALF)


def with_rasterio(source: Path) -> np.ndarray:
    import rasterio.features

    mask = _mask(source)
    shapes = rasterio.features.shapes(mask, mask=mask.view(bool), connectivity=4)
    return np.array([shapely.Polygon(s["coordinates"][0], s["coordinates"][1:]) for s, _ in shapes], object)


def with_cv2(source: Path) -> np.ndarray:
    import cv2

    rings, hierarchy = cv2.findContours(_mask(source), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes: dict[int, list[np.ndarray]] = {}
    for ring, (_, _, _, parent) in zip(rings, hierarchy[0], strict=True):
        if parent >= 0 and len(ring) > 2:
            holes.setdefault(int(parent), []).append(ring[:, 0])
    shells = [i for i, links in enumerate(hierarchy[0]) if links[3] < 0 and len(rings[i]) > 2]
    return np.array([shapely.Polygon(rings[i][:, 0], holes.get(i, [])) for i in shells], object)


def with_contourpy(source: Path) -> np.ndarray:
    import contourpy

    generator = contourpy.contour_generator(z=np.load(source), fill_type=contourpy.FillType.OuterOffset)
    points, offsets = cast("tuple[list[Any], list[Any]]", generator.filled(HALF - 0.5, np.inf))
    polygons = []
    for xy, ends in zip(points, offsets, strict=True):
        rings = [xy[a:b] for a, b in pairwise(ends)]
        polygons.append(shapely.Polygon(rings[0], rings[1:]))
    return np.array(polygons, object)


def with_simplify(outlines: Path) -> None:
    simplify(shapely.from_wkb(np.load(outlines, allow_pickle=True)), 0.25)


def with_shapely(outlines: Path) -> None:
    shapely.simplify(shapely.from_wkb(np.load(outlines, allow_pickle=True)), 0.25, preserve_topology=True)
