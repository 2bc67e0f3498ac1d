"""GeoParquet, read back by geopandas and, without its help, by pyarrow and shapely."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import geopandas
import pyarrow.parquet
import pytest
import shapely

from wsiseg import Result, formats
from wsiseg.formats import geoparquet
from wsiseg.geojson import safe_polygons


def test_geopandas_finds_all_that_is_known_of_an_outline(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "out.parquet")
    table = geopandas.read_parquet(tmp_path / "out.parquet")
    assert table.crs is None
    assert shapely.equals_exact(table.geometry.to_numpy(), safe_polygons(result.annotations)).all()
    assert list(table["id"]) == [str(a.id) for a in result.annotations]
    assert list(table["color"]) == ["#{:02x}{:02x}{:02x}".format(*a.color) for a in result.annotations]
    for row, feature in zip(table.to_dict("records"), result.to_geojson()["features"], strict=True):
        told = feature["properties"]
        assert row["name"] == told["name"]
        assert row["classification"] == told.get("classification", {"name": ""})["name"]
        for kind in ("measurements", "metadata"):
            renamed = {"id": "measurement id", "geometry": "metadata geometry"}
            assert all(row[renamed.get(key, key)] == value for key, value in told[kind].items())
        assert math.isnan(row["not finite"])


def test_the_metadata_is_that_of_the_specification(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geoparquet, "ROWS", 3)
    result.write(tmp_path / "out", format="geoparquet")
    parquet = pyarrow.parquet.ParquetFile(tmp_path / "out")
    told = parquet.metadata.metadata
    assert json.loads(told[b"wsiseg"]) == result.to_geojson()["wsiseg"]
    geo = json.loads(told[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert (geo["version"], column["encoding"], column["crs"]) == ("1.1.0", "WKB", None)
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"]
    shapes = shapely.from_wkb(parquet.read()["geometry"].to_pylist())
    assert column["bbox"] == shapely.total_bounds(shapes).tolist()
    assert parquet.num_row_groups == math.ceil(len(shapes) / 3)
    part = geopandas.read_parquet(tmp_path / "out", bbox=tuple(shapes[0].bounds))
    assert 0 < len(part) < len(shapes)


def test_cells_keep_their_nuclei(result: Result, tmp_path: Path) -> None:
    nucleus = shapely.Point(300, 400).buffer(9)
    cell = replace(result.annotations[0], object_type="cell", nucleus=nucleus)
    formats.write([cell, result.annotations[1]], result.run, tmp_path / "out.parquet")
    table = geopandas.read_parquet(tmp_path / "out.parquet")
    assert list(table["nucleus"]) == [nucleus, None]
    formats.write([cell], result.run, tmp_path / "out.geojson", "detections")  # cells are detections already
    assert json.loads((tmp_path / "out.geojson").read_bytes())["features"][0]["properties"]["objectType"] == "cell"


def test_nothing_found_is_an_empty_table(result: Result, tmp_path: Path) -> None:
    Result([], [], result.run).write(tmp_path / "out.parquet")
    table = geopandas.read_parquet(tmp_path / "out.parquet")
    assert len(table) == 0
    assert {"id", "classification", "geometry"} <= set(table.columns)
