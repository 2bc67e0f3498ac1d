"""What is written is what QuPath reads, and comes back unchanged."""

from __future__ import annotations

import gc
import gzip
import io
import json
import math
import string
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.errors import GeoJSONError
from wsiseg.geojson import Annotation, annotation_id, read_collection, read_geojson, write_geojson
from wsiseg.mask import repair
from wsiseg.qupath import (
    DESCRIPTION,
    MAX_NAME,
    MAX_TEXT,
    OBJECT_TYPES,
    check_dialect,
    class_color,
    clean_class,
    clean_name,
    clean_text,
    query_class,
)

SQUARE = shapely.box(0, 0, 10, 10)
RING = SQUARE - shapely.box(2, 2, 4, 4)
TWO = shapely.MultiPolygon([SQUARE, shapely.box(20, 0, 30, 10)])


def annotation(geometry: shapely.Geometry = SQUARE, **changes) -> Annotation:
    values = {"id": annotation_id(geometry), "geometry": geometry, "name": "n", "classification": "c"}
    return Annotation(**{**values, "color": (1, 2, 3), **changes})


def written(annotations: list[Annotation], path: Path, **options) -> Path:
    with open(path, "wb") as file:
        assert write_geojson(annotations, file, **options) == len(annotations)
    return path


def edited(path: Path, *keys: str | int, value: object = ...) -> Path:
    """The file with one member replaced, or without it."""
    root = json.loads(path.read_text())
    parent = root
    for key in keys[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[keys[-1]]
    else:
        parent[keys[-1]] = value
    path.write_text(json.dumps(root))
    return path


@st.composite
def shapes(draw: st.DrawFn) -> shapely.Geometry:
    """Any geometry a user may hand over, broken ones included, that has an area after repair."""
    points = st.tuples(*[st.floats(-1000, 300_000, allow_nan=False)] * 2)
    rings = draw(st.lists(st.lists(points, min_size=3, max_size=8), min_size=1, max_size=3))
    polygons = [shapely.Polygon(ring) for ring in rings]
    shape = draw(
        st.sampled_from([polygons[0], shapely.MultiPolygon(polygons), polygons[0].buffer(1.2345, 3)])
    )
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
    ring = annotation(
        RING, measurements={"Area µm^2": 96.5, "bad": float("nan")}, metadata={DESCRIPTION: "why"}
    )
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


@pytest.mark.parametrize(
    "geometry",
    [shapely.Point(1, 2), shapely.LineString([(0, 0), (1, 1)]), shapely.Polygon(), SQUARE.boundary],
)
def test_what_has_no_area_is_refused(geometry) -> None:
    with pytest.raises(GeoJSONError, match=r"annotation 1: .* is not a polygon with an area"):
        write_geojson([annotation(), annotation(geometry, id=uuid.uuid4())], io.BytesIO())


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


def test_long_and_dirty_texts() -> None:
    assert clean_text("a\r\nb\x00\x1b[0m\ud800 c") == "a\nb[0m? c"
    long = clean_text("word " * 10_000)
    assert len(long) <= MAX_TEXT
    assert long.endswith("word…")
    assert len(clean_text("x" * 10_000)) == MAX_TEXT
    assert clean_class(" Tumor:\nPositive* ") == "Tumor: Positive*"
    assert query_class(" Tumor:\nPositive* ") == "Tumor Positive"
    assert clean_class(f":{'a' * 98} : b") == f"{'a' * 98}"
    assert len(clean_class("é" * 1000)) == MAX_NAME


def test_class_colors() -> None:
    assert class_color("Tumor") == class_color("malignant tumours") == (200, 0, 0)
    assert class_color("necrosis") == (50, 50, 50)
    assert class_color("tumour stroma") == class_color("tumor")  # the first word that is known
    unknown = [class_color(letter) for letter in string.ascii_letters[:26]]
    assert unknown == [class_color(letter.upper()) for letter in string.ascii_letters[:26]]
    assert len(set(unknown)) > 20


# What QuPath itself exports


def test_qupath_exports_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    polygon = {"type": "Polygon", "coordinates": [[[0, 0, 5], [4, 0, 5], [4, 4, 5], [0, 4, 5], [0, 0, 5]]]}
    text = json.dumps(
        [
            {
                "type": "Feature",
                "id": "PathAnnotationObject",
                "geometry": {**polygon, "plane": {"c": -1, "z": 0, "t": 0}},
                "properties": {
                    "classification": {"names": ["Tumor", "Positive"], "colorRGB": -3670016},
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
            {"type": "Feature", "geometry": polygon, "properties": {"classification": "Ignore*"}},
        ]
    ).replace('"metadata": {', '"metadata": {}, "metadata": {', 1)
    path = tmp_path / "q.geojson.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    parent, child, last, ignored = read_geojson(path)
    assert not caplog.messages
    assert (parent.classification, parent.color) == ("Tumor: Positive", (200, 0, 0))
    assert (parent.measurements, parent.metadata) == ({"Area": 16.0}, {"a": "1"})
    assert (child.object_type, child.classification, child.color) == ("cell", "Stroma", (150, 200, 150))
    assert child.nucleus == shapely.Polygon([(1, 1), (2, 1), (2, 2)])
    assert (last.classification, last.color) == ("", (9, 8, 7))
    assert ignored.classification == "Ignore*"
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


def test_what_is_not_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written([annotation()], tmp_path / "a.geojson")
    edited(path, "features", 0, "properties", "score\n", value=0.5)
    edited(path, "features", 0, "geometry", "plane", value={"c": -1, "z": 3, "t": 0})
    assert read_geojson(path) == [annotation()]
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
        (("geometry", "coordinates", 0), [[0, 0], [1, 0], [1, 1]], "not closed"),
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


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("id",), "PathAnnotationObject"),
        (("id",), None),
        (("geometry", "coordinates", 0, 0, 0), 0.001),
        (("geometry", "coordinates", 0), [[0, 0], [10, 0], [10, 0.001], [0, 0]]),
        (("properties", "description"), "dropped"),
        (("properties", "name"), ""),
        (("properties", "classification", "color"), ...),
        (("properties", "classification", "color"), [1, 2, 3.5]),
        (("properties", "classification", "name"), "a\nb"),
        (("properties", "classification", "name"), "a:b"),
        (("properties", "classification", "name"), "a: : b"),
        (("properties", "classification", "name"), "a:"),
        (("properties", "classification"), "c"),
        (("properties", "measurements"), {"a": float("nan")}),
        (("properties", "measurements"), {"a": True}),
        (("properties", "metadata"), {"a": ["b"]}),
        (("properties", "color"), "#ffffff"),
        (("nucleusGeometry",), {"type": "Point", "coordinates": [1, 1]}),
    ],
)
def test_check_dialect_finds_what_breaks_an_import(tmp_path: Path, keys, value) -> None:
    path = edited(written([annotation(RING)], tmp_path / "a.geojson"), "features", 0, *keys, value=value)
    assert len(check_dialect(path)) >= 1


def test_check_dialect_knows_what_breaks_only_some_versions(tmp_path: Path) -> None:
    square = [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]
    path = written([annotation(TWO)], tmp_path / "a.geojson")
    edited(path, "features", 0, "geometry", "coordinates", value=[square])
    assert check_dialect(path) == ["feature 0: a MultiPolygon of one part breaks 0.5.1"]
    edited(path, "features", 0, "geometry", "coordinates", value=[square, square])
    assert "not valid" in check_dialect(path)[0]
    assert "QuPath reads .geojson" in check_dialect(path.rename(tmp_path / "a.txt"))[0]


def test_the_run_travels_with_the_file(tmp_path: Path) -> None:
    run = {"origin": "slide", "queries": ["ä"], "parameters": {"threshold": np.float32(0.5)}}
    path = written([annotation()], tmp_path / "a.geojson", run=run)
    assert read_collection(path)[1] == {"origin": "slide", "queries": ["ä"], "parameters": {"threshold": 0.5}}
