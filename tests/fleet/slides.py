"""A few small slides, and fake models that tell what they did."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsiseg.fleet import Job, Record, Settings
from wsiseg.inference import TileMask
from wsiseg.testing import FakeModel, disk, synthetic_slide

NAMES = ("a.tif", "b.tif", "sub/a.tif")
MODEL = FakeModel(tile_size=128, overlap=32)
QUERIES = ("the olive", "the orange")
SETTINGS = Settings(min_area_um2=1.0)


def small_slides(folder: Path) -> Path:
    """Three slides of known, different outlines; two of them have the same name."""
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shapes = {"olive": [disk(150 + 40 * i, 150, 60)], "orange": [disk(300, 250, 20 + i)]}
        synthetic_slide(folder / name, shapes, l0_width=480, l0_height=360)
    return folder


def outlines(out: Path) -> dict[str, bytes]:
    """Every file that is there for the user, but for those that name times; hidden ones count outside .wsiseg.

    What a kill in the midst of writing left of those that name times does not count either.
    """
    files = [f for f in sorted(out.rglob("*")) if f.is_file() and ".wsiseg" not in f.parts]
    timed = ("run.json", "summary.csv", ".run.json.", ".summary.csv.")
    return {str(f.relative_to(out)): f.read_bytes() for f in files if not f.name.startswith(timed)}


class TellingModel(FakeModel):
    """A fake model that appends a line to `log` for every batch, and takes its time."""

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        super().__init__(tile_size=MODEL.tile_size, overlap=MODEL.overlap)
        self.log, self.seconds = log, seconds

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        with open(self.log, "a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(self.seconds)
        return super().segment_tiles(tiles, query, mpp)

    def pids(self) -> list[int]:
        """One for every batch so far."""
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


class Report:
    """Calls a function when the first slide is finished."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def running(self, job: Job, done: int, total: int) -> None: ...

    def held(self, job: Job, by: str) -> None: ...

    def finished(self, job: Job, record: Record, kept: bool) -> None:
        self.then()
