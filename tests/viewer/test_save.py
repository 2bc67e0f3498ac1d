"""What `wsiseg view` saves, where, and over what it never writes."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import shapely
from click.testing import CliRunner
from starlette.testclient import TestClient

from tests.viewer.conftest import HOME, MODEL, PORT, TOKEN, events
from wsiseg.cli.main import main
from wsiseg.geojson import Annotation, read_collection, write_geojson
from wsiseg.qupath import check_dialect
from wsiseg.slide import open_slide
from wsiseg.viewer import Asking, Session
from wsiseg.viewer.app import make_app
from wsiseg.viewer.edits import Edits
from wsiseg.viewer.session import merged_run, not_outlined


def test_what_is_saved_is_what_was_decided(client: TestClient, geojson: Path) -> None:
    before, _ = read_collection(geojson)
    events(client, client.post("queries", json={"query": "the orange"}).json()["number"])
    square = [[[0, 0], [40, 0], [40, 40], [0, 40]]]
    edits = {"deleted": [1], "review": {"0": "accepted", "3": "rejected"}, "rings": {"2": square}}
    assert client.get("slide").json()["unsaved"] is True
    assert client.post("save", json=edits).json() == {"out": str(geojson), "written": 3, "saves": 1, "note": ""}
    assert client.get("slide").json()["unsaved"] is False
    assert check_dialect(geojson) == []
    after, run = read_collection(geojson)
    assert [a.id for a in after[:2]] == [before[0].id, before[2].id]
    assert [a.metadata.get("review") for a in after] == ["accepted", None, "rejected"]
    assert after[1].geometry.area == 1600
    assert after[1].measurements["Area µm^2"] == pytest.approx(400)
    assert after[1].metadata["edited"] == "by hand"
    assert run["queries"] == ["olive", "the orange"]
    assert run["parameters"]["mpp"] == {"olive": 1.0, "the orange": 1.0}
    # Undone after saving, and saved again: as it was. A page that is loaded anew knows what was saved.
    assert client.get("slide").json()["edits"]["deleted"] == [1]
    client.post("save", json={})
    assert read_collection(geojson)[0][:3] == before


def test_a_file_of_two_models_keeps_the_cautions_of_both() -> None:
    before, now = ({"queries": [q], "parameters": {"mpp": {q: 1.0}}} for q in ("skin", "bone"))
    assert merged_run(before | {"cautions": ["a"]}, now | {"cautions": ["b"]})["cautions"] == ["a", "b"]
    assert merged_run(before | {"cautions": ["a"]}, now)["cautions"] == ["a"]
    assert "cautions" not in merged_run(before, now)


def test_a_save_that_fails_leaves_the_file_as_it_was(client: TestClient, geojson: Path) -> None:
    data = geojson.read_bytes()
    line = {"rings": {"0": [[[0, 0], [1, 1], [2, 2]]]}}
    for body in (line, {"deleted": [99]}):
        assert client.post("save", json=body).status_code == 400
    assert geojson.read_bytes() == data
    assert sorted(p.name for p in geojson.parent.iterdir()) == [geojson.name]


def test_without_a_geojson_a_new_file_is_made_and_none_overwritten(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slide.geojson").write_text("mine")
    with open_slide(slide_path) as slide:
        app = make_app(Session(slide, asking=Asking(model=MODEL)), token=TOKEN, port=PORT)
        with TestClient(app, base_url=f"{HOME}/{TOKEN}/") as client:
            events(client, client.post("queries", json={"query": "olive"}).json()["number"])
            assert client.post("save", json={}).json()["out"] == "slide-1.geojson"
            assert client.post("save", json={}).json()["out"] == "slide-1.geojson"
    assert (tmp_path / "slide.geojson").read_text() == "mine"
    assert len(read_collection(tmp_path / "slide-1.geojson")[0]) == 3


def test_a_page_that_missed_a_save_is_refused(client: TestClient, geojson: Path) -> None:
    assert client.post("save?after=0", json={"deleted": [0]}).json()["saves"] == 1
    data = geojson.read_bytes()
    missed = client.post("save?after=0", json={})
    assert missed.status_code == 400
    assert "another page" in missed.text
    assert geojson.read_bytes() == data
    assert client.post("save?after=1", json={}).json()["saves"] == 2


def test_what_is_not_ours_or_has_changed_is_not_written_over(slide_path: Path, geojson: Path) -> None:
    annotations, _ = read_collection(geojson)
    with open_slide(slide_path) as slide:
        session = Session(slide, geojson)
        with open(geojson, "ab") as file:
            file.write(b"\n")  # by somebody else
        theirs = geojson.read_bytes()
        saved = session.save(Edits())
        assert Path(saved["out"]).name == "olive-1.geojson"
        assert "olive.geojson has changed since it was opened" in saved["note"]
        assert session.save(Edits())["note"] == ""
        assert geojson.read_bytes() == theirs
        with open(geojson, "wb") as file:
            write_geojson(annotations, file)  # as QuPath would have it: nothing says that wsiseg made it
        session = Session(slide, geojson)
        assert session.describe()["out"] is None
        assert Path(session.save(Edits())["out"]) == geojson.with_name("olive-2.geojson")
        assert Session(slide, geojson, out=geojson).save(Edits())["out"] == str(geojson)  # the person says so


def test_an_earlier_review_is_not_written_over_by_one_that_has_not_read_it(slide_path: Path, geojson: Path) -> None:
    """As the same command does, given again the next day."""
    out = geojson.with_name("reviewed.geojson")
    with open_slide(slide_path) as slide:
        Session(slide, geojson, out=out).save(Edits(review={0: "rejected"}))
        before = out.read_bytes()
        saved = Session(slide, geojson, out=out).save(Edits(review={1: "accepted"}))
    assert (Path(saved["out"]).name, out.read_bytes()) == ("reviewed-1.geojson", before)
    assert "left as it is" in saved["note"]
    shown = CliRunner().invoke(main, ["view", str(slide_path), str(geojson), "--out", str(out), "--no-browser"])
    assert shown.exit_code == 1
    assert f"to go on with it, open it, `wsiseg view {slide_path} {out}`" in shown.stderr


def test_gz_is_saved_compressed(slide_path: Path, geojson: Path) -> None:
    packed = geojson.with_name("olive.geojson.gz")
    with open_slide(slide_path) as slide:
        Session(slide, geojson, out=packed).save(Edits(frozenset([0])))
    assert packed.read_bytes()[:2] == b"\x1f\x8b"
    assert read_collection(packed)[0] == read_collection(geojson)[0][1:]
    assert check_dialect(packed) == []


def test_a_piece_of_a_known_outline_is_not_another_object() -> None:
    def made(shape: shapely.Geometry, name: str) -> Annotation:
        return Annotation(uuid.uuid4(), shape, name, name, (1, 2, 3))

    known = [made(shapely.box(0, 0, 100, 60), "gland")]  # cut at the edge of its tiles
    whole, less_than_half = made(shapely.box(0, 0, 100, 100), "gland"), made(shapely.box(0, 0, 100, 29), "gland")
    other, far = made(shapely.box(0, 0, 100, 60), "lumen"), made(shapely.box(200, 0, 300, 60), "gland")
    assert not_outlined([whole, less_than_half, other, far], known) == [less_than_half, other, far]
    assert not_outlined([], known) == []
