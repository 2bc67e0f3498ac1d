"""The whole road without a model: slide in, GeoJSON out. Peer: the peers of the parts, put one after another.

The model is a threshold on the red channel, the same in both roads, and its time is in both figures; so is
the search for tissue. TIAToolbox, whose parts cost about what this peer's do, cannot be installed beside wsiseg.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.speed.rows import Row, Setup, measure_cost, with_ratios
from wsiseg.inference import TileMask
from wsiseg.slide import open_slide
from wsiseg.tiles import GridSpec, plan_grid

PEER = "openslide, whole canvas, rasterio, json.dumps"
TILE_PX, OVERLAP_PX, MPP = 512, 128, 0.5


class RedThreshold:
    """A `Segmenter` that costs next to nothing: dark in red is foreground."""

    name, fingerprint, tile_size, overlap = "red", "red-1", TILE_PX, OVERLAP_PX

    def mpp_for(self, query: str) -> float:
        return MPP

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        return [TileMask(probability(tile), "", 1.0) for tile in tiles]


def probability(tile: np.ndarray) -> np.ndarray:
    """(H, W) float32 from (H, W, 3) uint8."""
    return (tile[..., 0] < 140).astype(np.float32)


def measure(setup: Setup) -> list[Row]:
    out = setup.folder / "road.geojson"
    with open_slide(setup.slide) as slide:
        gigapixels = slide.dimensions[0] * slide.dimensions[1] / 1e9
    rows = []
    for way, function in (("wsiseg.segment", ours), (PEER, parts)):
        cost = measure_cost(function, setup.slide, out, repeat=setup.repeat)
        rows.append(Row("whole road", way, cost.cpu_s / gigapixels, "Gpx of slide", cost.peak_mb))
    return with_ratios(rows, PEER)


def ours(path: Path, out: Path) -> None:
    import wsiseg

    wsiseg.segment(path, "what is dark", model=RedThreshold()).write(out)


def parts(path: Path, out: Path) -> None:
    import openslide
    import rasterio.features
    from shapely.geometry import mapping, shape

    with open_slide(path) as slide:
        grid = plan_grid(slide, GridSpec(MPP, TILE_PX, OVERLAP_PX))
    total = np.zeros((grid.m_height + TILE_PX, grid.m_width + TILE_PX), np.float32)
    count = np.zeros_like(total)
    with openslide.OpenSlide(path) as reader:
        for x, y in grid.m_xy.tolist():
            tile = np.asarray(reader.read_region((x, y), 0, (TILE_PX, TILE_PX)).convert("RGB"))
            total[y : y + TILE_PX, x : x + TILE_PX] += probability(tile)
            count[y : y + TILE_PX, x : x + TILE_PX] += 1
    mask = (total >= 0.5 * np.maximum(count, 1)).astype(np.uint8)
    features = []
    for geometry, _ in rasterio.features.shapes(mask, mask=mask.astype(bool), connectivity=4):
        polygon = shape(geometry).simplify(0.5)
        if polygon.area * MPP**2 >= 10:
            features.append({"type": "Feature", "properties": {}, "geometry": mapping(polygon)})
    out.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
