"""`wsiseg models fetch` against a hub on this machine: pinned, resumed, offline, gated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "model.safetensors": bytes(range(256)) * 90_000,  # more than two of the chunks of 10 MiB that are written at once
    "pytorch_model.bin": b"a pickle that no one needs",
}


class FakeHub(BaseHTTPRequestHandler):
    """As much of huggingface.co as a download asks for; the first try at the weights breaks off at two thirds."""

    protocol_version = "HTTP/1.1"
    broken = False
    ranges: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        if "MahmoodLab" in path:
            return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if "no-such-revision" in path:
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if "/resolve/" in path:
            return self.file(path.rpartition("/")[2])
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(d), "oid": str(len(d))} for n, d in FILES.items()]
            return self.reply(200, json.dumps(tree).encode())
        info = {"id": "toy/toy", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
        return self.reply(200, json.dumps(info).encode())

    def file(self, name: str) -> None:
        data = FILES[name]
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "")
        if name == "model.safetensors" and self.command == "GET":
            type(self).ranges.append(wanted)
            if not type(self).broken:
                type(self).broken = True
                self.send_response(200)
                for key, value in (headers | {"Content-Length": str(len(data))}).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data[: len(data) * 2 // 3])
                self.wfile.flush()
                self.close_connection = True
                return None
        if wanted.startswith("bytes=") and not wanted.startswith("bytes=0-0"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.reply(206, data[start:], headers)
        return self.reply(200, data, headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        general = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        for key, value in (general | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    FakeHub.broken, FakeHub.ranges = False, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetch(name: str, hub: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return subprocess.run(
        [sys.executable, "-m", "wsiseg.cli.main", "models", "fetch", name],
        env=clean | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | environment,
        capture_output=True,
        text=True,
    )


def test_a_broken_connection_is_taken_up_again_and_what_arrived_is_found_offline(hub: str, tmp_path: Path) -> None:
    done = fetch("h-optimus-0", hub, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.name == COMMIT  # what to pin: h-optimus-0@COMMIT
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not (folder / "pytorch_model.bin").exists()
    assert FakeHub.ranges == ["", f"bytes={10 << 20}-"]  # the second request asks for the rest alone

    for name in ("h-optimus-0", f"h-optimus-0@{COMMIT}"):
        offline = fetch(name, "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
        assert (offline.returncode, offline.stdout) == (0, done.stdout), offline.stderr


@pytest.mark.parametrize(
    ("name", "environment", "said"),
    [
        ("uni2-h", {}, "accept its terms on https://huggingface.co/MahmoodLab/UNI2-h"),
        ("h-optimus-0@no-such-revision", {}, "has no revision 'no-such-revision'"),
        ("h-optimus-0", {"HF_HUB_OFFLINE": "1"}, "not whole; run `wsiseg models fetch h-optimus-0`"),
        ("h-optimus-0", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot fetch bioptimus/H-optimus-0"),
        ("no-such-name", {}, "`wsiseg models list` shows the names"),
    ],
)
def test_what_goes_wrong_is_one_line_with_what_to_do(
    hub: str, tmp_path: Path, name: str, environment: dict[str, str], said: str
) -> None:
    done = fetch(name, hub, tmp_path, **environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("wsiseg: error: ")
    assert done.stderr.count("\n") == 1
