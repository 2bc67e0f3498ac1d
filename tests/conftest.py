"""Fixtures that every test may use."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, before torch is imported: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.browser"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data sets beside the repository (../shared/data); tests that need them are skipped without."""
    folder = (ROOT / ".." / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"needs the shared data sets in {folder}")
    return folder


@pytest.fixture(scope="session")
def sample_slide() -> Path:
    """The sample slide of the repository: H&E skin, 2220 x 2967 px, one level, 0.499 µm/px."""
    return ROOT / "tests" / "data" / "CMU-1-Small-Region.svs"


@pytest.fixture(autouse=True)
def _fresh_log() -> None:
    """A command that ran in this process has set up its log; the next test would not hear a warning."""
    logger = logging.getLogger("wsiseg")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
