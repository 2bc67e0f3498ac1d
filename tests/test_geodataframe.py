"""`Result.to_geodataframe`: the outlines as a table, for those who go on in Python."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from shapely.geometry import shape

import wsiseg
from wsiseg import formats
from wsiseg.geojson import read_geojson
from wsiseg.qupath import DESCRIPTION, class_color
from wsiseg.testing import FakeModel, disk, ring, stripe, synthetic_slide

geopandas = pytest.importorskip("geopandas", reason='needs geopandas: pip install "wsiseg[geopandas]"')

MODEL = FakeModel(mpp=1.0)
SHAPES = {"olive": [disk(300, 300, 100), ring(800, 300, 120, 60)], "orange": [stripe(200, 600, 700, 40)]}
QUERIES = ["the olive", "the orange", "the olive once more"]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.scn"
    synthetic_slide(path, SHAPES, mpp=(0.5, 0.4), l0_bounds_xy=(100, 60))
    return path


def test_one_row_an_outline_with_what_the_geojson_says_of_it(slide: Path) -> None:
    result = wsiseg.segment(slide, QUERIES, model=MODEL)
    table = result.to_geodataframe()
    assert isinstance(table, geopandas.GeoDataFrame)
    assert table.crs is None
    assert table.geometry.name == "geometry"
    assert table.geometry.is_valid.all()
    assert list(table["classification"]) == ["the olive"] * 2 + ["the orange"] + ["the olive once more"] * 2
    for row, feature in zip(table.to_dict("records"), result.to_geojson()["features"], strict=True):
        assert row["id"] == feature["id"]
        assert row["name"] == feature["properties"]["name"]
        assert {key: row[key] for key in feature["properties"]["measurements"]} == pytest.approx(
            feature["properties"]["measurements"]
        )
        assert row["query"] == row["classification"]
        assert row[DESCRIPTION] == feature["properties"]["metadata"][DESCRIPTION]
        # The file snaps corners to 0.01 px.
        assert row["geometry"].hausdorff_distance(shape(feature["geometry"])) < 0.02
    # Level-0 pixels as QuPath counts them, areas in square microns.
    olive = [row for _, row in table[table["query"] == QUERIES[0]].iterrows()]
    disk_row, ring_row = sorted(olive, key=lambda row: row.geometry.bounds)
    assert disk_row.geometry.centroid.distance(SHAPES["olive"][0].centroid) < 2
    assert len(ring_row.geometry.interiors) == 1
    assert ring_row["Area µm^2"] == pytest.approx(ring_row.geometry.area * 0.5 * 0.4, rel=1e-3)
    assert table.dissolve("classification").loc["the orange"].geometry.area == pytest.approx(28_000, rel=0.05)


def test_no_outline_is_a_table_without_rows(slide: Path) -> None:
    table = wsiseg.segment(slide, "the olive", model=MODEL, min_area_um2=1e6).to_geodataframe()
    assert len(table) == 0
    assert {"id", "name", "classification", "geometry"} <= set(table.columns)
    assert table.geometry.area.sum() == 0


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_table_can_be_saved_and_read_back(slide: Path, tmp_path: Path) -> None:
    table = wsiseg.segment(slide, QUERIES, model=MODEL).to_geodataframe()
    table.to_file(tmp_path / "outlines.gpkg")
    back = geopandas.read_file(tmp_path / "outlines.gpkg")
    assert back.geometry.geom_equals(table.geometry, align=False).all()
    assert list(back["Area µm^2"]) == pytest.approx(list(table["Area µm^2"]))
    assert list(back["query"]) == list(table["query"])


def test_a_geojson_that_went_through_geopandas_is_read_as_before(slide: Path, tmp_path: Path) -> None:
    """It makes a column of every property, null where an object has none, and moves the ids among them."""
    found = wsiseg.segment(slide, QUERIES, model=MODEL).annotations
    no_class = replace(found[2], classification="", color=class_color(""))
    mixed = [found[0], replace(found[1], name="", metadata={}, measurements={}), no_class]
    formats.write(mixed, {}, tmp_path / "a.geojson")
    table = geopandas.read_file(tmp_path / "a.geojson")
    table.to_file(tmp_path / "b.geojson", driver="GeoJSON")
    (tmp_path / "c.geojson").write_text(table.to_json())  # with row numbers in their place
    for name in ("b.geojson", "c.geojson"):
        assert read_geojson(tmp_path / name) == read_geojson(tmp_path / "a.geojson")
    bare = {"type": "Feature", "geometry": found[0].geometry.__geo_interface__, "properties": None}
    (tmp_path / "d.geojson").write_text(json.dumps(bare))
    assert read_geojson(tmp_path / "d.geojson")[0].name == ""
