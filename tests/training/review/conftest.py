"""A small store with questions, and people who decide on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsiseg.training.data.build import questions
from wsiseg.training.data.store import QuadrupletStore, Sample, SourceInfo, write_quadruplets
from wsiseg.training.review.session import Review

INFO = {"set": SourceInfo("set", "CC0", "nobody", "stated 1", "by picture", notes="Made up.")}


def discs(i: int) -> Sample:
    """A picture of two dark discs on pink, labelled 1 and 2; they are the glands, and there is no cat."""
    rng = np.random.default_rng(i)
    y, x = np.mgrid[:72, :96]
    gland = np.zeros((72, 96), np.uint16)
    gland[(y - 36) ** 2 + (x - 26) ** 2 < 16**2] = 1
    gland[(y - 36) ** 2 + (x - 70) ** 2 < 14**2] = 2
    image = np.where(gland[..., None] > 0, [90, 60, 140], [225, 170, 200]) + rng.normal(0, 4, (72, 96, 3))
    split = "val" if i > 3 else "train"
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Sample(pixels, {"gland": gland}, ("gland",), ("cat",), 1.0, "set", f"p{i}", split, f"set/{i}")


def write_store(path: Path, count: int = 6) -> Path:
    samples = [discs(i) for i in range(count)]
    write_quadruplets(path, samples, INFO, {sample.name: questions(sample) for sample in samples})
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_store(tmp_path_factory.mktemp("review") / "discs.zarr")
    assert [q.present for q in QuadrupletStore.open(path).quadruplets] == [True, False] * 6
    return path


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    """Six pictures, each asked for glands (questions 0, 2, …) and for what is not there (1, 3, …)."""
    return Path(shutil.copytree(written, tmp_path / "discs.zarr"))


@pytest.fixture
def person(store: Path) -> Callable[[str], Review]:
    """Sit somebody before all questions of the store."""
    return lambda name: Review(QuadrupletStore.open(store), name)


def bytes_of(labels: np.ndarray) -> bytes:
    return labels.astype("<u2").tobytes()


def grown(i: int = 0) -> np.ndarray:
    """The discs, and a third."""
    labels = discs(i).layers["gland"].copy()
    labels[2:12, 44:54] = 3
    return labels
