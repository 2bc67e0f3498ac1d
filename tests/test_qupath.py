"""Names and colours of classes as QuPath has them, and the reader that is as strict as QuPath's strictest."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from tests.geojson.files import RING, TWO, annotation, edited, written
from wsiseg.qupath import MAX_NAME, MAX_TEXT, check_dialect, class_color, clean_class, clean_text, query_class


def test_long_and_dirty_texts() -> None:
    assert clean_text("a\r\nb\x00\x1b[0m\ud800 c") == "a\nb[0m? c"
    long = clean_text("word " * 10_000)
    assert len(long) <= MAX_TEXT
    assert long.endswith("word…")
    assert len(clean_text("x" * 10_000)) == MAX_TEXT
    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\x85\x9b"  # the direction of writing
    assert clean_text(f"a{turning}b") == "ab"
    assert clean_class(" Tumor:\nPositive* ") == "Tumor: Positive*"
    assert query_class(" Tumor:\nPositive* ") == "Tumor Positive"
    assert clean_class(f":{'a' * 98} : b") == clean_class(f"{'a' * 98}:b") == f"{'a' * 98}"
    assert len(clean_class("é" * 1000)) == MAX_NAME


def test_class_colors() -> None:
    assert class_color("Tumor") == class_color("malignant tumours") == (200, 0, 0)
    assert class_color("necrosis") == (50, 50, 50)
    assert class_color("tumour stroma") == class_color("tumor")  # the first word that is known
    unknown = [class_color(letter) for letter in string.ascii_letters[:26]]
    assert unknown == [class_color(letter.upper()) for letter in string.ascii_letters[:26]]
    assert len(set(unknown)) > 20


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


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("properties", "isLocked"), "no", "isLocked"),
        (("properties", "objectType"), "thing", "objectType"),
        (("properties", "classification", "color"), [1, 2, 300], "color"),
        (("properties", "metadata"), {"a": "b", "c": None}, "null"),
        (("geometry", "coordinates", 0), [[0, 0], [10, 0], [10, 10], [0, 10]], "not closed"),
        (("geometry", "coordinates", 0), [[0, 0], [10, 0], [0, 0]], "fewer than 4"),
    ],
)
def test_check_dialect_names_what_it_finds(tmp_path: Path, keys: tuple[str, ...], value: object, said: str) -> None:
    path = edited(written([annotation(RING)], tmp_path / "a.geojson"), "features", 0, *keys, value=value)
    assert said in " ".join(check_dialect(path))


def test_check_dialect_knows_what_breaks_only_some_versions(tmp_path: Path) -> None:
    square = [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]
    path = written([annotation(TWO)], tmp_path / "a.geojson")
    edited(path, "features", 0, "geometry", "coordinates", value=[square])
    assert check_dialect(path) == ["feature 0: a MultiPolygon of one part breaks 0.5.1"]
    edited(path, "features", 0, "geometry", "coordinates", value=[square, square])
    assert "not valid" in check_dialect(path)[0]
    edited(path, "features", 0, "geometry", value={"type": "Polygon", "coordinates": square})
    assert check_dialect(path) == []
    edited(path, "features", 0, "geometry", "coordinates", 0, 1, 0, value=4.003)
    assert check_dialect(path) == ["feature 0: coordinates off the 0.01-px grid, which QuPath moves"]
    twice = written([annotation(TWO)] * 2, tmp_path / "b.geojson")
    assert check_dialect(twice) == ["feature 1: the id of an earlier feature"]
    assert "QuPath reads .geojson" in check_dialect(path.rename(tmp_path / "a.txt"))[0]
