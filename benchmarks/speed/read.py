"""Reading 512-px patches at a native level: CPU seconds per delivered gigapixel. Peer: openslide-python."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.speed.rows import Row, Setup, measure_cost, with_ratios
from wsiseg.slide import open_slide
from wsiseg.tiles import Grid, GridSpec, SlideTiles, plan_grid

PEER = "openslide read_region"
TILE_PX = 512


def measure(setup: Setup) -> list[Row]:
    rows = []
    for name, overlap in (("aligned grid", 0), ("overlap 64", 64), ("25 % overlap", 128)):
        with open_slide(setup.slide) as slide:
            grid = plan_grid(slide, GridSpec(slide.mpp[0], TILE_PX, overlap))
        ways = {
            "limit: each touched native tile decoded once": limit,
            "wsiseg SlideTiles": ours,
            PEER: openslide_regions,
            "tiffslide read_region": tiffslide_regions,
        }
        part = []
        for way, function in ways.items():
            cost = measure_cost(function, setup.slide, grid, repeat=setup.repeat)
            gigapixels = len(grid) * TILE_PX**2 / 1e9
            part.append(Row(f"read, {name}", way, cost.cpu_s / gigapixels, "Gpx", cost.peak_mb))
        rows += with_ratios(part, PEER)
    return rows


def limit(path: Path, grid: Grid) -> None:
    from wsiseg.tiles.native import open_native_level

    with open_slide(path) as slide:
        native = open_native_level(slide, 0)
        assert native is not None
        boxes = ((x, y, TILE_PX, TILE_PX) for x, y in grid.m_xy.tolist())
        for key in sorted({key for box in boxes for key in product(*native.ranges(*box))}):
            native.decode(key)
        native.close()


def ours(path: Path, grid: Grid) -> None:
    with open_slide(path) as slide:
        for _ in SlideTiles(slide, grid).batches(8):
            pass


def openslide_regions(path: Path, grid: Grid) -> None:
    import openslide

    with openslide.OpenSlide(path) as slide:
        for x, y in grid.m_xy.tolist():
            np.asarray(slide.read_region((x, y), 0, (TILE_PX, TILE_PX)).convert("RGB"))


def tiffslide_regions(path: Path, grid: Grid) -> None:
    import tiffslide

    with tiffslide.TiffSlide(path) as slide:
        for x, y in grid.m_xy.tolist():
            slide.read_region((x, y), 0, (TILE_PX, TILE_PX), as_array=True)
