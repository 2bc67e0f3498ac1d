"""Queries from the page: one at a time in a thread of its own, telling what happens as it happens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wsiseg.errors import ViewerError, WsisegError
from wsiseg.inference import Audible
from wsiseg.mask.regions import l0_origin
from wsiseg.pipeline import clean_queries, segment
from wsiseg.plan import Box
from wsiseg.qupath import clean_text
from wsiseg.result import TileReasoning
from wsiseg.viewer.session import Session

Event = dict[str, Any]
_BATCH = 4  # tiles at once: few, so that the page hears soon, and a cancelled run ends soon


class Cancelled(Exception):
    """The person does not want to know any more."""


class Query:
    """One query on its way. `events` only grows; the last one has the kind done, failed or cancelled.

    `writing` is what the model has written so far about the tiles before it: too much to be kept as events.
    """

    def __init__(self, session: Session, query: str, region: Box | None) -> None:
        """Starts at once. QueryError: `query` is empty."""
        (self.query,) = clean_queries(query)
        self.region = region
        self.events: list[Event] = []
        self.writing: list[str] = []
        self._session = session
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wsiseg-query", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1]["kind"] in ("done", "failed", "cancelled")

    def cancel(self) -> None:
        """Ask it to end at the next tile; what was found by then is dropped."""
        self._cancelled.set()

    def wait(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def _run(self) -> None:
        session = self._session
        first = len(session.annotations)
        try:
            self._tell("loading")
            model = _model(session)
            if isinstance(model, Audible):
                model = model.heard_by(self._unless_cancelled(self._write))
            self._unless_cancelled(lambda: self._tell("started"))()
            result = segment(
                session.slide.source,
                self.query,
                model=model,
                slide_mpp=session.mpp,
                backend=session.slide.backend,
                origin=session.origin,
                region=self.region,
                batch_size=_BATCH,
                progress=self._unless_cancelled(lambda done, total: self._tell("progress", done=done, total=total)),
                hear=self._unless_cancelled(self._hear),
            )
            if self._cancelled.is_set():  # while it traced, nothing was told
                raise Cancelled
            new = session.add(result)
            self._tell("done", first=first, found=len(result.annotations), new=new, notes=result.notes)
        except Cancelled:
            self._tell("cancelled")
        except WsisegError as error:
            self._tell("failed", message=clean_text(str(error)))
        except Exception as error:  # a thread must not die in silence, the page would wait for ever
            self._tell("failed", message=clean_text(f"{type(error).__name__}: {error}"))

    def _write(self, texts: list[str]) -> None:
        self.writing = [clean_text(text) for text in texts]

    def _hear(self, tile: TileReasoning) -> None:
        session = self._session
        l0_dx, l0_dy = l0_origin(session.slide.l0_bounds, session.origin)
        self._tell(
            "tile",
            box=[tile.l0_x - l0_dx, tile.l0_y - l0_dy, tile.l0_width, tile.l0_height],
            segmented=tile.segmented,
            probability=round(tile.seg_probability, 4),
            said=tile.reasoning,
        )

    def _tell(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind, **values})

    def _unless_cancelled(self, tell: Callable[..., None]) -> Callable[..., None]:
        def checked(*values: Any) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            tell(*values)

        return checked


class Queries:
    """All queries of a session, by number; one runs at a time, since they share one model and one machine."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked: list[Query] = []
        self._lock = threading.Lock()

    def ask(self, query: str, region: Box | None) -> int:
        """Start a query and return its number. ViewerError: another one runs. QueryError: it is empty."""
        with self._lock:
            if self.running is not None:
                raise ViewerError("another query is running: wait for it, or cancel it")
            self._asked.append(Query(self._session, query, region))
            return len(self._asked) - 1

    def get(self, number: int) -> Query | None:
        return self._asked[number] if 0 <= number < len(self._asked) else None

    @property
    def running(self) -> int | None:
        """The number of the query that has not ended."""
        return len(self._asked) - 1 if self._asked and not self._asked[-1].ended else None

    def close(self) -> None:
        """End what is running."""
        for query in self._asked[-1:]:
            query.cancel()


def parse_region(value: Any) -> Box:
    """A box [x, y, width, height] from the page. ViewerError if it is none."""
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        raise ViewerError("the region is not [x, y, width, height]")
    x, y, width, height = (float(v) for v in numbers)
    return x, y, width, height


def _model(session: Session) -> Any:
    """The model of the session, loaded when the first query needs it."""
    asking = session.asking
    if asking.model is None or isinstance(asking.model, str):
        from wsiseg.model import load_model

        session.asking = asking = replace(asking, model=load_model(asking.model, device=asking.device))
    return asking.model
