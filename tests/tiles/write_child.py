"""Write a store of the fake slide and kill this process (SIGKILL) at its n-th rename, or never.

python -m tests.tiles.write_child STORE N before|after
"""

from __future__ import annotations

import os
import signal
import sys

from tests.tiles.fakes import FakeSlide, all_tissue
from wsiseg.tiles import Grid, GridSpec, plan_grid, write_store

SLIDE = FakeSlide(dimensions=(1000, 900), seconds_per_tile=0.0005)


def grid() -> Grid:
    """270 tiles: four shards and a part of a fifth."""
    return plan_grid(SLIDE, GridSpec(0.5, tile_size=64, overlap=8), tissue=all_tissue(SLIDE))


def main() -> None:
    path, step, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    renames = 0
    replace = os.replace

    def counted(source: str, target: str) -> None:
        nonlocal renames
        renames += 1
        if moment == "before" and renames == step:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if moment == "after" and renames == step:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted
    write_store(SLIDE, grid(), path, progress=lambda done, total: print(done, total, flush=True))


if __name__ == "__main__":
    main()
