"""The server of `wsiseg view`: what it answers, and whom it refuses."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import shapely
from click.testing import CliRunner
from starlette.testclient import TestClient

from tests.model.small import small_model
from tests.viewer.conftest import HOME, MODEL, PORT, TOKEN, events, header
from wsiseg.cli.main import main
from wsiseg.geojson import Annotation, read_collection, write_geojson
from wsiseg.inference import TileMask
from wsiseg.inference.devices import SeveralDevices
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.pipeline import segment
from wsiseg.qupath import DESCRIPTION
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel, disk, synthetic_slide
from wsiseg.viewer import Asking, Session
from wsiseg.viewer.app import STATIC, make_app
from wsiseg.viewer.edits import Edits
from wsiseg.viewer.query import Query


def test_the_page_and_all_that_it_names_is_served(client: TestClient) -> None:
    page = client.get("").text
    for name in ("style.css", "app.js", "theme.js", "icon.svg", "vendor/openseadragon.min.js"):
        assert f'"static/{name}"' in page
        assert client.get(f"static/{name}").status_code == 200
    assert "Redistribution" in client.get("static/vendor/openseadragon.LICENSE.txt").text
    # No text from a file may ever become HTML.
    for script in STATIC.glob("*.js"):
        written = script.read_text()
        assert not {word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(") if word in written}


def test_slide_tiles_and_objects_are_there(client: TestClient) -> None:
    slide = client.get("slide").json()
    assert (slide["width"], slide["height"], slide["mpp"]) == (1200, 800, [0.5, 0.5])
    tile = client.get(f"tiles/{slide['lastLevel']}/0_0.jpg")
    assert tile.content[:2] == b"\xff\xd8"
    head = header(client.get("polygons").content)
    assert head["objects"] == slide["objects"] == 3
    assert [c["name"] for c in head["classes"]] == ["olive"]
    first = client.get("objects/0").json()
    assert "px of olive" in first["metadata"][DESCRIPTION]
    assert first["measurements"]["Area µm^2"] > 0


def test_a_slide_with_bounds_is_shown_where_qupath_shows_it(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "s.scn", {"olive": [disk(300, 300, 100)]}, l0_bounds_xy=(334, 222))
    with open_slide(tmp_path / "s.scn") as slide:
        as_qupath = Session(slide).describe()
        assert as_qupath["shown"] == [334, 222, 1200, 800]
        assert tuple(as_qupath["origin"]) == (334, 222)
        whole = Session(slide, origin="slide").describe()
        assert whole["shown"] == [0, 0, *slide.dimensions]
        assert tuple(whole["origin"]) == (0, 0)


def test_a_query_tells_what_happens_and_becomes_a_class(client: TestClient) -> None:
    number = client.post("queries", json={"query": "the orange", "region": None}).json()["number"]
    told = events(client, number)
    kinds = [event["kind"] for event in told]
    assert kinds[:2] == ["loading", "started"]
    assert kinds[-1] == "done"
    progress = [(event["done"], event["total"]) for event in told if event["kind"] == "progress"]
    assert progress[-1][0] == progress[-1][1] == kinds.count("tile")
    assert any("px of orange" in event["said"] for event in told if event["kind"] == "tile" and event["segmented"])
    assert (told[-1]["first"], told[-1]["found"], told[-1]["new"]) == (3, 1, 1)
    head = header(client.get("polygons?first=3").content)
    assert [(c["index"], c["name"]) for c in head["classes"]] == [(1, "the orange")]
    # A browser that lost the connection hears the rest, not everything again.
    assert events(client, number, after=len(told) - 2) == told[-1:]
    # The same again is the same objects.
    again = client.post("queries", json={"query": "the orange", "region": None}).json()["number"]
    assert events(client, again)[-1]["new"] == 0


def test_all_devices_share_a_query(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_in: list[str] = []

    class Counted(PathChatSegmenter):
        def answer(self, *asked: Any) -> list[TileMask]:
            asked_in.append(threading.current_thread().name)
            return super().answer(*asked)

    def load(name: str | None, *, device: str | None) -> SeveralDevices:
        assert (name, device) == (None, "0,1")
        return SeveralDevices([Counted(small_model(), name="small", fingerprint="s") for _ in range(2)])

    monkeypatch.setattr("wsiseg.model.load_model", load)
    with open_slide(slide_path) as slide:
        query = Query(Session(slide, asking=Asking(device="0,1")), "nuclei", (100, 100, 250, 250))
        query.wait(60)
    assert query.events[-1]["kind"] == "done"
    assert {name[:8] for name in asked_in} == {"device-0", "device-1"}


def test_a_query_on_a_region_looks_there_only(client: TestClient) -> None:
    whole = events(client, client.post("queries", json={"query": "olive"}).json()["number"])
    asked = client.post("queries", json={"query": "olive", "region": [160, 610, 80, 80]})
    part = events(client, asked.json()["number"])
    assert part[-1]["found"] == 1
    assert len(part) < len(whole) / 3


def test_what_a_query_cannot_do_is_a_sentence(client: TestClient) -> None:
    assert "the query is empty" in client.post("queries", json={"query": "  "}).text
    assert "region is not" in client.post("queries", json={"query": "olive", "region": [1, 2, "x", None]}).text
    for body in ({}, [], {"query": 3}, {"query": None}, "x"):
        assert client.post("queries", json=body).status_code == 400
    asked = client.post("queries", json={"query": "purple"}).json()["number"]
    assert "knows only olive, orange" in events(client, asked)[-1]["message"]
    outside = client.post("queries", json={"query": "olive", "region": [9e9, 0, 5, 5]}).json()["number"]
    assert "outside the slide" in events(client, outside)[-1]["message"]
    # After all that it still answers.
    assert events(client, client.post("queries", json={"query": "olive"}).json()["number"])[-1]["kind"] == "done"


class Slow(FakeModel):
    def segment_tiles(self, tiles: Any, query: str, mpp: float) -> list[TileMask]:
        time.sleep(0.2)
        return super().segment_tiles(tiles, query, mpp)


def test_a_query_can_be_cancelled_and_two_do_not_run_at_once(session: Session, client: TestClient) -> None:
    session.asking = Asking(model=Slow(tile_size=64, overlap=16))
    number = client.post("queries", json={"query": "olive"}).json()["number"]
    second = client.post("queries", json={"query": "olive"})
    assert second.status_code == 400
    assert "another query is running" in second.text
    assert client.post(f"queries/{number}/cancel").status_code == 200
    assert events(client, number)[-1]["kind"] == "cancelled"
    assert len(session.annotations) == 3


def test_a_query_whose_finds_cannot_be_taken_in_ends_too(
    session: Session, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(session, "add", lambda _: 1 / 0)
        number = client.post("queries", json={"query": "olive"}).json()["number"]
        assert "ZeroDivisionError" in events(client, number)[-1]["message"]
    assert events(client, client.post("queries", json={"query": "olive"}).json()["number"])[-1]["kind"] == "done"


def test_outlines_of_another_slide_are_warned_of(slide_path: Path, geojson: Path, tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "other.tif", {"olive": [disk(300, 300, 90)]})
    with open_slide(slide_path) as slide, open_slide(tmp_path / "other.tif") as other:
        assert Session(slide, geojson).describe()["warning"] == ""
        assert "another slide" in Session(other, geojson).describe()["warning"]
    told = CliRunner().invoke(
        main, ["report", str(tmp_path / "other.tif"), str(geojson), "--out", str(tmp_path / "r.html")]
    )
    assert told.exit_code == 0
    assert "the outlines were made on another slide" in told.stderr


def test_outlines_beside_the_slide_are_warned_of(slide_path: Path, tmp_path: Path) -> None:
    """QuPath's exports do not say on which slide they lie."""
    inside, beside = shapely.box(1190, 0, 1210, 9), shapely.box(1200, 0, 1210, 9)
    with open(tmp_path / "qupath.geojson", "wb") as file:
        write_geojson([Annotation(uuid.uuid4(), box, "", "", (0, 0, 0)) for box in (inside, beside)], file)
    with open_slide(slide_path) as slide:
        assert "1 of 2 outlines lie outside" in Session(slide, tmp_path / "qupath.geojson").describe()["warning"]
    for command, name in (("render", "a.png"), ("report", "a.html")):
        arguments = [command, str(slide_path), str(tmp_path / "qupath.geojson"), "--out", str(tmp_path / name)]
        told = CliRunner().invoke(main, arguments)
        assert told.exit_code == 0
        assert "warning: 1 of 2 outlines lie outside the slide" in told.stderr


def test_a_file_that_takes_long_to_read_is_said_to_be_read(
    geojson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"wsiseg: reading {geojson} (0 MB) …"
    convert = ["convert", str(geojson), "--out", str(tmp_path / "out.xml")]
    assert said not in CliRunner().invoke(main, convert).stderr
    monkeypatch.setattr("wsiseg.cli.options.LARGE_BYTES", 0)
    assert said in CliRunner().invoke(main, convert).stderr
    assert said not in CliRunner().invoke(main, ["-q", *convert]).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode there")
def test_a_name_that_is_no_text_is_shown_all_the_same(slide_path: Path, tmp_path: Path) -> None:
    odd = tmp_path / "caf\udce9.tif"
    shutil.copy(slide_path, odd)
    with open_slide(odd) as slide:
        app = make_app(Session(slide, out=tmp_path / "\udce9.geojson"), token=TOKEN, port=PORT)
        with TestClient(app, base_url=f"{HOME}/{TOKEN}/") as client:
            assert client.get("slide").json()["name"] == "caf?.tif"
            assert client.post("save", json={}).json()["out"].endswith("?.geojson")


def test_a_slide_has_the_scale_in_which_its_outlines_were_made(slide_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "corrected.geojson"
    segment(slide_path, "olive", model=MODEL, slide_mpp=0.25).write(path)
    with open_slide(slide_path) as slide:
        assert Session(slide).describe()["mpp"] == (0.5, 0.5)
        assert Session(slide, path).describe()["mpp"] == (0.25, 0.25)
    with open_slide(slide_path, slide_mpp=1.0) as slide:
        assert Session(slide, path).describe()["mpp"] == (1.0, 1.0)


def test_the_file_says_where_its_coordinates_begin(slide_path: Path, geojson: Path) -> None:
    with open_slide(slide_path) as slide:
        Session(slide, geojson, origin="slide").save(Edits())  # said by the person, against what the file says
    assert read_collection(geojson)[1]["origin"] == "slide"
