"""Whatever an XML of outlines holds, from Aperio ImageScope or ASAP, it is read, or refused with one kind of error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsiseg.errors import DataError
from wsiseg.training.data.published import _aperio_polygons, _asap_tumour

numbers = st.integers(0, 9).map(float) | st.integers(0, 9).map(float) | st.floats() | st.text("1e.-x ", max_size=4)
rings = st.lists(st.tuples(numbers, numbers), max_size=7)
regions = st.lists(st.tuples(st.sampled_from(["_0", "_2", "None"]), rings), max_size=4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xml") / "a.xml"


def areas(path: Path) -> list[shapely.Geometry]:
    return [*_aperio_polygons(path), _asap_tumour(path)]


@settings(max_examples=200, deadline=None)
@given(regions=regions)
@example(regions=[("_0", [(0.0, 0.0), (5.0, 5.0), (9.0, 9.0)]), ("_2", [(0.0, 0.0), (9.0, 0.0), (9.0, 9.0)])])
@example(regions=[("_0", [(0.0, 0.0), (9.0, 9.0), (9.0, 0.0), (0.0, 9.0), (4.0, 20.0), (4.0, -9.0)])])
@example(regions=[("_0", [(0.0, 0.0), (1e308, 0.0), (-1e308, 1e308), (0.0, -1e308)]), ("_2", [(0.0, 0.0)] * 4)])
def test_any_outlines(path: Path, regions: list[tuple[str, list[tuple[object, object]]]]) -> None:
    def vertices(name: str, ring: list[tuple[object, object]]) -> str:
        return "".join(
            f'<{name} Order="{i}" X={quoteattr(str(x))} Y={quoteattr(str(y))}/>' for i, (x, y) in enumerate(ring)
        )

    path.write_text(
        "<Annotations>"
        + "".join(f"<Region>{vertices('Vertex', ring)}</Region>" for _, ring in regions)
        + "".join(f'<Annotation PartOfGroup="{g}">{vertices("Coordinate", ring)}</Annotation>' for g, ring in regions)
        + "</Annotations>"
    )
    with suppress(DataError):
        for area in areas(path):
            assert area.is_valid
            assert area.is_empty or area.geom_type in ("Polygon", "MultiPolygon")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60))
@example(data=b"<Annotations><Region><Vertex X='1'/></Region></Annotations>")
@example(data=b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>')
@example(
    data=b"<!DOCTYPE a ["
    + b"".join(b'<!ENTITY e%d "%b">' % (i + 1, b"&e%d;" % i * 20) for i in range(9))
    + b'<!ENTITY e0 "ha">]><a>&e9;</a>'
)
def test_any_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with suppress(DataError):
        areas(path)
