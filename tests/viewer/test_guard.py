"""Whom the server of `wsiseg view` refuses, and what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.viewer.conftest import HOME, PORT, TOKEN
from wsiseg.viewer import Session
from wsiseg.viewer.app import make_app


@pytest.mark.parametrize(
    "address",
    ["/", "/slide", "/static/app.js", f"/{TOKEN}", "/wrong/", "/wrong/slide", f"/{TOKEN}x/slide", "//slide", "/é/"],
)
def test_without_the_token_nothing_is_told(client: TestClient, address: str) -> None:
    shown = client.get(HOME + address)
    assert shown.status_code == 403
    assert "slide.tif" not in shown.text
    assert client.post(HOME + address, json={}).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.evil:{PORT}", ""]
)
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    # DNS rebinding: a page of evil.example whose name now points at 127.0.0.1 is "same-origin" to the browser.
    assert client.get("slide", headers={"Host": host}).status_code == 403
    assert client.get("slide", headers={"Host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_foreign_origin_is_refused(client: TestClient, geojson: Path, method: str) -> None:
    data = geojson.read_bytes()
    for foreign in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.request(method, "save", headers=foreign, json={"deleted": [0]}).status_code == 403
    assert geojson.read_bytes() == data
    assert client.post("save", headers={"Origin": HOME}, json={}).status_code == 200


def test_a_foreign_page_may_lead_to_the_page_and_no_further(client: TestClient) -> None:
    led = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get(f"{HOME}/{TOKEN}/", headers=led).status_code == 200
    for path in ("slide", "polygons", "static/app.js"):
        assert client.get(path, headers=led).status_code == 403
    assert client.post("save", headers=led, json={}).status_code == 403
    assert client.get(f"{HOME}/wrong/", headers=led).status_code == 403
    assert client.get(f"{HOME}/{TOKEN}/", headers={**led, "Sec-Fetch-Mode": "no-cors"}).status_code == 403


def test_there_is_no_websocket(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("queries"):
        pass
    assert refused.value.code == 1008


@pytest.mark.parametrize(
    "path",
    [
        "static/../app.py", "static/..%2fapp.py", "static/%2e%2e/app.py", "static/....//app.py", "static//etc/passwd",
        "static/%2fetc%2fpasswd", "static/..%5capp.py", "static/%00", "static/", "static",
    ],
)  # fmt: skip
def test_only_files_of_the_page_are_served(client: TestClient, path: str) -> None:
    shown = client.get(f"{HOME}/{TOKEN}/{path}", follow_redirects=False)
    assert shown.status_code in (403, 404)
    assert "Starlette" not in shown.text


@pytest.mark.parametrize(
    "place",
    [
        "99/0_0.jpg", "11/-1_0.jpg", "11/0_-1.jpg", "-1/0_0.jpg", "11/9999999_0.jpg", "11/0_" + "9" * 5000 + ".jpg",
        "11/0_0.png", "11/0_0.jpg/..", "11/1e3_0.jpg", "11/٣_0.jpg", "0/0_0.jpg", "11/0_0", "",
    ],
)  # fmt: skip
def test_tiles_that_do_not_exist_are_not_there(client: TestClient, place: str) -> None:
    assert client.get(f"tiles/{place}").status_code == 404


@pytest.mark.parametrize(
    "path", ["objects/3", "objects/-1", "objects/x", "objects/" + "9" * 5000, "queries/0/events", "nothing"]
)
def test_numbers_that_do_not_exist_are_not_there(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_giant_body_is_refused_before_it_is_held(session: Session) -> None:
    app = make_app(session, token=TOKEN, port=PORT)
    app.max_body = 1000
    with TestClient(app, base_url=f"{HOME}/{TOKEN}/") as client:
        assert client.post("save", content=b"x" * 1001).status_code == 413
        sent = 0

        def endless() -> Any:  # chunked: no length is stated
            nonlocal sent
            while sent < 1 << 20:
                sent += 100
                yield b" " * 100

        assert client.post("save", content=endless()).status_code == 413
        for length in ("1" + "0" * 30, "-5", "x"):
            assert client.post("save", content=b"{}", headers={"Content-Length": length}).status_code == 413


def test_browsers_are_told_to_run_our_scripts_only(client: TestClient) -> None:
    for path in ("", "slide", "polygons", "static/app.js", "nothing"):
        headers = client.get(path).headers
        assert "script-src 'self';" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    assert client.get("static/app.js").headers["content-type"].startswith("text/javascript")
    finest = client.get("slide").json()["lastLevel"]
    assert client.get(f"tiles/{finest}/0_0.jpg").headers["cache-control"] == "no-store"
