"""What nobody has saved outlives the server of `wsiseg view`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import shapely
from starlette.testclient import TestClient

from tests.viewer.conftest import HOME, MODEL, PORT, TOKEN, events, header
from wsiseg.errors import ViewerError
from wsiseg.geojson import Annotation, read_collection, write_geojson
from wsiseg.mask.shapes import rings_of
from wsiseg.pipeline import segment
from wsiseg.result import Result
from wsiseg.slide import Slide, open_slide
from wsiseg.testing import disk, synthetic_slide
from wsiseg.viewer import Asking, Session
from wsiseg.viewer.app import make_app
from wsiseg.viewer.edits import Edits, apply, parse_edits


def test_what_a_server_that_died_knew_is_taken_up_by_the_next(slide_path: Path, geojson: Path) -> None:
    data = geojson.read_bytes()
    square = [[[0, 0], [40, 0], [40, 40], [0, 40]]]
    edits = {
        "deleted": [1], "review": {"3": "accepted"}, "rings": {"2": square}, "colors": {"olive": [1, 2, 3]},
    }  # fmt: skip

    def opened(slide: Slide) -> TestClient:
        app = make_app(Session(slide, geojson, asking=Asking(model=MODEL)), token=TOKEN, port=PORT)
        return TestClient(app, base_url=f"{HOME}/{TOKEN}/")

    with open_slide(slide_path) as slide:
        with opened(slide) as client:
            assert client.get("slide").json()["hasDraft"] is False
            events(client, client.post("queries", json={"query": "the orange"}).json()["number"])
            assert client.post("draft", json=edits).status_code == 200
            assert geojson.read_bytes() == data
            assert client.post("draft", json={"deleted": [9]}).status_code == 400
            # The page that is loaded anew takes it up, too, and may do so again; what was found is still there.
            for _ in range(2):
                assert client.post("draft/take").json() == {"edits": edits, "found": 0}
        with opened(slide) as client:
            assert client.get("slide").json()["hasDraft"] is True
            assert client.post("draft/take").json() == {"edits": edits, "found": 1}
            assert client.post("draft/take").json() == {"edits": edits, "found": 0}
            assert [c["name"] for c in header(client.get("polygons?first=3").content)["classes"]] == ["the orange"]
            assert client.post("save", json=edits).json()["written"] == 3
            assert [p.name for p in geojson.parent.iterdir()] == [geojson.name]
        after, run = read_collection(geojson)
        assert [a.color == (1, 2, 3) for a in after] == [True, True, False]
        assert run.keys() == json.loads(data)["wsiseg"].keys()
        assert run["queries"] == ["olive", "the orange"]


def test_a_draft_goes_on_from_the_last_save(slide_path: Path, geojson: Path) -> None:
    chosen = np.random.default_rng(0)
    rings = [[[[x, 0], [x + 40, 0], [x + 40, 40], [x, 40]]] for x in (0, 9)]

    def some_edits() -> dict[str, Any]:
        """One of the choices for each object; object 0 has a hole, its outline stays."""
        changed = {str(i): rings[chosen.integers(2)] for i in (1, 2, 3) if chosen.integers(2)}
        review = {str(i): str(chosen.choice(["", "accepted", "rejected"])) for i in range(4) if chosen.integers(2)}
        return {"deleted": [i for i in range(4) if chosen.integers(4) == 0], "review": review, "rings": changed}

    def known(annotations: Iterable[Annotation]) -> dict[uuid.UUID, Any]:
        return {a.id: (a.geometry.normalize(), a.measurements, a.metadata) for a in annotations}

    as_found, orange = geojson.read_bytes(), segment(slide_path, "orange", model=MODEL)
    with open_slide(slide_path) as slide:
        for _ in range(12):
            geojson.write_bytes(as_found)
            first = Session(slide, geojson)
            first.add(orange)
            first.save(parse_edits(orjson.dumps(some_edits()), 4))
            edits = parse_edits(orjson.dumps(some_edits()), 4)
            first.keep_draft(edits)  # and is killed
            second = Session(slide, geojson)
            taken = second.take_draft()
            second.save(parse_edits(orjson.dumps(taken["edits"]), len(second.annotations)))
            after = read_collection(geojson)[0]
            assert known(after) == known(apply(first.annotations, edits, slide.mpp))


def test_a_session_that_saves_elsewhere_leaves_the_draft_of_another_file(
    slide_path: Path, geojson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geojson.rename(saved := geojson.with_name("slide.geojson"))
    monkeypatch.chdir(geojson.parent)
    with open_slide(slide_path) as slide:
        Session(slide, saved).keep_draft(Edits(frozenset([0])))
        Session(slide).keep_draft(Edits(colors={"olive": (1, 2, 3)}))
        assert Session(slide, saved).take_draft()["edits"]["deleted"] == [0]


def test_a_draft_of_other_outlines_is_not_offered(slide_path: Path, geojson: Path) -> None:
    annotations, run = read_collection(geojson)
    with open_slide(slide_path) as slide:
        session = Session(slide, geojson)
        session.keep_draft(Edits(frozenset([0])))
        assert Session(slide, geojson).describe()["hasDraft"] is True
        with open(geojson, "wb") as file:
            write_geojson(annotations[1:], file, run=run)
        assert Session(slide, geojson).describe()["hasDraft"] is False
        session.keep_draft(Edits())  # all undone
        assert [p.name for p in geojson.parent.iterdir()] == [geojson.name]


def test_two_pages_of_a_session_take_nothing_back_from_each_other(slide_path: Path, geojson: Path) -> None:
    def changed(i: int) -> Edits:
        return Edits(review={i: "accepted"})

    with open_slide(slide_path) as slide:
        session = Session(slide, geojson)
        session.keep_draft(changed(0), page="a", after=0)
        for write in (session.keep_draft, session.save):
            with pytest.raises(ViewerError, match="another page of this session has changes that are not saved"):
                write(changed(1), page="b", after=0)
        with pytest.raises(ViewerError, match="not saved"):
            session.keep_draft(Edits(), page="b", after=0)  # what b changed is undone
        session.keep_draft(changed(2), page="a", after=0)
        assert session.take_draft(page="b")["edits"]["review"] == {"2": "accepted"}  # b is loaded anew
        with pytest.raises(ViewerError, match="not saved"):
            session.save(changed(2), page="a", after=0)
        session.save(changed(2), page="b", after=0)
        with pytest.raises(ViewerError, match="another page of this session has saved"):
            session.keep_draft(changed(1), page="a", after=0)  # taken up it would take back what b saved
        assert Session(slide, geojson).describe()["hasDraft"] is False


def test_what_is_found_is_kept_though_no_page_is_open(slide_path: Path, geojson: Path) -> None:
    orange = segment(slide_path, "orange", model=MODEL)
    with open_slide(slide_path) as slide:
        first = Session(slide, geojson)
        first.keep_draft(Edits(frozenset([0])), page="a")
        first.add(orange)
        first.drop_draft()  # a person's changes; not what is found
        for _ in range(2):
            session = Session(slide, geojson)
            session.add(orange)  # while nobody has said what becomes of what waits
            assert session.describe()["hasDraft"] is True
        taken = Session(slide, geojson).take_draft()
        assert (taken["edits"]["deleted"], taken["found"]) == ([], 1)


def test_another_slide_of_the_same_name_leaves_the_draft_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    colours = Edits(colors={"olive": (1, 2, 3)})
    for patient, marker in (("p1", "olive"), ("p2", "orange")):
        (tmp_path / patient).mkdir()
        synthetic_slide(tmp_path / patient / "HE.tif", {marker: [disk(400, 400, 90)]})
    with open_slide(tmp_path / "p1" / "HE.tif") as one, open_slide(tmp_path / "p2" / "HE.tif") as two:
        Session(one).keep_draft(colours)
        other = Session(two)
        assert other.describe()["hasDraft"] is False
        other.keep_draft(Edits(colors={"orange": (4, 5, 6)}))
        other.drop_draft()
        assert Session(one).take_draft()["edits"]["colors"] == {"olive": (1, 2, 3)}


@pytest.fixture
def found(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Session, Result]]:
    """A session without a file that has what a query found, and that once more."""
    monkeypatch.chdir(tmp_path)
    with open_slide(slide_path) as slide:
        session = Session(slide)
        olive = segment(slide_path, "olive", model=MODEL)
        assert session.add(olive) == len(olive.annotations) > 0
        yield session, olive


def test_what_was_deleted_is_found_anew_and_as_another_object(found: tuple[Session, Result]) -> None:
    session, olive = found
    session.keep_draft(Edits(frozenset([0])), page="a")
    assert session.add(olive) == 1
    session.save(Edits(frozenset([0])), page="a")
    assert session.add(olive) == 0
    ids = [annotation.id for annotation in session.annotations]
    assert len(set(ids)) == len(ids)


def test_an_outline_that_was_moved_is_compared_where_it_is_now(found: tuple[Session, Result]) -> None:
    session, olive = found
    rings, _, _ = rings_of(np.array([session.annotations[0].geometry], object))
    away = Edits(rings={0: [np.add(shapely.get_coordinates(ring), (0, 5000)) for ring in rings]})
    session.keep_draft(away, page="a")
    assert session.add(olive) == 1  # where it was
    assert session.add(olive) == 0
    session.save(away, page="a")
    assert session.add(olive) == 0


def test_the_run_of_a_query_between_two_changes_is_kept(slide_path: Path, geojson: Path) -> None:
    with open_slide(slide_path) as slide:
        session = Session(slide, geojson)
        session.keep_draft(Edits(review={0: "accepted"}), page="a")
        session.add(segment(slide_path, "orange", model=MODEL))
        session.take_draft(page="b")  # loaded anew
        session.save(Edits(review={0: "accepted"}), page="b")
        assert read_collection(geojson)[1]["queries"] == ["olive", "orange"]
