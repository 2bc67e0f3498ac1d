"""Outlines that every format has to carry: found ones, on a slide whose corner is not QuPath's, and awkward ones."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import shapely

from wsiseg import Result, segment
from wsiseg.geojson import Annotation
from wsiseg.qupath import DESCRIPTION, class_color
from wsiseg.testing import FakeModel, disk, ring, stripe, synthetic_slide

HOSTILE = "../../etc/<script>&\"'\\  \ufffe 漢字 ]]>"
AWKWARD = [
    (HOSTILE, shapely.MultiPolygon([ring(1000, 150, 60, 20), disk(1000, 300, 30)])),
    ("Exclusion", ring(200, 160, 50, 20)),
    ("None", disk(400, 160, 30)),
    ("", disk(520, 160, 30)),
]


def awkward(index: int, name: str, geometry: shapely.Geometry) -> Annotation:
    return Annotation(
        id=uuid.uuid5(uuid.NAMESPACE_DNS, str(index)),
        geometry=geometry,
        name=name or "nameless",
        classification=name,
        color=class_color(name),
        measurements={"Area µm^2": 1.5 + index, "id": 7.0, "not finite": float("nan")},
        metadata={"geometry": "a text", DESCRIPTION: f"because of {HOSTILE} and \ud800"},
    )


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.scn"
    shapes = {"olive": [disk(300, 400, 100), ring(800, 400, 120, 60)], "orange": [stripe(200, 600, 700, 40)]}
    synthetic_slide(path, shapes, mpp=(0.5, 0.4), l0_bounds_xy=(100, 60))
    return path


@pytest.fixture(scope="session")
def result(slide: Path) -> Result:
    """Three outlines of two queries, of which one has a hole; a third query finds nothing. And awkward ones."""
    found = segment(slide, ["the olive", "the orange", "no olive"], model=Silent(mpp=1.0, tile_size=128, overlap=32))
    more = [awkward(i, name, geometry) for i, (name, geometry) in enumerate(AWKWARD)]
    return Result(annotations=[*found.annotations, *more], reasoning=found.reasoning, run=found.run)


class Silent(FakeModel):
    """Finds nothing that is called no …."""

    def segment_tiles(self, tiles, query, mpp):  # type: ignore[no-untyped-def]
        found = super().segment_tiles(tiles, query, mpp)
        return [self._segment(tile * 0 + 244, "olive", mpp) for tile in tiles] if query.startswith("no ") else found
