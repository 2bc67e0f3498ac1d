"""What is written is what QuPath reads, and comes back unchanged."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.geojson.files import RING, SQUARE, TWO, annotation, written
from wsiseg.errors import GeoJSONError
from wsiseg.geojson import Annotation, annotation_id, read_collection, read_geojson, safe_polygons, write_geojson
from wsiseg.mask import repair
from wsiseg.qupath import DESCRIPTION, OBJECT_TYPES, check_dialect, clean_class, clean_name, clean_text


@st.composite
def shapes(draw: st.DrawFn) -> shapely.Geometry:
    """Any geometry a user may hand over, broken ones included, that has an area after repair."""
    points = st.tuples(*[st.floats(-1000, 300_000, allow_nan=False)] * 2)
    rings = draw(st.lists(st.lists(points, min_size=3, max_size=8), min_size=1, max_size=3))
    polygons = [shapely.Polygon(ring) for ring in rings]
    shape = draw(st.sampled_from([polygons[0], shapely.MultiPolygon(polygons), polygons[0].buffer(1.2345, 3)]))
    return shape if not repair(np.array([shape]))[0].is_empty else shapely.box(0, 0, 1 / 3, 1)


texts = st.text(max_size=40) | st.text(st.characters(), max_size=40) | st.just("\ud800\x00 :*\n")
colors = st.tuples(*[st.integers(0, 255)] * 3)
anything = st.builds(
    Annotation,
    id=st.uuids(),
    geometry=shapes(),
    name=texts,
    classification=texts,
    color=colors,
    measurements=st.dictionaries(texts, st.floats(), max_size=3),
    metadata=st.dictionaries(texts, texts, max_size=3),
    object_type=st.sampled_from(OBJECT_TYPES),
    is_locked=st.booleans(),
    nucleus=st.none() | shapes(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(anything, max_size=5, unique_by=lambda a: a.id))
def test_whatever_is_written_is_safe_and_comes_back_unchanged(tmp_path_factory, annotations) -> None:
    path = written(annotations, tmp_path_factory.mktemp("geojson") / "a.geojson")
    assert check_dialect(path) == []
    once = read_geojson(path)
    for before, after in zip(annotations, once, strict=True):
        assert (after.id, after.color, after.object_type) == (before.id, before.color, before.object_type)
        assert after.is_locked == before.is_locked
        assert (after.name, after.classification) == (
            clean_name(before.name),
            clean_class(before.classification),
        )
        assert set(after.metadata.values()) <= {clean_text(text) for text in before.metadata.values()}
        assert (after.nucleus is None) == (before.nucleus is None)
        for kept, handed in ((after.geometry, before.geometry), (after.nucleus, before.nucleus)):
            assert handed is None or shapely.equals(kept, repair(np.array([handed]))[0])
    again = written(once, path.with_name("b.geojson"))
    assert again.read_bytes() == path.read_bytes()
    assert read_geojson(again) == once  # what is clean loses nothing


def test_the_file_as_it_looks() -> None:
    file = io.BytesIO()
    ring = annotation(RING, measurements={"Area µm^2": 96.5, "bad": float("nan")}, metadata={DESCRIPTION: "why"})
    write_geojson([ring, annotation(TWO, classification="")], file, run={"origin": "qupath"})
    head, first, second, tail = file.getvalue().decode().splitlines()
    assert head == '{"type":"FeatureCollection","wsiseg":{"origin":"qupath"},"features":['
    assert tail == "]}"
    feature = json.loads(first.removesuffix(","))
    assert feature["properties"] == {
        "objectType": "annotation",
        "name": "n",
        "classification": {"name": "c", "color": [1, 2, 3]},
        "isLocked": False,
        "measurements": {"Area µm^2": 96.5},
        "metadata": {"ANNOTATION_DESCRIPTION": "why"},
    }
    assert [len(ring) for ring in feature["geometry"]["coordinates"]] == [5, 5]
    assert json.loads(second)["properties"]["color"] == [1, 2, 3]
    assert json.loads(second)["geometry"]["type"] == "MultiPolygon"


def test_numbers_and_colours_as_numpy_has_them(tmp_path: Path) -> None:
    numbers = {"a": np.float64(0.1), "b": np.float32(0.5), "n": np.int64(3), "nan": np.float64("nan")}
    path = written([annotation(measurements=numbers, color=np.array([1, 2, 3]))], tmp_path / "a.geojson")
    assert read_geojson(path) == [annotation(measurements={"a": 0.1, "b": 0.5, "n": 3.0})]
    assert check_dialect(path) == []


def test_no_annotation_is_a_file_too(tmp_path: Path) -> None:
    path = written([], tmp_path / "a.geojson")
    assert json.loads(path.read_text()) == {"type": "FeatureCollection", "features": []}
    assert read_geojson(path) == []
    assert check_dialect(path) == []


def test_batches_are_joined(tmp_path: Path) -> None:
    many = [annotation(shapely.box(i, 0, i + 1, 1)) for i in range(1100)]
    assert read_geojson(written(many, tmp_path / "a.geojson")) == many


@pytest.mark.parametrize(
    "geometry",
    [shapely.Point(1, 2), shapely.LineString([(0, 0), (1, 1)]), shapely.Polygon(), SQUARE.boundary],
)
def test_what_has_no_area_is_refused(geometry) -> None:
    with pytest.raises(GeoJSONError, match=r"annotation 1: .* is not a polygon with an area"):
        write_geojson([annotation(), annotation(geometry, id=uuid.uuid4())], io.BytesIO())


def test_batches_are_repaired_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsiseg.geojson.write._BATCH", 2)
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    assert shapely.is_valid(safe_polygons([annotation(bow_tie)] * 5)).all()
    with pytest.raises(GeoJSONError, match="annotation 3: LINESTRING"):
        write_geojson([annotation()] * 3 + [annotation(shapely.LineString([(0, 0), (1, 1)]))], io.BytesIO())


def test_ids_are_stable_and_tell_things_apart() -> None:
    turned = shapely.Polygon([(10, 10), (0, 10), (0, 0), (10, 0)])
    assert annotation_id(SQUARE, "slide", "q") == annotation_id(turned, "slide", "q")
    assert annotation_id(SQUARE, "slide", "q") == uuid.UUID("ef3ee195-9bc7-5d2c-995e-d6231639d295")
    others = [
        annotation_id(SQUARE, "slide", "r"),
        annotation_id(RING, "slide", "q"),
        annotation_id(SQUARE, "slideq"),
    ]
    assert len({annotation_id(SQUARE, "slide", "q"), *others}) == 4
    assert annotation_id(SQUARE, "slide\0q", "\ud800") == annotation_id(SQUARE, "slideq", "?")


def test_the_run_travels_with_the_file(tmp_path: Path) -> None:
    run = {"origin": "slide", "queries": ["ä"], "parameters": {"threshold": np.float32(0.5)}}
    path = written([annotation()], tmp_path / "a.geojson", run=run)
    assert read_collection(path)[1] == {"origin": "slide", "queries": ["ä"], "parameters": {"threshold": 0.5}}
