"""A slide of known content, its outlines, and a session over both."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.cli.test_segment import RUN_FAKE
from wsiseg.geojson import read_collection
from wsiseg.pipeline import segment
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel, disk, ring, stripe, synthetic_slide
from wsiseg.viewer import Asking, Session
from wsiseg.viewer.app import make_app

SHAPES = {
    "olive": [disk(300, 300, 100), ring(800, 300, 150, 80), disk(200, 650, 40)],
    "orange": [stripe(500, 600, 400, 60)],
}
MODEL = FakeModel(tile_size=128, overlap=32)
TOKEN, PORT = "a-token", 8123
HOME = f"http://127.0.0.1:{PORT}"


def events(client: TestClient, number: int, after: int | None = None) -> list[dict[str, Any]]:
    """All events of a query, until it has ended."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    text = client.get(f"queries/{number}/events", headers=headers).text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def header(block: bytes) -> dict[str, Any]:
    return json.loads(block[4 : 4 + int.from_bytes(block[:4], "little")])


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viewer") / "slide.tif"
    synthetic_slide(path, SHAPES)
    return path


@pytest.fixture
def geojson(slide_path: Path, tmp_path: Path) -> Path:
    """The outlines of olive on the slide: three, one of them with a hole."""
    path = tmp_path / "olive.geojson"
    segment(slide_path, "olive", model=MODEL).write(path)
    assert len(read_collection(path)[0]) == 3
    return path


@pytest.fixture
def session(slide_path: Path, geojson: Path) -> Iterator[Session]:
    with open_slide(slide_path) as slide:
        yield Session(slide, geojson, asking=Asking(model=MODEL))


@pytest.fixture
def client(session: Session) -> Iterator[TestClient]:
    """A client whose addresses are below the token, as the page's are."""
    address = f"http://127.0.0.1:{PORT}/{TOKEN}/"
    with TestClient(make_app(session, token=TOKEN, port=PORT), base_url=address) as client:
        yield client


@pytest.fixture
def running_view() -> Iterator[Callable[..., str]]:
    """Start `wsiseg view --no-browser ARGUMENTS`, by default with the fake model, and return its address."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, seconds: float = 0, program: Sequence[str] = RUN_FAKE) -> str:
        command = [*program, "view", *map(str, arguments), "--no-browser"]
        environment = {**os.environ, "FAKE_SECONDS": str(seconds)}
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        assert started[-1].stderr is not None
        line = started[-1].stderr.readline()
        found = re.search(r"http://\S+/", line)
        assert found, line
        return found[0]

    yield start
    for process in started:
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 143, said
        assert "Traceback" not in said
