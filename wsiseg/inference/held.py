"""Settings of the whole process that a block changes, where blocks of several threads overlap."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Held:
    """A setting that the last of the blocks that overlap puts back, to what it was before the first of them.

    each: every thread has its own: a block that others outlive puts back what it found itself.
    """

    def __init__(self, read: Callable[[], Any], put_back: Callable[[Any], None], *, each: bool = False) -> None:
        self._read, self._put_back, self._each = read, put_back, each
        self._lock, self._blocks, self._before = threading.Lock(), 0, None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            found = self._read()
            if not self._blocks:
                self._before = found
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if self._each or not self._blocks:
                    self._put_back(found if self._blocks else self._before)


# torch keeps them for each thread, and for threads to come what was set last.
threads_held = Held(torch.get_num_threads, torch.set_num_threads, each=True)
