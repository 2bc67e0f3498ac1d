"""How much of one model's work its device has memory for at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition


@dataclass
class Attempt:
    """One batch at work; alone: no other was in memory beside it."""

    alone: bool


class Room:
    """Batches at the same time, and tiles in each: fewer of both when memory was full, and never more again."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._running: list[Attempt] = []
        self._batches, self._tiles = math.inf, math.inf

    def fitting(self, tiles: int) -> int:
        """So many tiles at once, or as many as there is room for."""
        return int(min(tiles, self._tiles))

    @contextmanager
    def taken(self) -> Iterator[Attempt]:
        """Room for one batch, when there is some."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._running) < self._batches)
            attempt = Attempt(alone=not self._running)
            for other in self._running:
                other.alone = False
            self._running.append(attempt)
        try:
            yield attempt
        finally:
            with self._changed:
                self._running = [other for other in self._running if other is not attempt]
                self._changed.notify_all()

    def less(self, failed: Attempt, tiles: int) -> str:
        """Memory was full at an attempt with so many tiles at once: what is done about it, in words, where it is new.

        What others had in memory may have been too much: then batches come one at a time, and else in halves.
        """
        with self._changed:
            if failed.alone:
                self._tiles = min(self._tiles, max(1, tiles // 2))
                return f"out of memory with {tiles} tiles at once; going on with {self._tiles}"
            if self._batches == 1:
                return ""
            self._batches = 1
            return "out of memory with several batches at once; going on with one"
