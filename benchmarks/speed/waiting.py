"""The share of wall time in which the model waits for pixels; it should be 5 % at most.

    python -m benchmarks.speed.waiting                # the bundled model on the sample slide
    python -m benchmarks.speed.waiting slide.svs --query "outline the glands"

Of the time from the first batch that is asked for to the end of the last answer. The first batch itself, which
nothing can be read ahead of, is told apart: on a large slide it does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.speed.run import SAMPLE
from wsiseg.inference import Segmenter
from wsiseg.pipeline import segment
from wsiseg.tiles import SlideTiles


@dataclass(frozen=True)
class Waiting:
    """Seconds: until the first batch is there, waiting for all others, and from then to the last answer."""

    first_s: float
    others_s: float
    asking_s: float

    @property
    def share(self) -> float:
        return self.others_s / self.asking_s


def measure(slide: Path, query: str, model: Segmenter, batch_size: int = 16) -> Waiting:
    waits: list[float] = []
    ends: list[float] = []
    batches = SlideTiles.batches

    def timed(self: SlideTiles, size: int, first: int = 0) -> Iterator[object]:
        source = batches(self, size, first)
        try:
            while True:
                begin = time.perf_counter()
                batch = next(source, None)
                ends.append(time.perf_counter())
                if batch is None:
                    return
                waits.append(ends[-1] - begin)
                yield batch
        finally:
            source.close()

    torch.set_num_threads(1)  # several would read ahead of their turn: no wait of theirs is seen here
    with patch.object(SlideTiles, "batches", timed):
        segment(slide, query, model=model, batch_size=batch_size)
    return Waiting(waits[0], sum(waits[1:]), ends[-1] - ends[0])


def main() -> None:
    from wsiseg.model import load_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--query", default="outline the nuclei")
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    found = measure(arguments.slide, arguments.query, load_model(), arguments.batch_size)
    print(f"first batch after {found.first_s:.2f} s; then {found.others_s:.2f} s of {found.asking_s:.1f} s", end="")
    print(f" waiting: {found.share:.1%}")


if __name__ == "__main__":
    main()
