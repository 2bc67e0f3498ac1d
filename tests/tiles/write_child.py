"""Write a store of the fake slide in a process that may be killed.

python -m tests.tiles.write_child STORE         # write it, one line of progress per tile
python -m tests.tiles.write_child --all FOLDER  # for n = 1, 2, …: FOLDER/n.zarr, killed around its n-th rename

SIGKILL hits a fork of this process, which has imported everything but started no thread. The last store is
the one that needed fewer than n renames.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from pathlib import Path

from tests.tiles.fakes import FakeSlide, all_tissue
from wsiseg.tiles import Grid, GridSpec, plan_grid, write_store

SLIDE = FakeSlide(dimensions=(1000, 900), seconds_per_tile=0.0005)


def grid() -> Grid:
    """270 tiles: four shards and a part of a fifth."""
    return plan_grid(SLIDE, GridSpec(0.5, tile_size=64, overlap=8), tissue=all_tissue(SLIDE))


def write_and_die(store: Path, step: int) -> None:
    """Odd steps die before the rename, even ones after it."""
    renames, replace = count(1), os.replace

    def counted(source: str, target: str) -> None:
        now = next(renames) == step
        if now and step % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted
    write_store(SLIDE, grid(), store)


def main() -> None:
    if sys.argv[1] != "--all":
        write_store(SLIDE, grid(), sys.argv[1], progress=lambda done, total: print(done, total, flush=True))
        return
    import zarr.codecs  # noqa: F401 (once, before the forks)

    for step in range(1, 30):
        child = os.fork()
        if child == 0:
            write_and_die(Path(sys.argv[2]) / f"{step}.zarr", step)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(step, status)
        if status != -signal.SIGKILL:
            return


if __name__ == "__main__":
    main()
