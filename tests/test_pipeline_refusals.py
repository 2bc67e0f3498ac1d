"""What `segment` refuses, and what it says then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.scene import MODEL, QUERIES, SHAPES
from wsiseg.errors import FleetError, QueryError, SlideError, StoreError
from wsiseg.fleet import Settings
from wsiseg.pipeline import segment
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel, synthetic_slide
from wsiseg.tiles import GridSpec, plan_grid, write_store


def test_a_store_of_another_resolution_is_an_error_not_a_surprise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, store = tmp_path / "half.tif", tmp_path / "half.zarr"
    synthetic_slide(path, SHAPES)
    with open_slide(path) as slide:
        write_store(slide, plan_grid(slide, GridSpec(1.0, 128, 32)), store)
    with pytest.raises(StoreError, match=r"holds tiles of 1 µm/px, not 0\.5"):
        segment(store, QUERIES, model=MODEL, mpp=0.5)
    with pytest.raises(StoreError, match="slide mpp were set when it was made"):
        segment(store, QUERIES, model=MODEL, slide_mpp=0.5)
    segment(store, QUERIES, model=MODEL)
    assert not caplog.messages
    segment(store, QUERIES[0], model=FakeModel(mpp=2.0, tile_size=64))
    assert caplog.messages == [
        f'the store has 1 µm/px; for "{QUERIES[0]}" the model prefers 2',
        "the store has tiles of 128 px; the model is made for 64",
    ]


@pytest.mark.parametrize("query", ["", "  \n", [], ["olive", " "], "\x00"])
def test_an_empty_query_is_refused(query: str | list[str]) -> None:
    with pytest.raises(QueryError, match="the query is empty"):
        segment("never-opened.svs", query, model=MODEL)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"threshold": 0.0}, "threshold 0.0 must be above 0 and at most 1"),
        ({"threshold": 7.0}, "threshold 7.0 must be above 0 and at most 1"),
        ({"batch_size": 2.5}, "batch_size 2.5 must be a whole number from 1"),
        ({"batch_size": np.inf}, "batch_size inf must be a whole number from 1"),
        ({"batch_size": 0}, "batch_size 0 must be a whole number from 1"),
        ({"mpp": 0.0}, "mpp 0.0 must be above 0"),
        ({"min_area_um2": np.nan}, "min_area_um2 nan must be 0 or more"),
        ({"simplify_um": -1.0}, "simplify_um -1.0 must be 0 or more"),
        ({"origin": "QuPath"}, "origin 'QuPath' must be qupath or slide"),
        ({"on_bad_tile": "raise"}, "on_bad_tile 'raise' must be stop or skip"),
    ],
)
def test_parameters_out_of_their_range_are_refused_before_the_slide_is_opened(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(QueryError, match=said):
        segment("never-opened.svs", "olive", model=MODEL, **wrong)
    with pytest.raises(FleetError, match=said):
        Settings(**wrong)


def test_a_picture_in_memory_is_told_what_to_do() -> None:
    for picture in (np.zeros((64, 64, 3), np.uint8), Image.new("RGB", (64, 64)), b"slide.tif"):
        with pytest.raises(SlideError, match=r"its path or URL, not as \w+: save a picture as PNG"):
            segment(picture, "olive", model=MODEL, slide_mpp=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((-50, 0, 50, 50), "lies outside the slide"),  # it touches its edge
        (("0", 0, 1, 1), "the region '0',0,1,1 has no area"),
        ((0, 0, 0, 9), "has no area"),
        ((0, 0, 9), "x, y, width and height"),
        ((5,), "x, y, width and height"),
        ((9e9, 0, 9, 9), "outside"),
        ((0, 0, np.nan, 9), "no area"),
    ],
)
def test_a_region_without_slide_is_refused(tmp_path: Path, box: tuple[float, ...], said: str) -> None:
    path = tmp_path / "no-region.tif"
    synthetic_slide(path, {})
    with pytest.raises(QueryError, match=said):
        segment(path, "olive", model=MODEL, region=box)  # type: ignore[arg-type]
