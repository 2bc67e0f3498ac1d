"""`wsiseg view` as a process: on this machine alone, and ended at once."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from wsiseg.viewer import Session
from wsiseg.viewer.serve import leading_to, serve


def test_the_command_serves_on_this_machine_alone(slide_path: Path, geojson: Path, running_view: Any) -> None:
    address = running_view(slide_path, geojson)
    assert address.startswith("http://127.0.0.1:")
    port = int(address.split(":")[2].split("/")[0])
    assert httpx.get(address + "slide").json()["name"] == "slide.tif"
    assert httpx.get(f"http://127.0.0.1:{port}/slide").status_code == 403
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((other_address(), port), timeout=2)


def test_the_browser_is_not_told_the_token_where_ps_shows_it(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    opened: list[str] = []
    told: list[str] = []
    looked = threading.Event()
    seen: dict[str, Any] = {}

    def browser(address: str) -> None:
        opened.append(address)
        looked.set()

    def run(*_: Any, **__: Any) -> None:  # in place of the server
        assert looked.wait(10)
        (file,) = tmp_path.glob("wsiseg-view-*.html")
        seen.update(uri=file.as_uri(), mode=file.stat().st_mode & 0o777, text=file.read_text())

    monkeypatch.setattr(webbrowser, "open", browser)
    monkeypatch.setattr(uvicorn.Server, "run", run)
    serve(session, tell=told.append)
    assert opened == [seen["uri"]]
    assert told[0].split("/")[3] not in opened[0]
    assert seen["mode"] == 0o600
    assert f"url={told[0]}" in seen["text"]
    assert list(tmp_path.glob("wsiseg-view-*")) == []
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    with leading_to("http://127.0.0.1:1/t/") as file:
        assert file is None

SLOW = """
import asyncio
from wsiseg.viewer import serve

def make_app(session, *, token, port):
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        print("asked", flush=True)
        await asyncio.sleep(60)
    return app

serve(None, app="__main__", browse=False, tell=lambda address: print(address, flush=True))
"""


def test_it_ends_without_a_word_though_something_is_under_way() -> None:
    """A tile of a slide on a slow disk, say."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        host, port, token = re.fullmatch(r"http://([\d.]+):(\d+)(/.*)", address).groups()  # type: ignore[union-attr]
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"GET {token} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            assert server.stdout.readline() == "asked\n"
            server.terminate()
            assert server.communicate(timeout=30) == ("", "")


def other_address() -> str:
    """An address of this machine that is not 127.0.0.1."""
    return "127.0.0.2"
