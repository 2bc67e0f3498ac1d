"""One model at work on several batches of tiles at once: on several devices, or on the threads of a CPU.

Answers come in the tiles' order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from wsiseg.inference import Copied
from wsiseg.inference.held import threads_held
from wsiseg.inference.shots import Shot

if TYPE_CHECKING:
    from wsiseg.inference import Segmenter
    from wsiseg.inference.engine import PathChatSegmenter

T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C")

# Batches that wait for a device while it works: it should not wait while its last answers are blended and traced.
_WAITING = 1
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU (or "max") in each period of so many


class SeveralDevices:
    """Copies of one model, each on its device. As one `Segmenter` it is the first of them."""

    def __init__(self, copies: Sequence[PathChatSegmenter]) -> None:
        first = copies[0]
        self.copies = tuple(copies)
        self.name, self.fingerprint = first.name, first.fingerprint
        self.tile_size, self.overlap = first.tile_size, first.overlap
        self.mpp_for, self.asks_for_cells = first.mpp_for, first.asks_for_cells
        self.caution_for, self.hint_for = first.caution_for, first.hint_for
        self.segment_tiles = first.segment_tiles

    def with_shots(self, shots: Sequence[Shot]) -> SeveralDevices:
        """See `InContext`."""
        return SeveralDevices([copy.with_shots(shots) for copy in self.copies])


def copies_of(model: Segmenter) -> Sequence[Segmenter]:
    """What may be asked at the same time."""
    return model.copies if isinstance(model, Copied) else [model]


def cpu_threads() -> int:
    """How many threads may compute at once: torch's, which are as many as the machine's cores also in a container that
    is allowed a few of them (`docker run --cpus`, limits of Kubernetes). There they would wait for each other."""
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):
        return torch.get_num_threads()
    return min(torch.get_num_threads(), max(1, math.ceil(quota / period)))


def in_turn(
    ask: Callable[[C, T], R], copies: Sequence[C], items: Iterable[T], *, ahead: bool = False
) -> Generator[R, None, None]:
    """`ask(copy, item)` of each item, in order; copy k is asked items k, k + n, …, one at a time, in a thread.

    The copies share the CPU's threads: each computes on as many. One copy is asked in the caller's thread, which reads
    no item ahead, unless `ahead`. What `ask` raises is raised when its item's turn has come. `items` is read in the
    caller's thread, at most `len(copies)` × 2 ahead.
    """
    with ExitStack() as stack:
        share = max(1, cpu_threads() // len(copies))
        stack.enter_context(threads_held())  # threads to come would have what these have
        if len(copies) == 1 and not ahead:
            torch.set_num_threads(share)
            for item in items:
                yield ask(copies[0], item)
            return
        threads = [
            ThreadPoolExecutor(1, f"device-{k}", initializer=torch.set_num_threads, initargs=(share,))
            for k in range(len(copies))
        ]
        for thread in threads:
            stack.callback(thread.shutdown, cancel_futures=True)
        running: deque[Future[R]] = deque()
        for i, item in enumerate(items):
            k = i % len(copies)
            running.append(threads[k].submit(ask, copies[k], item))
            if len(running) == (1 + _WAITING) * len(copies):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
