"""A slide on a web server gives the same pixels as the file."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from wsiseg.errors import PixelError, SlideError
from wsiseg.slide import Slide, open_slide, remote
from wsiseg.slide.tiffslide_backend import TiffSlideSlide

pytest.importorskip("aiohttp", reason='needs aiohttp: pip install "wsiseg[url]"')


class Server(ThreadingHTTPServer):
    """Serves one file, whole or in ranges, as /slide.svs."""

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = path.read_bytes()
        self.faults: list[str] = []  # what happens to the next requests: broken off, hung, refused
        self.done = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        if self.path != "/slide.svs":
            self.send_error(404)
            return
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "hang":
            self.server.done.wait()
        if fault.isdigit():
            self.send_error(int(fault))
        if fault:
            self.close_connection = True
            return
        content = self.server.content
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or len(content) - 1)) if asked else (0, len(content) - 1)
        body = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(sample_slide: Path) -> Iterator[Server]:
    with Server(sample_slide) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.done.set()
        running.shutdown()


def test_a_slide_on_a_web_server(server: Server, sample_slide: Path) -> None:
    base = f"http://127.0.0.1:{server.server_port}"
    with open_slide(sample_slide) as local, open_slide(f"{base}/slide.svs") as remote:
        assert (remote.backend, remote.fingerprint) == ("tiffslide", local.fingerprint)
        np.testing.assert_array_equal(
            remote.read_at_mpp(300, 300, 200, 200, 0.8), local.read_at_mpp(300, 300, 200, 200, 0.8)
        )
    with pytest.raises(SlideError, match="does not exist"):
        open_slide(f"{base}/none.svs")


def forget_what_was_read(slide: Slide) -> None:
    """fsspec reads 5 MB ahead, which is all of this slide."""
    assert isinstance(slide, TiffSlideSlide)
    assert slide._file is not None
    slide._file._file = None


def test_a_server_that_stumbles_is_asked_again(
    server: Server, sample_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0.01, 0.01, 0.01))
    monkeypatch.setenv("WSISEG_READ_TIMEOUT", "8")
    url = f"http://127.0.0.1:{server.server_port}/slide.svs"
    server.faults = ["break", "503"]
    with open_slide(sample_slide) as local, open_slide(url) as slide:
        forget_what_was_read(slide)
        server.faults = ["503", "hang", "break"]
        np.testing.assert_array_equal(slide.read_region(512, 2048, 0, 64, 64), local.read_region(512, 2048, 0, 64, 64))
        assert server.faults == []


def test_a_server_that_is_gone_is_told_after_the_last_try(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0.01, 0.01, 0.01))
    url = f"http://127.0.0.1:{server.server_port}/slide.svs"
    with open_slide(url) as slide:
        forget_what_was_read(slide)
        server.faults = ["break"] * 100
        with pytest.raises(SlideError, match=r"cannot read http.*slide\.svs, tried 4 times") as raised:
            slide.read_region(512, 2048, 0, 64, 64)
    assert not isinstance(raised.value, PixelError)  # no damage of these pixels, which might be left out
    server.faults = ["403"] * 100
    with pytest.raises(SlideError, match="403"):
        open_slide(url)
    assert len(server.faults) > 90  # what is refused for good is not asked for again and again
