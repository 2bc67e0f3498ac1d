"""The routes of `wsiseg data review`. Everything is below the token: see `wsiseg/viewer/guard.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from wsiseg.training.review.session import Review
from wsiseg.viewer.guard import Guard
from wsiseg.viewer.web import as_json, make_page, number

STATIC = Path(__file__).parent / "static"


def make_app(review: Review, *, token: str, port: int) -> Guard:
    """The ASGI app over one reviewer's session, which answers on 127.0.0.1:`port` below /`token`/."""

    def about(answer: Callable[[int, Request], Response]) -> Callable[[Request], Response]:
        """A route that reads something of the question that the address names."""

        def route(request: Request) -> Response:
            index = _index(request, review)
            return _no_question() if index is None else answer(index, request)

        return route

    def image(i: int, _: Request) -> Response:
        return Response(review.image(i), media_type="image/png")

    def labels(i: int, request: Request) -> Response:
        values = review.labels(i, request.query_params.get("name", "")).astype("<u2")
        return Response(values.tobytes(), media_type="application/octet-stream")

    async def decide(request: Request) -> Response:
        index = _index(request, review)
        if index is None:
            return _no_question()
        verdicts, text = _verdicts(await request.body())
        if verdicts is None:
            return PlainTextResponse('Not {"mask": …, "chain": …, "text": …}.', 400)
        return as_json(await run_in_threadpool(review.decide, index, verdicts, text))

    async def correct_mask(request: Request) -> Response:
        index = _index(request, review)
        if index is None:
            return _no_question()
        return as_json(await run_in_threadpool(review.correct_mask, index, await request.body()))

    routes = [
        Route("/review", lambda _: as_json(review.describe())),
        Route("/questions/{index}", about(lambda i, _: as_json(review.question(i)))),
        Route("/questions/{index}", decide, methods=["POST"]),
        Route("/questions/{index}/image", about(image)),
        Route("/questions/{index}/labels", about(labels)),
        Route("/questions/{index}/labels", correct_mask, methods=["POST"]),
        Route("/undo", lambda _: as_json(review.undo()), methods=["POST"]),
        Mount("/review-static", StaticFiles(directory=STATIC)),
    ]
    return make_page(STATIC / "index.html", routes, token=token, port=port)


def _index(request: Request, review: Review) -> int | None:
    index = number(request.path_params["index"])
    return index if index is not None and index < len(review.questions) else None


def _no_question() -> Response:
    return PlainTextResponse("There is no such question.", 404)


def _verdicts(data: bytes) -> tuple[dict[str, str] | None, str]:
    """Verdicts by part and the text of a body; None where it is not one."""
    try:
        body: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None, ""
    if not isinstance(body, dict) or not all(isinstance(value, str) for value in body.values()):
        return None, ""
    text = body.pop("text", "")
    return body, text
