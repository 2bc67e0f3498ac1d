"""Who may talk to the server: only a page that was opened with the token, on this very address.

Anything on the machine, and through DNS rebinding any web page in the world, can reach a local port. So a
request needs the token (the first part of its path), a Host that is ours, no foreign Origin, and a body of
bearable size. One thing a foreign page may do, if it knows the token: lead the browser to our page (`serve.py`).
The answers tell browsers to run only our own scripts.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 << 20

# The one rule of style that OpenSeadragon 6.1.1 writes into the page.
_OPENSEADRAGON_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    f"style-src 'self' {_OPENSEADRAGON_STYLE}; img-src 'self' data: blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware around the app; `/TOKEN/x` reaches it as `/x`."""

    def __init__(self, app: ASGIApp, *, token: str, port: int, max_body: int = MAX_BODY) -> None:
        self.app, self.token, self.max_body = app, token, max_body
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # a websocket: there are none here
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_guarded)
            return
        scope = {**scope, "root_path": f"/{self.token}"}
        body = bytearray()
        if scope["method"] not in ("GET", "HEAD"):
            # Read here, so that nothing behind this line ever holds more than `max_body`.
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return
                body += message.get("body", b"")
                if len(body) > self.max_body:
                    await self._too_large()(scope, receive, send_guarded)
                    return
                if not message.get("more_body"):
                    break
        given = False

        async def receive_body() -> Message:
            nonlocal given
            if given:
                return await receive()  # waits for the disconnect
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, receive_body, send_guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if headers.getlist("host") not in [[host] for host in self.hosts]:
            return PlainTextResponse("This server answers only to its own address.", 403)
        if any(origin not in self.origins for origin in headers.getlist("origin")):
            return PlainTextResponse("Other pages may not ask this server.", 403)
        opens_page = (
            scope["method"] == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and scope["path"].split("/")[2:] == [""]  # nothing after the token, which is looked at below
        )
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not opens_page:
            return PlainTextResponse("Other pages may not ask this server.", 403)
        token = scope["path"].split("/", 2)[1] if scope["path"].count("/") >= 2 else ""
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self.token.encode()):
            return PlainTextResponse("Open the whole address that wsiseg printed: it ends in a token.", 403)
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 15 or int(length) > self.max_body:
            return self._too_large()
        return None

    def _too_large(self) -> PlainTextResponse:
        return PlainTextResponse(f"More than {self.max_body >> 20} MB in one request.", 413)
