"""A small store, and a small model to start from, for tests of all training stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.model.small import small_model
from wsiseg.model.folder import save_model
from wsiseg.training.data.store import Sample, SourceInfo, write_quadruplets
from wsiseg.training.stain import Fitted, StainStatistics, save_statistics, statistics_path

# As wide as among laboratories; the discs themselves are all of one stain.
STAINS = tuple(
    Fitted("normal", mean, scale)
    for mean, scale in ((60.0, 12.0), (25.0, 9.0), (-12.0, 7.0), (14.0, 4.0), (8.0, 2.0), (6.0, 2.0))
)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of dark discs on pink; the discs are the glands."""
    rng = np.random.default_rng(0)
    samples = []
    y, x = np.mgrid[:160, :160]
    for i in range(12):
        gland = np.zeros((160, 160), np.uint16)
        for label in range(1, 4):
            cy, cx, r = *rng.integers(20, 140, 2), rng.integers(12, 22)
            gland[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = label
        image = np.where(gland[..., None] > 0, [90, 60, 140], [225, 170, 200]) + rng.normal(0, 6, (160, 160, 3))
        samples.append(
            Sample(
                np.clip(image, 0, 255).astype(np.uint8),
                {"gland": gland},
                ("gland",),
                ("necrosis", "cartilage"),
                1.0,
                "discs",
                f"p{i}",
                "val" if i > 8 else "train",
                f"discs {i}",
            )
        )
    path = tmp_path_factory.mktemp("data") / "discs.zarr"
    write_quadruplets(path, samples, {"discs": SourceInfo("discs", "CC0", "us", "made", "by picture")})
    save_statistics(StainStatistics(path.name, 9, STAINS), statistics_path(path))
    return path


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(small_model(), folder)
    return folder
