"""The server of `wsiseg data review`: what it answers, and whom it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from starlette.testclient import TestClient

from tests.training.review.conftest import bytes_of, discs, grown
from wsiseg.cli.main import main
from wsiseg.training.review.app import STATIC, make_app
from wsiseg.training.review.session import Review

TOKEN, PORT = "a-token", 8123
HOME = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def review(person: Callable[[str], Review]) -> Review:
    return person("Dr. X")


@pytest.fixture
def client(review: Review) -> Iterator[TestClient]:
    with TestClient(make_app(review, token=TOKEN, port=PORT), base_url=f"{HOME}/{TOKEN}/") as client:
        yield client


def test_the_page_and_all_that_it_names_is_served(client: TestClient) -> None:
    page = client.get("").text
    for name in ("static/style.css", "static/theme.js", "static/vendor/openseadragon.min.js",
                 "review-static/review.css", "review-static/review.js"):  # fmt: skip
        assert f'"{name}"' in page
        assert client.get(name).status_code == 200
    for script in STATIC.glob("*.js"):
        written = script.read_text()
        assert not {word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(") if word in written}
        for imported in [line.split('"')[1] for line in written.splitlines() if line.startswith("import ")]:
            assert client.get(f"review-static/{imported}").status_code == 200


def test_a_question_is_shown_decided_corrected_and_undone(client: TestClient, store: Path) -> None:
    assert len(client.get("review").json()["states"]) == 12
    question = client.get("questions/0").json()
    assert (question["concept"], question["present"], question["mpp"]) == ("glands", True, 1.0)
    shown = np.asarray(Image.open(io.BytesIO(client.get("questions/0/image").content)))
    np.testing.assert_array_equal(shown, discs(0).image)
    labels = np.frombuffer(client.get("questions/0/labels").content, "<u2").reshape(72, 96)
    np.testing.assert_array_equal(labels, discs(0).layers["gland"])
    assert not any(client.get("questions/1/labels").content)
    ((index, state),) = client.post("questions/0", json={"mask": "accepted", "chain": "rejected"}).json()
    assert (index, state["mask"], state["chain"]) == (0, "accepted", "rejected")
    ((_, state),) = client.post("questions/0/labels", content=bytes_of(grown())).json()
    assert state["mask"] == "corrected"
    assert client.get("questions/0/labels").content == bytes_of(grown())
    index, _ = client.post("undo").json()
    assert index == 0
    (path,) = store.with_suffix(".review").glob("*.jsonl")
    assert [json.loads(line)["verdict"] for line in path.read_text().splitlines()] == [
        "accepted", "rejected", "corrected", "accepted",
    ]  # fmt: skip


def test_only_the_page_itself_may_ask(client: TestClient, store: Path) -> None:
    for address in ("/", "/review", "/questions/0", "/wrong/review", "/review-static/review.js"):
        assert client.get(HOME + address).status_code == 403
    verdict = {"mask": "rejected"}
    for headers in ({"Host": f"evil.example:{PORT}"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
                    {"Sec-Fetch-Site": "cross-site"}):  # fmt: skip
        assert client.get("review", headers=headers).status_code == 403
        assert client.post("questions/0", headers=headers, json=verdict).status_code == 403
        assert client.post("undo", headers=headers).status_code == 403
    assert not store.with_suffix(".review").exists()


@pytest.mark.parametrize(
    "path",
    [
        "questions/12", "questions/-1", "questions/x", "questions/" + "9" * 500, "questions/99/image",
        "questions/12/labels", "review-static/../session.py", "review-static/..%2fsession.py",
        "review-static/%2fetc%2fpasswd", "review-static/%00", "static/..%2fapp.py", "nothing",
    ],
)  # fmt: skip
def test_what_does_not_exist_is_not_there(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (403, 404)
    assert client.post(path, json={"mask": "accepted"}).status_code in (403, 404, 405)


def test_a_body_that_is_none_is_a_sentence(review: Review, store: Path) -> None:
    app = make_app(review, token=TOKEN, port=PORT)
    app.max_body = 20_000
    with TestClient(app, base_url=f"{HOME}/{TOKEN}/") as client:
        for body in (b"", b"{", b"[]", b"3", b'{"mask": 1}', b'{"mask": null}', b'{"text": []}'):
            assert client.post("questions/0", content=body).status_code == 400
        for body in ({"mask": "corrected"}, {"image": "accepted"}, {"chain": "corrected"}):
            said = client.post("questions/0", json=body)
            assert said.status_code == 400
            assert "Traceback" not in said.text
        assert client.post("questions/0/labels", content=b"\1\0").status_code == 400
        assert client.post("questions/0/labels", content=b"\1" * 20_001).status_code == 413
    assert not store.with_suffix(".review").exists()


def test_wrong_use_is_a_sentence(store: Path) -> None:
    for words, says in (
        ([], "give your name"),
        (["--name", "X", "--json"], "--json is for --report"),
        (["--report", "--apply", "o.zarr"], "either"),
        (["--report", "--name", "X"], "leave --name out"),
        (["--report", "--split", "val"], "for the page alone"),
    ):
        done = CliRunner().invoke(main, ["data", "review", str(store), *words])
        assert done.exit_code == 2
        assert says in done.stderr
    done = CliRunner().invoke(main, ["data", "review", str(store), "--name", " ", "--no-browser"])
    assert done.exit_code == 1
    assert "--name" in done.stderr
