"""A preload of Dask workers: the fake model in place of the bundled one, which tells process and GPU."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

import wsiseg.model
from wsiseg.inference import TileMask
from wsiseg.testing import FakeModel


class Pathologist(FakeModel):
    """Finds nuclei where the slides of the tests are olive."""

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        if "FAKE_LOG" in os.environ:
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write(f"{os.getsid(0)} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
            time.sleep(0.3)
        return super().segment_tiles(tiles, query.replace("nuclei", "olive").replace("glands", "orange"), mpp)


def load_fake(*_: Any, **__: Any) -> FakeModel:
    return Pathologist(tile_size=128, overlap=32)


def dask_setup(worker: Any) -> None:
    wsiseg.model.load_model = load_fake
