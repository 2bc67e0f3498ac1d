"""Reads that may never end: a disk that hangs, a server that says nothing.

A system call that hangs cannot be called back. So whatever reads pixels does it in a thread of its own, and who
waits for it gives it up after a while: with an error, and with a thread that is left behind and holds up neither
the next slide nor the end of the program.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, ParamSpec, TypeVar

from wsiseg.errors import SlideError, WsisegError

TIMEOUT_VARIABLE = "WSISEG_READ_TIMEOUT"
TIMEOUT_S = 120.0
GRACE_S = 1.0  # for a read that is under way when nobody wants it any more

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class NoAnswerError(TimeoutError):
    """A read has not come back in time; who knows which slide and where makes a `SlideError` of it."""


class Readers:
    """A few threads that do what they are given in order, as `ThreadPoolExecutor`; but they can be given up."""

    def __init__(self, workers: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name="wsiseg-read", daemon=True) for _ in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()
        self._tasks.put((future, lambda: function(*args, **kwargs)))
        return future

    def close(self) -> None:
        """Begin nothing more, and wait a moment for what is under way; after that it is left to itself."""
        try:
            while task := self._tasks.get_nowait():
                task[0].cancel()
        except queue.Empty:
            pass
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while task := self._tasks.get():
            future, function = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # handed over: who waits for the future raises it
                future.set_exception(error)
            del task, future, function  # an idle thread must hold no pixels


def read_timeout_s() -> float:
    """How long a read may take: of the machine, not of a run, hence no option. WsisegError if it is no number."""
    said = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(said) if said else TIMEOUT_S
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise WsisegError(f"{TIMEOUT_VARIABLE}={said}: it must be a number of seconds, such as 120")
    return seconds


def waited(future: Future[Result], seconds: float) -> Result:
    """The result of `future`. Raises NoAnswerError when there is none after so many seconds."""
    step = min(1.0, seconds)
    # Counted in steps: the time in which this process itself was stopped (by a scheduler) does not count.
    for _ in range(math.ceil(seconds / step)):
        if future.done() or wait([future], step).done:
            return future.result()
    raise NoAnswerError(f"no answer for {seconds:g} s")


def patiently(source: str, function: Callable[[], Result]) -> Result:
    """What `function`, which reads `source`, returns.

    Raises:
        SlideError: it has not come back after the time that a read may take.
    """
    seconds = read_timeout_s()
    with Readers(1) as reader:
        try:
            return waited(reader.submit(function), seconds)
        except NoAnswerError as error:
            raise no_answer(source, "") from error


def no_answer(source: str, where: str) -> SlideError:
    """The error for a read of `source` that is given up; `where`, such as " at level-0 pixel (0, 0)"."""
    return SlideError(
        f"{source} does not answer: a read{where} has hung for {read_timeout_s():g} s; is its disk or server well? "
        f"({TIMEOUT_VARIABLE} sets the seconds)"
    )
