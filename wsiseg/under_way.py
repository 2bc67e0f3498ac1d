"""Which slide of many is being worked on: what the log says of it names it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_slide: ContextVar[str] = ContextVar("slide", default="")


@contextmanager
def under_way(slide: str) -> Iterator[None]:
    """While it lasts, lines that this thread logs are about `slide`."""
    token = _slide.set(slide)
    try:
        yield
    finally:
        _slide.reset(token)


def name_slide(record: logging.LogRecord) -> bool:
    """A filter for handlers: `record.slide` is "NAME: ", or empty where there is but one."""
    record.slide = f"{_slide.get()}: " if _slide.get() else ""
    return True
