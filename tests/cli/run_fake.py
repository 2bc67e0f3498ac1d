"""`wsiseg` with the fake model in place of the bundled one, for tests that need a process of their own.

FAKE_SECONDS in the environment: how long it takes for a batch. Who listens hears what it says word by word.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import wsiseg.model
from wsiseg.cli.main import main
from wsiseg.inference import TileMask
from wsiseg.testing import FakeModel


class SlowModel(FakeModel):
    def __init__(self, tell: Callable[[list[str]], None] | None = None) -> None:
        super().__init__(tile_size=128, overlap=32)
        self.tell = tell

    def heard_by(self, tell: Callable[[list[str]], None]) -> SlowModel:
        return SlowModel(tell)

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        masks = super().segment_tiles(tiles, query, mpp)
        said = [mask.reasoning.split() for mask in masks]
        longest = max(map(len, said))
        for count in range(1, longest + 1):
            time.sleep(float(os.environ.get("FAKE_SECONDS", 0)) / longest)
            if self.tell:
                self.tell([" ".join(words[:count]) for words in said])
        if self.tell:
            self.tell([])
        return masks


def load_fake(*_: Any, **__: Any) -> FakeModel:
    return SlowModel()


wsiseg.model.load_model = load_fake
main()
