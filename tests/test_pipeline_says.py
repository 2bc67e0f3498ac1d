"""What is said beside the outlines: why there are none, what to mistrust, the reasoning that led to them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon

import wsiseg
from tests.scene import MODEL, QUERIES, SHAPES, outlines
from wsiseg.annotate import most_covered
from wsiseg.pipeline import segment
from wsiseg.qupath import DESCRIPTION, check_dialect, clean_description
from wsiseg.testing import FakeModel, disk, synthetic_slide


def test_what_is_not_there_gives_an_empty_collection_and_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "olive-only.tif"
    synthetic_slide(path, {"olive": SHAPES["olive"]})
    with caplog.at_level(logging.WARNING, "wsiseg"):
        result = segment(path, QUERIES, model=MODEL)
    tiles = len(result.reasoning) // 2
    said = (
        f'"{QUERIES[1]}": not found in {tiles} tiles (if you see it there, ask for it by its name alone); '
        "the model says: I looked for orange and there is no"
    )
    assert result.notes == caplog.messages
    assert [note.removesuffix(" orange here.") for note in result.notes] == [said]
    assert not outlines(result, QUERIES[1])

    only_orange = segment(path, QUERIES[1], model=MODEL)
    only_orange.write(tmp_path / "empty.geojson")
    assert check_dialect(tmp_path / "empty.geojson") == []
    assert only_orange.to_geojson()["features"] == []


def test_a_slide_without_tissue_gives_an_empty_collection_and_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "glass.tif"
    synthetic_slide(path, {}, texture=np.full((50, 50, 3), 244, np.uint8))
    result = segment(path, "outline the olive", model=MODEL)
    assert list(result.annotations) == result.reasoning == []
    assert "no tissue was found" in result.notes[0]


def test_a_threshold_or_area_that_nothing_passes_is_said(tmp_path: Path) -> None:
    path = tmp_path / "small.tif"
    synthetic_slide(path, {"olive": [disk(400, 400, 20)]})
    result = segment(path, "olive", model=MODEL, min_area_um2=10_000)
    assert list(result.annotations) == []
    assert "nothing passes threshold and minimum area" in result.notes[0]


class Careful(FakeModel):
    def caution_for(self, query: str) -> str:
        return "" if "orange" in query else "trust no fruit"


def test_what_a_model_should_not_be_trusted_with_is_said_with_its_outlines_once_a_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "olives.tif"
    synthetic_slide(path, {"olive": SHAPES["olive"]})
    with caplog.at_level(logging.WARNING, "wsiseg"):
        results = [segment(path, ["olive", "outline the olive"], model=Careful(mpp=1.0)) for _ in range(2)]
    assert caplog.messages == ["trust no fruit"]
    assert [(result.notes, result.run["cautions"]) for result in results] == [(["trust no fruit"],) * 2] * 2
    nothing = segment(path, "olive", model=Careful(mpp=1.0), min_area_um2=1e6)
    assert "cautions" not in nothing.run  # not with what was not found
    assert "trust no fruit" not in nothing.notes


def test_the_file_carries_the_reasoning_where_qupath_shows_it(tmp_path: Path) -> None:
    path, out = tmp_path / "written.tif", tmp_path / "out.geojson"
    synthetic_slide(path, SHAPES)
    result = wsiseg.segment(path, QUERIES, model=MODEL)
    result.write(out)
    assert check_dialect(out) == []
    collection = result.to_geojson()
    assert collection["wsiseg"] == result.run
    assert collection["wsiseg"]["model"] == {"name": "fake", "fingerprint": "fake-1"}
    assert collection["wsiseg"]["origin"] == "qupath"
    chains = {clean_description(tile.reasoning) for tile in result.reasoning if tile.segmented}
    for feature in collection["features"]:
        properties = feature["properties"]
        assert properties["metadata"][DESCRIPTION] in chains
        assert properties["name"] == properties["classification"]["name"] == properties["metadata"]["query"]
        assert 0.5 < properties["measurements"]["Mean probability"] <= 1
    derived = wsiseg.segment(path, "olive: all*", model=MODEL)  # QuPath would derive a class, and ignore it
    assert {(a.name, a.classification) for a in derived.annotations} == {("olive: all*", "olive all")}
    ring_um2 = next(a.measurements["Area µm^2"] for a in result.annotations if a.geometry.bounds[2] > 950)
    assert ring_um2 == pytest.approx(SHAPES["olive"][2].area * 0.25, rel=0.02)


boxes = st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(1, 60), st.integers(1, 60)).map(
    lambda v: shapely.box(v[0], v[1], v[0] + v[2], v[1] + v[3])
)


@settings(max_examples=200, deadline=None)
@given(st.lists(boxes, min_size=1, max_size=4))
def test_the_reasoning_comes_from_the_tile_that_the_outline_covers_most(parts: list[Polygon]) -> None:
    outline = shapely.union_all(parts)
    tiles = [shapely.box(x, y, x + 40, y + 40) for y in range(0, 150, 30) for x in range(0, 150, 30)]
    shared = [tile.intersection(outline).area for tile in tiles]
    assert shared[most_covered(shapely.STRtree(tiles), outline)] == pytest.approx(max(shared))
