"""What every page of wsiseg shares: its guard, its static files, and how its routes answer."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from wsiseg.errors import WsisegError
from wsiseg.qupath import clean_text
from wsiseg.viewer.guard import Guard

STATIC = Path(__file__).parent / "static"
mimetypes.add_type("text/javascript", ".js")  # Windows' registry may say text/plain, which browsers do not run


def make_page(page: Path, routes: Sequence[BaseRoute], *, token: str, port: int, lifespan: Any = None) -> Guard:
    """An ASGI app that answers on 127.0.0.1:`port` below /`token`/: the HTML file `page`, STATIC, and `routes`.

    A WsisegError in a route becomes a 400 with its sentence.
    """

    def index(_: Request) -> Response:
        return FileResponse(page)

    async def refuse(_: Request, error: Exception) -> Response:
        return PlainTextResponse(" ".join(clean_text(str(error)).split()), 400)

    app = Starlette(
        routes=[Route("/", index), *routes, Mount("/static", StaticFiles(directory=STATIC))],
        exception_handlers={WsisegError: refuse},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # no address but those above
    return Guard(app, token=token, port=port)


def as_json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


def number(text: str) -> int | None:
    """A number from an address; None where it is none, or absurdly long."""
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None
