"""How a CPU's threads are shared among tiles: all of them in each operation, as torch does, or a batch for each.

    python -m benchmarks.speed.threads             # nothing else at work
    python -m benchmarks.speed.threads --busy 2    # beside two processes that never rest

Wall seconds a tile, the bundled model on tiles of the sample slide, ways in turn, the least of three. A wait of torch's
threads for each other is one that spins: beside other work it costs the more.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.speed.model import BATCH, QUERY, ours, some_tiles
from benchmarks.speed.run import SAMPLE
from wsiseg.inference.devices import copies_of, in_turn
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model import load_model

Way = Callable[[PathChatSegmenter, np.ndarray, float], object]


def in_one_thread(model: PathChatSegmenter, tiles: np.ndarray, mpp: float) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours(model, tiles, mpp)
    torch.set_num_threads(threads)


def shared_batches(model: PathChatSegmenter, tiles: np.ndarray, mpp: float) -> None:
    batches = (tiles[i : i + BATCH] for i in range(0, len(tiles), BATCH))
    for _ in in_turn(lambda copy, batch: copy.segment_tiles(batch, QUERY, mpp), copies_of(model), batches):
        pass


WAYS: dict[str, Way] = {
    "one thread": in_one_thread,
    "all threads in each operation": ours,
    "a batch for each thread": shared_batches,
}


def measure(tiles: np.ndarray, model: PathChatSegmenter, repeat: int) -> dict[str, float]:
    """Wall seconds a tile of every way."""
    seconds = dict.fromkeys(WAYS, math.inf)
    mpp = model.mpp_for(QUERY)
    for answer in WAYS.values():
        answer(model, tiles[:2], mpp)  # what is done once, at the first use
    for _ in range(repeat):
        for way, answer in WAYS.items():
            began = time.perf_counter()
            answer(model, tiles, mpp)
            seconds[way] = min(seconds[way], (time.perf_counter() - began) / len(tiles))
    return seconds


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """While it lasts, so many processes compute without rest."""
    others = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    yield
    for other in others:
        other.terminate()


def _spin() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    model = load_model(device="cpu")
    assert isinstance(model, PathChatSegmenter)
    tiles = some_tiles(SAMPLE, model, arguments.tiles)
    with busy(arguments.busy):
        for way, seconds in measure(tiles, model, arguments.repeat).items():
            print(f"{way:32} {seconds:.3f} s a tile")


if __name__ == "__main__":
    main()
