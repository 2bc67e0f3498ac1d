"""A slide with known shapes on it, and a fake model that finds them."""

from __future__ import annotations

from shapely import Polygon

from wsiseg.result import Result
from wsiseg.testing import FakeModel, disk, ring, stripe

MODEL = FakeModel(mpp=1.0, tile_size=128, overlap=32)
# On a slide of 0.5 µm/px the tiles of MODEL begin every 192 px: the large shapes cross several borders.
SHAPES = {
    "olive": [
        disk(200, 180, 60),
        disk(336, 180, 60),  # 16 px from its neighbour
        ring(800, 300, 190, 110),
        disk(800, 300, 25),  # an island in the ring's hole
        stripe(0, 560, 900, 31),  # from the slide's left edge, over the glass
    ],
    "orange": [stripe(300, 640, 37, 120), ring(1000, 640, 80, 20)],
}
QUERIES = ["outline the olive", "outline the orange"]


def outlines(result: Result, query: str) -> list[Polygon]:
    return [a.geometry for a in result.annotations if a.metadata["query"] == query]
