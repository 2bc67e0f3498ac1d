"""Warnings of libraries that say nothing to the person at the keyboard."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def quietly(category: type[Warning] = Warning) -> Iterator[None]:
    """Ignore warnings inside the block, one block at a time: two that overlap would leave all of the host's off."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
