"""The routes of `wsiseg view`. Everything is below the token: see `guard.py`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from wsiseg.viewer.edits import parse_edits
from wsiseg.viewer.guard import Guard
from wsiseg.viewer.query import Queries, parse_region
from wsiseg.viewer.session import Session
from wsiseg.viewer.web import STATIC, as_json, make_page, number

_TICK_S = 0.1  # how often a stream of events looks for new ones


def make_app(session: Session, *, token: str, port: int) -> Guard:
    """The ASGI app over one session, which answers on 127.0.0.1:`port` below /`token`/."""
    queries = Queries(session)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        queries.close()

    def slide(_: Request) -> Response:
        return as_json({**session.describe(), "running": queries.running})

    def tile(request: Request) -> Response:
        numbers = re.fullmatch(r"(\d{1,2})/(\d{1,7})_(\d{1,7})\.jpg", request.path_params["place"], re.ASCII)
        data = session.deepzoom.tile(*map(int, numbers.groups())) if numbers else None
        if data is None:
            return PlainTextResponse("There is no such tile.", 404)
        return Response(data, media_type="image/jpeg")

    def polygons(request: Request) -> Response:
        first = number(request.query_params.get("first", "0"))
        if first is None:
            return PlainTextResponse("`first` is not a number.", 400)
        return Response(session.packed(first), media_type="application/octet-stream")

    def details(request: Request) -> Response:
        index = number(request.path_params["index"])
        found = None if index is None else session.details(index)
        return as_json(found) if found else PlainTextResponse("There is no such object.", 404)

    def turn(request: Request) -> dict[str, Any]:
        """Which page asks, and how many saves it knows of."""
        return {"page": request.query_params.get("page", ""), "after": number(request.query_params.get("after", ""))}

    async def save(request: Request) -> Response:
        edits = parse_edits(await request.body(), len(session.annotations))
        return as_json(await run_in_threadpool(session.save, edits, **turn(request)))

    async def keep_draft(request: Request) -> Response:
        edits = parse_edits(await request.body(), len(session.annotations))
        await run_in_threadpool(session.keep_draft, edits, **turn(request))
        return as_json({})

    def take_draft(request: Request) -> Response:
        return as_json(session.take_draft(page=request.query_params.get("page", "")))

    def drop_draft(_: Request) -> Response:
        session.drop_draft()
        return as_json({})

    async def ask(request: Request) -> Response:
        try:
            body = orjson.loads(await request.body())
            query, region = body["query"], body.get("region")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return PlainTextResponse('Not {"query": …, "region": …}.', 400)
        if not isinstance(query, str):
            return PlainTextResponse("The query is not a text.", 400)
        asked = queries.ask(query, None if region is None else parse_region(region))
        return as_json({"number": asked}, 202)

    def cancel(request: Request) -> Response:
        index = number(request.path_params["number"])
        query = None if index is None else queries.get(index)
        if query is None:
            return PlainTextResponse("There is no such query.", 404)
        query.cancel()
        return as_json({})

    async def events(request: Request) -> Response:
        index = number(request.path_params["number"])
        query = None if index is None else queries.get(index)
        if query is None:
            return PlainTextResponse("There is no such query.", 404)
        seen = number(request.headers.get("last-event-id", ""))  # a browser that lost the line goes on from there
        start = 0 if seen is None else seen + 1

        async def stream() -> AsyncIterator[bytes]:
            sent, written = start, query.writing
            while not query.ended or sent < len(query.events):
                for i, event in enumerate(query.events[sent:], sent):
                    yield b"id: %d\ndata: %b\n\n" % (i, orjson.dumps(event))
                    sent = i + 1
                if query.writing is not written and not query.ended:
                    written = query.writing
                    yield b"data: %b\n\n" % orjson.dumps({"kind": "writing", "texts": written})  # no id: of now only
                await asyncio.sleep(_TICK_S)

        return StreamingResponse(stream(), media_type="text/event-stream")

    routes = [
        Route("/slide", slide),
        Route("/tiles/{place:path}", tile),
        Route("/polygons", polygons),
        Route("/objects/{index}", details),
        Route("/save", save, methods=["POST"]),
        Route("/draft", keep_draft, methods=["POST"]),
        Route("/draft/take", take_draft, methods=["POST"]),
        Route("/draft/drop", drop_draft, methods=["POST"]),
        Route("/queries", ask, methods=["POST"]),
        Route("/queries/{number}/events", events),
        Route("/queries/{number}/cancel", cancel, methods=["POST"]),
    ]
    return make_page(STATIC / "index.html", routes, token=token, port=port, lifespan=lifespan)
