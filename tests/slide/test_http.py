"""A slide on a web server gives the same pixels as the file."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from wsiseg.errors import SlideError
from wsiseg.slide import open_slide

pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'wsiseg[url]'")


class Server(ThreadingHTTPServer):
    """Serves one file, whole or in ranges, as /slide.svs."""

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = path.read_bytes()


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
