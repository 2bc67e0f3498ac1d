"""A server that speaks /v1/chat/completions over real HTTP, on a thread; what it answers is scripted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """One HTTP response: `text` as a chat completion, or `raw` bytes as they are; after `delay_s`."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    delay_s: float = 0.0

    def body(self) -> bytes:
        if self.text is None:
            return self.raw
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
        return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


@dataclass
class Seen:
    """A request as it came."""

    body: dict[str, Any]
    authorization: str | None
    at: float

    @property
    def has_picture(self) -> bool:
        return isinstance(self.body["messages"][1]["content"], list)


Script = Callable[[Seen, int], Answer]  # of the request and how many came before it


@dataclass
class ChatServer:
    url: str
    seen: list[Seen]


@contextmanager
def chat_server(script: Script) -> Iterator[ChatServer]:
    lock, seen = threading.Lock(), list[Seen]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                request = Seen(body, self.headers.get("Authorization"), time.monotonic())
                answer = script(request, len(seen)) if self.path == "/v1/chat/completions" else Answer(status=404)
                seen.append(request)
            time.sleep(answer.delay_s)
            data = answer.body()
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client had enough

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield ChatServer(f"http://127.0.0.1:{server.server_port}/v1", seen)
    finally:
        server.shutdown()
        server.server_close()
