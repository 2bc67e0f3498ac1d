"""`wsiseg` with the fake model in place of the bundled one, for tests that need a process of their own.

FAKE_SECONDS in the environment: how long it takes for a batch.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

import wsiseg.model
from wsiseg.cli.main import main
from wsiseg.inference import TileMask
from wsiseg.testing import FakeModel


class SlowModel(FakeModel):
    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
        return super().segment_tiles(tiles, query, mpp)


def load_fake(*_: Any, **__: Any) -> FakeModel:
    return SlowModel(tile_size=128, overlap=32)


wsiseg.model.load_model = load_fake
main()
