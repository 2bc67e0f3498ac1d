"""Small slides, what is asked of them, and the outlines of a run that nothing disturbs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fleet.slides import MODEL, QUERIES, SETTINGS, TellingModel, outlines, small_slides
from wsiseg.fleet import Job, jobs_in_folder, run


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_slides(tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="session")
def jobs(slides: Path) -> list[Job]:
    return jobs_in_folder(slides, QUERIES, recursive=True)


@pytest.fixture(scope="session")
def whole(jobs: list[Job], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outlines of a run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole")
    assert all(record.status == "done" for record in run(jobs, out, SETTINGS, model=MODEL))
    return outlines(out)


@pytest.fixture
def telling(tmp_path: Path) -> TellingModel:
    return TellingModel(tmp_path / "log")
