"""Whatever a GeoJSON file holds, it is read, or refused with one kind of error."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wsiseg.errors import GeoJSONError
from wsiseg.geojson import read_collection

SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(SQUARE),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


def mostly(right: Any) -> st.SearchStrategy[Any]:
    return st.just(right) | st.just(right) | anything


features = st.fixed_dictionaries(
    {
        "type": mostly("Feature"),
        "geometry": st.fixed_dictionaries(
            {"type": st.sampled_from(["Polygon", "MultiPolygon"]), "coordinates": mostly([SQUARE]) | mostly([[SQUARE]])}
        )
        | anything,
    },
    optional={
        "id": anything,
        "properties": st.fixed_dictionaries(
            {},
            optional={
                "objectType": mostly("cell"),
                "name": mostly("n"),
                "classification": mostly({"name": "n", "color": [1]}) | st.fixed_dictionaries({"color": anything}),
                "color": anything,
                "measurements": st.dictionaries(st.text(max_size=4), anything, max_size=3) | anything,
                "metadata": st.dictionaries(st.text(max_size=4), anything, max_size=3) | anything,
                "childObjects": anything,
                "isLocked": anything,
            },
        )
        | anything,
    },
)


collections = st.fixed_dictionaries(
    {"type": st.just("FeatureCollection"), "features": st.lists(features, max_size=3)}, optional={"wsiseg": anything}
)


def deep(levels: int) -> dict[str, Any]:
    """A feature with a child with a child …"""
    feature: dict[str, Any] = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE]}}
    for _ in range(levels):
        feature = feature | {"properties": {"childObjects": [feature]}}
    return feature


HUGE = deep(0) | {"geometry": {"type": "Polygon", "coordinates": [[[10**400, 0], *SQUARE]]}, "id": float("nan")}
HUGE_MEASURED = deep(0) | {"properties": {"measurements": {"a": 10**400, "b": float("nan")}}}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(root=collections | features)
@example(root=HUGE)
@example(root=HUGE_MEASURED)
def test_any_json_is_read_or_refused(tmp_path: Path, root: Any) -> None:
    path = tmp_path / "x.geojson"
    path.write_text(json.dumps(root))
    with suppress(GeoJSONError):
        annotations, run = read_collection(path)
        assert isinstance(run, dict)
        assert all(not annotation.geometry.is_empty for annotation in annotations)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=40))
@example(data=b"\x1f\x8b")
@example(data=b"[" * 100_000)
@example(data=b'{"type":"FeatureCollection","features":[],"a":"\xff"}')
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.geojson"
    path.write_bytes(data)
    with suppress(GeoJSONError):
        read_collection(path)


def test_children_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.geojson"
    path.write_text(json.dumps(deep(20)))
    assert len(read_collection(path)[0]) == 21
    path.write_text(json.dumps(deep(300)))
    with suppress(GeoJSONError):
        assert len(read_collection(path)[0]) == 301
