"""Work ahead of the consumer, never by more than a fixed number of items, so that memory stays flat."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from wsiseg.slide.patience import GRACE_S, Readers, read_timeout_s, waited

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items in the same order, produced by a thread that runs at most `depth` + 1 items ahead.

    An error in the producer is raised to the consumer at its place in the order. A consumer that stops early
    (closes the generator) stops the producer and waits a moment for it, so that its files may be closed; one that
    hangs in a read is given up.
    """
    ready: queue.Queue[tuple[str, Item | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def produce() -> None:
        source = iter(items)
        try:
            for item in source:
                ready.put(("item", item))
                if stopped.is_set():
                    return
            ready.put(("end", None))
        except BaseException as error:  # handed over, not swallowed: the consumer raises it
            ready.put(("error", error))
        finally:
            if isinstance(source, Generator):
                source.close()

    thread = threading.Thread(target=produce, name="wsiseg-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        deadline = time.monotonic() + 3 * GRACE_S  # it may itself wait for readers that it gives up
        while thread.is_alive() and time.monotonic() < deadline:
            with suppress(queue.Empty):  # frees a producer that waits at a full queue
                ready.get(timeout=0.02)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result, None, None]:
    """`map` in order over a few threads, with at most `ahead` results not yet taken.

    Raises:
        NoAnswerError: an item takes longer than a read may.
    """
    waiting: deque[Future[Result]] = deque()
    patience_s = read_timeout_s()
    with Readers(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waited(waiting.popleft(), patience_s)
        while waiting:
            yield waited(waiting.popleft(), patience_s)
