"""Packed bytes and edits: what the page draws and sends back is what the file holds."""

from __future__ import annotations

import uuid
from dataclasses import replace
from unittest import mock

import numpy as np
import orjson
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.errors import ViewerError
from wsiseg.geojson import Annotation
from wsiseg.testing import disk, ring
from wsiseg.viewer.edits import Edits, apply, parse_edits
from wsiseg.viewer.packing import pack


def annotation(geometry: shapely.Geometry, name: str = "gland", **more: object) -> Annotation:
    made = Annotation(uuid.uuid4(), geometry, name, name, (1, 2, 3))
    return replace(made, **more)  # type: ignore[arg-type]


def unpacked(data: bytes) -> tuple[dict, list[list[np.ndarray]]]:
    """Header, and the rings of each object: read as the docstring of packing.py says, sharing no code with it."""
    length = int.from_bytes(data[:4], "little")
    header = orjson.loads(data[4 : 4 + length])
    n, r, v = header["objects"], header["rings"], header["vertices"]
    words = np.frombuffer(data, "<u4", n + 1 + r + 1, 4 + length)
    objects, rings = words[: n + 1], words[n + 1 :]
    xy = np.frombuffer(data, "<f4", 2 * v, 4 + length + 4 * len(words)).reshape(-1, 2)
    assert len(data) == 4 + length + 4 * len(words) + 8 * v + 13 * n
    shapes = [[xy[rings[i] : rings[i + 1]] for i in range(objects[o], objects[o + 1])] for o in range(n)]
    return header, shapes


corner = st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans())


@settings(max_examples=50, deadline=None)
@given(st.lists(corner, max_size=6), st.sampled_from([2, 1024]))
def test_packed_outlines_are_those_of_the_annotations(corners: list[tuple[int, int, bool]], batch: int) -> None:
    shapes = [ring(100 * x, 100 * y, 40, 20) if holed else disk(100 * x, 100 * y, 40) for x, y, holed in corners]
    with mock.patch("wsiseg.viewer.packing._BATCH", batch):
        header, found = unpacked(pack([annotation(shape) for shape in shapes], {"gland": 0}))
    assert header["objects"] == len(shapes) == len(found)
    for shape, (shell, *holes) in zip(shapes, found, strict=True):
        assert shapely.Polygon(shell, holes).symmetric_difference(shape).area < 1e-3 * shape.area
        assert shapely.LinearRing(shell).is_ccw
        assert not any(shapely.LinearRing(hole).is_ccw for hole in holes)


def test_an_outline_that_comes_back_unchanged_is_unchanged() -> None:
    both = shapely.MultiPolygon([ring(100, 100, 40, 20), disk(300, 100, 30)])
    of_outline = dict.fromkeys(("Length µm", "Circularity", "Max diameter µm", "Cell: Area", "Cell: Length px"), 2.0)
    kept = dict.fromkeys(("mine", "Nucleus: Area µm^2", "Area fraction", "Cell: Eosin OD mean"), 5.0)
    before = annotation(both, measurements={"Mean probability": 0.7, "Area µm^2": 1.0, **of_outline, **kept})
    _, (rings,) = unpacked(pack([before], {"gland": 0}))
    edits = parse_edits(orjson.dumps({"rings": {"0": [r.tolist() for r in rings]}}), 1)
    (after,) = apply([before], edits, (0.5, 0.4))
    assert after.geometry.symmetric_difference(both).area < 1e-3 * both.area
    assert len(shapely.get_parts(after.geometry)) == 2
    assert after.id == before.id
    # Measured anew; what the model, or QuPath, measured of the old outline would be a lie.
    assert after.measurements["Area µm^2"] == pytest.approx(both.area * 0.2, rel=1e-3)
    assert after.measurements.keys() == {*kept, "Area µm^2", "Perimeter µm", "Solidity"}


def test_edits_are_laid_on_what_was_read_never_on_each_other() -> None:
    read = [annotation(disk(i * 100, 0, 30), metadata={"query": "q", "review": "rejected"}) for i in range(3)]
    edits = Edits(frozenset([1]), {0: "accepted", 2: ""})
    first = list(apply(read, edits, None))
    assert [a.id for a in first] == [read[0].id, read[2].id]
    assert [a.metadata for a in first] == [{"query": "q", "review": "accepted"}, {"query": "q"}]
    assert list(apply(read, edits, None)) == first
    assert list(apply(read, Edits(), None)) == read  # everything undone
    assert parse_edits(orjson.dumps(edits.to_json()), 3) == edits


def test_a_crossing_outline_is_repaired_and_a_line_refused() -> None:
    before = annotation(shapely.box(0, 0, 10, 10))
    bow_tie = parse_edits(b'{"rings": {"0": [[[0,0],[10,10],[10,0],[0,10]]]}}', 1)
    (after,) = apply([before], bow_tie, None)
    assert after.geometry.is_valid
    assert after.geometry.area == pytest.approx(50)
    line = parse_edits(b'{"rings": {"0": [[[0,0],[10,10],[5,5]]]}}', 1)
    with pytest.raises(ViewerError, match="has no area"):
        list(apply([before], line, None))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'{"deleted": 3}', b'{"deleted": [1]}', b'{"deleted": [-1]}', b'{"deleted": ["x"]}',
        b'{"review": {"0": "<b>"}}', b'{"review": ["accepted"]}', b'{"rings": {"0": [[[1,2],[3,4]]]}}',
        b'{"rings": {"0": [[[1,2],[3,4],[1e300,0]]]}}', b'{"rings": {"0": [[["a","b"]]]}}', b'{"rings": {"9": []}}',
        b'{"deleted": [1e400]}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_malformed_edits_are_a_sentence(body: bytes) -> None:
    with pytest.raises(ViewerError, match="the changes cannot be read"):
        parse_edits(body, 1)
