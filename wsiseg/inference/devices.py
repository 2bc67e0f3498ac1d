"""One model at work on several batches of tiles at once: on several devices, on streams of one, on a CPU's threads.

Answers come in the tiles' order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from itertools import zip_longest
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
        self._each = tuple(copies)
        self.name, self.fingerprint = first.name, first.fingerprint
        self.tile_size, self.overlap = first.tile_size, first.overlap
        self.mpp_for, self.asks_for_cells = first.mpp_for, first.asks_for_cells
        self.caution_for, self.hint_for = first.caution_for, first.hint_for
        self.segment_tiles = first.segment_tiles

    @property
    def copies(self) -> Sequence[Segmenter]:
        """See `Copied`: the devices take batches in turn, and again as long as one takes more of them at once."""
        of_each = (copy.copies if copy.device.type == "cuda" else [copy] for copy in self._each)
        return [copy for turn in zip_longest(*of_each) for copy in turn if copy is not None]

    def with_shots(self, shots: Sequence[Shot]) -> SeveralDevices:
        """See `InContext`."""
        return SeveralDevices([copy.with_shots(shots) for copy in self._each])


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

    The copies share the CPU's threads: each computes on as many. On a CUDA device each has a stream of its own. One
    copy is asked in the caller's thread, which reads no item ahead, unless `ahead`. What `ask` raises is raised when
    its item's turn has come. `items` is read in the caller's thread, at most `len(copies)` × 2 ahead.
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
            ThreadPoolExecutor(1, f"device-{k}", initializer=_begin, initargs=(share, k, getattr(copy, "device", None)))
            for k, copy in enumerate(copies)
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


def _begin(threads: int, k: int, device: torch.device | None) -> None:
    """In a thread that computes: on so many threads of the CPU, or on a stream of its own."""
    torch.set_num_threads(threads)
    if device is not None and device.type == "cuda":
        stream = _stream(device, k)
        stream.wait_stream(torch.cuda.default_stream(device))  # where the model was loaded
        torch.cuda.set_stream(stream)


@lru_cache  # memory that was freed on a stream is used anew only there
def _stream(device: torch.device, k: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
