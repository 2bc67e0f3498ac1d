"""The share of wall time in which a GPU works while `segment` runs: it should be 90 % at least.

    python -m benchmarks.speed.busy                   # on a CUDA device: the bundled model, and the paper's size
    python -m benchmarks.speed.busy --size 20000

The slide is a pyramid of real tissue. Two figures: the driver's (NVML, the share of its own periods in which a kernel
ran) from the first answer to the last, and an exact one from the kernels that the profiler saw over a few batches in
the middle. The paper's size has random weights, whose masks say nothing: none is traced.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.make_pyramid import lay_out, tissue_images, write_pyramid
from benchmarks.speed.model import QUERY, random_model
from benchmarks.speed.run import SAMPLE
from wsiseg.inference.answers import CUDA_BATCH
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model import load_model
from wsiseg.model.config import paper
from wsiseg.pipeline import segment

_EVERY_S = 0.05
_TRACED = (0.5, 4)  # from which share of the tiles on, and how many batches at least


@dataclass(frozen=True)
class Busy:
    """Shares of the wall time, in [0, 1], and tiles a second from the first answer to the last."""

    driver: float
    kernels: float
    tiles_per_s: float
    whole_s: float  # opening, finding tissue and tracing included


def measure(slide: Path, model: PathChatSegmenter, batch_size: int = CUDA_BATCH, threshold: float = 0.5) -> Busy:
    """`segment` of the slide with the loaded model, once for the driver's figure and once for the profiler's."""
    told: list[float] = []
    answers: list[tuple[float, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY_S):
            if answers:
                told.append(torch.cuda.utilization(model.device) / 100)

    def run(progress: Any) -> float:
        began = time.perf_counter()
        segment(slide, QUERY, model=model, batch_size=batch_size, threshold=threshold, progress=progress)
        return time.perf_counter() - began

    run(None)  # recordings are made, kernels chosen
    watcher = threading.Thread(target=watch)
    watcher.start()

    def note(done: int, total: int) -> None:
        answers.append((time.perf_counter(), done))
        if done == total:
            over.set()

    try:
        whole_s = run(note)
    finally:
        over.set()
        watcher.join()
    (first, before), (last, done) = answers[0], answers[-1]
    trace = _Trace(batch_size)
    run(trace.note)
    return Busy(sum(told) / len(told), trace.share(), (done - before) / (last - first), whole_s)


class _Trace:
    """Profiles a few batches in the middle of a run."""

    def __init__(self, batch_size: int) -> None:
        self.size = batch_size
        self.began_at: int | None = None
        self.profile: Any = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.running = False

    def note(self, done: int, total: int) -> None:
        share, batches = _TRACED
        if self.began_at is None and done >= share * total:
            self.began_at, self.running = done, True
            self.profile.start()
        elif self.running and (done >= (self.began_at or 0) + batches * self.size or done == total):
            self.profile.stop()
            self.running = False

    def share(self) -> float:
        events = self.profile.profiler.kineto_results.events()
        cuda = torch.autograd.DeviceType.CUDA
        there = (e for e in events if e.device_type() == cuda and not e.is_user_annotation())
        return covered((e.start_ns(), e.end_ns()) for e in there)


def covered(spans: Iterable[tuple[int, int]]) -> float:
    """The share, from the first start to the last end, that intervals (start, end) cover.

    >>> covered([(0, 4), (2, 5), (8, 10)])
    0.7
    """
    ordered = sorted(spans)
    at = begin = ordered[0][0]
    busy = 0
    for start, end in ordered:
        busy += max(0, end - max(start, at))
        at = max(at, end)
    return busy / (at - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=8000, help="side of the synthetic slide in pixels")
    parser.add_argument("--images", type=Path, default=SAMPLE, help="tissue to lay out: a folder or a slide")
    parser.add_argument("--batch-size", type=int, default=CUDA_BATCH)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory(prefix="wsiseg-busy-") as folder:
        slide = Path(folder) / "slide.tif"
        write_pyramid(slide, lay_out(tissue_images(arguments.images), arguments.size), mpp=0.5)
        bundled = load_model(device="cuda")
        assert isinstance(bundled, PathChatSegmenter)
        print("bundled model:", measure(slide, bundled, arguments.batch_size))
        config = dataclasses.replace(paper(), max_new_tokens=128)
        random = PathChatSegmenter(random_model(config, "cuda"), name="random", fingerprint="random")
        print("paper's size:", measure(slide, random, arguments.batch_size, threshold=1.0))


if __name__ == "__main__":
    main()
