"""What wsiseg wrote and what QuPath exports is read; what is no GeoJSON is one error."""

from __future__ import annotations

import gc
import gzip
import json
import math
import uuid
from pathlib import Path

import pytest
import shapely

from tests.geojson.files import RING, SQUARE, TWO, annotation, edited, written
from wsiseg.errors import GeoJSONError
from wsiseg.geojson import read_collection, read_geojson
from wsiseg.qupath import check_dialect, class_color


def test_polygons_read_in_bulk_are_those_read_one_by_one(tmp_path: Path) -> None:
    kinds = [annotation(shape) for shape in (RING, TWO, SQUARE, RING)]
    path = written(kinds, tmp_path / "a.geojson")
    in_bulk = read_geojson(path)
    assert in_bulk == kinds
    corner = json.loads(path.read_text())["features"][2]["geometry"]["coordinates"][0][1]
    edited(path, "features", 2, "geometry", "coordinates", 0, 1, value=[*corner, 7])  # with a z: one by one
    assert read_geojson(path) == in_bulk
    bow_tie = [[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]
    edited(path, "features", 3, "geometry", "coordinates", value=bow_tie)
    with pytest.raises(GeoJSONError, match="feature 3: invalid geometry: Self-intersection"):
        read_geojson(path)


def test_qupath_exports_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    polygon = {"type": "Polygon", "coordinates": [[[0, 0, 5], [4, 0, 5], [4, 4, 5], [0, 4, 5], [0, 0, 5]]]}
    text = json.dumps(
        [
            {
                "type": "Feature",
                "id": "PathAnnotationObject",
                "geometry": {**polygon, "plane": {"c": -1, "z": 0, "t": 0}},
                "properties": {
                    "classification": {"names": ["Tumor", "Positive"], "colorRGB": -16711681},
                    "measurements": [
                        {"name": "Area", "value": 16},
                        {"name": "Nothing", "value": float("nan")},
                    ],
                    "metadata": {"a": 1, "b": None},
                    "childObjects": [
                        {
                            "type": "Feature",
                            "geometry": polygon,
                            "nucleusGeometry": {"type": "Polygon", "coordinates": [[[1, 1], [2, 1], [2, 2], [1, 1]]]},
                            "properties": {"objectType": "cell", "classification": "Stroma"},
                        }
                    ],
                },
            },
            {"type": "Feature", "geometry": polygon, "properties": {"color": [9, 8, 7]}},
            {
                "type": "Feature",
                "geometry": polygon,
                "properties": {"classification": {"name": "Ignore*", "color": [1, 2, 3]}, "color": [4, 5, 6]},
            },
        ]
    ).replace('"metadata": {', '"metadata": {}, "metadata": {', 1)
    path = tmp_path / "q.geojson.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    parent, child, last, ignored = read_geojson(path)
    assert not caplog.messages
    assert (parent.classification, parent.color) == ("Tumor: Positive", (0, 255, 255))
    assert (parent.measurements, parent.metadata) == ({"Area": 16.0}, {"a": "1"})
    assert (child.object_type, child.classification, child.color) == ("cell", "Stroma", (150, 200, 150))
    assert child.nucleus == shapely.Polygon([(1, 1), (2, 1), (2, 2)])
    assert (last.classification, last.color) == ("", (9, 8, 7))
    assert (ignored.classification, ignored.color) == ("Ignore*", (4, 5, 6))
    assert all(a.geometry.area == 16 for a in (parent, child, last))
    plain = annotation(classification="", color=class_color(""))  # as one that has neither class nor colour is read
    again = written([parent, child, last, ignored, plain], tmp_path / "again.geojson")
    assert ["color" in f["properties"] for f in json.loads(again.read_text())["features"][2:]] == [True, False, False]
    assert check_dialect(again) == []
    assert read_geojson(again) == [parent, child, last, ignored, plain]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("part", [100, 1000, 3000])
def test_a_file_read_part_by_part_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, indent: int | None
) -> None:
    """A million nuclei would not fit into memory at once; texts that look like a cut, and children, are no place for
    one."""
    many = [annotation(id=uuid.UUID(int=i), metadata={"a": ', {"type":"Feature"'}) for i in range(30)]
    root = json.loads(written(many, tmp_path / "a.geojson", run={"n": [1, 2]}).read_text())
    features = root["features"]
    first, *others = features[:10]
    nested = {**first, "properties": {**first["properties"], "childObjects": others, "measurements": {"x": math.nan}}}
    contents = {
        "wsiseg.geojson": {"type": "FeatureCollection", "features": features, "wsiseg": {"n": [1, 2]}},
        "list.geojson": features,
        "nested.geojson": [*features[10:20], nested, *features[20:]],
        "one.geojson": nested,
        "none.geojson": {"type": "FeatureCollection", "features": []},
        "broken.geojson": [*features, {"type": "Feature", "geometry": 3}],
    }

    def read(name: str) -> object:
        try:
            return read_collection(tmp_path / name)
        except GeoJSONError as error:
            return str(error)

    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content, indent=indent))
    whole = {name: read(name) for name in contents}
    assert whole["wsiseg.geojson"] == (many, {"n": [1, 2]})
    assert "feature 30: geometry is not" in str(whole["broken.geojson"])
    monkeypatch.setattr("wsiseg.geojson.read._PART", part)
    assert {name: read(name) for name in contents} == whole


@pytest.mark.parametrize("plane", [{"c": -1, "z": 3, "t": 0}, {"c": -1, "z": 0, "t": 2}])
def test_what_is_not_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, plane: dict[str, int]
) -> None:
    monkeypatch.setattr("wsiseg.geojson.read._PART", 100)  # it is in the first of several
    path = written([annotation()] * 9, tmp_path / "a.geojson")
    edited(path, "features", 0, "properties", "score\n", value=0.5)
    edited(path, "features", 0, "geometry", "plane", value=plane)
    assert read_geojson(path) == [annotation()] * 9
    assert caplog.messages == [f"{path}: not read, and lost where its outlines are saved: score, the plane (z, t)"]


def test_what_has_no_area_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A point, a measured line and an object without a place, as pathologists' exports hold them."""
    path = written([annotation(), annotation(RING)], tmp_path / "a.geojson")
    root = json.loads(path.read_text())
    square, ring = root["features"]
    line = {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": None}
    ruler = {"type": "Feature", "geometry": line, "properties": {"name": None, "childObjects": [ring, point]}}
    nowhere = {"type": "Feature", "geometry": None, "properties": {"objectType": None}}
    path.write_text(json.dumps(root | {"features": [ruler, square, nowhere]}))
    assert read_geojson(path) == [annotation(RING), annotation()]
    assert caplog.messages == [
        f"{path}: not read, and lost where its outlines are saved: 3 objects without an area (points, lines)"
    ]


def test_the_garbage_collector_is_on_again_after_threads_have_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended_meanwhile() -> bool:
        gc.enable()  # by another thread, which had turned it off
        return False

    path = written([annotation()], tmp_path / "a.geojson")
    with monkeypatch.context() as patched:
        patched.setattr(gc, "isenabled", ended_meanwhile)
        read_geojson(path)
    assert gc.isenabled()
    gc.disable()
    try:
        read_geojson(path)
        assert not gc.isenabled()  # whoever turned it off
    finally:
        gc.enable()


@pytest.mark.parametrize("key", ["properties", *("name", "objectType", "classification", "color", "metadata")])
def test_null_is_as_if_it_were_not_there(tmp_path: Path, key: str) -> None:
    path = written([annotation(name="", classification="", color=class_color(""))], tmp_path / "a.geojson")
    edited(path, "features", 0, *([] if key == "properties" else ["properties"]), key, value=None)
    assert read_geojson(path) == [annotation(name="", classification="", color=class_color(""))]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("geometry",), ..., "geometry is not a Polygon"),
        (("geometry", "type"), "GeometryCollection", "geometry is not a Polygon"),
        (("geometry", "coordinates"), ..., "no coordinates"),
        (("geometry", "coordinates", 0), [[0, 0], [1, 0], [1, 1], [0, 1]], "not closed"),
        (("geometry", "coordinates", 0), [[0, 0], [1, 0], [0, 0]], "fewer than 4 positions"),
        (("geometry", "coordinates", 0, 1), None, "feature 1"),
        (("geometry", "coordinates", 0, 1), ["a", "b"], "feature 1"),
        (("geometry", "coordinates", 0), [[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]], "Self-intersection"),
        (("properties",), [], "properties are not an object"),
        (("properties", "objectType"), "thing", "object type 'thing'"),
        (("properties", "name"), 5, "name is not a text"),
        (("properties", "classification"), 5, "classification"),
        (("properties", "classification", "color"), "#ff0000", "colour"),
        (("properties", "measurements"), {"a": "many"}, "feature 1"),
        (("type",), "Thing", "not a Feature"),
    ],
)
def test_broken_features_are_named(tmp_path: Path, keys, value, message) -> None:
    path = written([annotation(), annotation(RING)], tmp_path / "a.geojson")
    edited(path, "features", 1, *keys, value=value)
    with pytest.raises(GeoJSONError, match=r"a\.geojson: feature 1: ") as error:
        read_geojson(path)
    assert message in str(error.value)
    assert check_dialect(path) != []


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"hello", b"\xff\xfe", b'{"type":"FeatureCollection"}'),
        *(b"\x1f\x8b\x00", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20),
    ],
)
def test_what_is_not_geojson_is_one_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.geojson").write_bytes(data)
    with pytest.raises(GeoJSONError, match=r"a\.geojson"):
        read_geojson(tmp_path / "a.geojson")
    assert check_dialect(tmp_path / "a.geojson") != []
    with pytest.raises(GeoJSONError, match="cannot read"):
        read_geojson(tmp_path / "missing.geojson")
    assert gc.isenabled()  # which is off while a file is read


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = written([annotation(), annotation(RING)], tmp_path / "a.geojson")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(GeoJSONError):
        read_geojson(path)


def test_texts_that_no_file_can_hold_are_mended_and_names_that_are_none_left_out(tmp_path: Path) -> None:
    """A lone surrogate is what a JavaScript program leaves that cuts a text in the middle of an emoji."""
    path = written([annotation(SQUARE)], tmp_path / "a.geojson")
    for name in ("x", None, 5):
        edited(path, "features", 0, "properties", "measurements", value=[{"name": name, "value": 1.5}])
        assert read_geojson(path)[0].measurements == ({"x": 1.5} if name == "x" else {})
    edited(path, "features", 0, "properties", "name", value="half \ud83d")
    edited(path, "features", 0, "properties", "metadata", value={"k \ud83d": "\ud83d v"})
    edited(path, "wsiseg", value={"queries": ["\ud83d"]})
    annotations, run = read_collection(path)
    assert (annotations[0].name, annotations[0].metadata, run) == ("half ?", {"k ?": "? v"}, {"queries": ["?"]})
    written(annotations, path)


def test_what_other_programs_write_otherwise_is_read_too(tmp_path: Path) -> None:
    path = written([annotation(RING)], tmp_path / "a.geojson")
    properties = ("features", 0, "properties")
    edited(path, *properties, "classification", "color", value=[1, 2, 3, 255])
    edited(path, *properties, "measurements", value={"a": "1.5", "b": True, "c": float("inf")})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as programs on Windows mark UTF-8
    (found,) = read_geojson(path)
    assert (found.color, found.measurements) == ((1, 2, 3), {"a": 1.5})


def test_a_coordinate_must_be_finite(tmp_path: Path) -> None:
    path = written([annotation(RING)], tmp_path / "a.geojson")
    edited(path, "features", 0, "geometry", "coordinates", 0, 1, value=[float("inf"), 0])
    with pytest.raises(GeoJSONError, match="feature 0"):
        read_geojson(path)


@pytest.mark.parametrize("far", [1e200, 3e9])
def test_what_lies_on_no_slide_is_refused(tmp_path: Path, far: float) -> None:
    ring = [[0, 0], [far, 0], [far, 9], [0, 9], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pytest.raises(GeoJSONError, match="px away, which is on no slide"):
        read_collection(tmp_path / "a.geojson")
