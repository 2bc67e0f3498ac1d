"""What docs/batch.md and docs/cluster.md tell people to type, typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import wsiseg.model
from tests.fleet.slides import NAMES, outlines, small_slides
from tests.fleet.worker_with_fake import load_fake
from wsiseg.cli.main import main
from wsiseg.fleet import work

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the slides and the manifest of the docs, and the fake model."""
    work.load.cache_clear()  # it may hold the model of another test
    monkeypatch.setattr(wsiseg.model, "load_model", load_fake)
    monkeypatch.chdir(tmp_path)
    small_slides(tmp_path / "slides")
    (tmp_path / "slides.csv").write_text(blocks("batch.md", "csv")[0])
    yield tmp_path
    work.load.cache_clear()


@pytest.mark.parametrize("page", ["batch.md", "cluster.md"])
def test_every_command_does_what_the_page_says(place: Path, page: str) -> None:
    lines = "\n".join(blocks(page, "sh") + blocks(page, "bash")).splitlines()
    commands = [line for line in lines if line.startswith("wsiseg ")]
    assert commands
    for line in commands:
        shown = CliRunner().invoke(main, shlex.split(line)[1:])
        if "--scheduler" in line:  # tests/fleet/test_cluster.py has one
            assert "no Dask scheduler answers" in shown.stderr
        else:
            assert shown.exit_code == 0, (line, shown.stderr)
    assert set(outlines(place / "results")) == {f"{name}.geojson" for name in NAMES}
    if page == "batch.md":
        assert outlines(place / "again") == outlines(place / "results")
        assert set(outlines(place / "from-stores")) == {f"{name}.zarr.geojson" for name in NAMES}
        assert set(outlines(place / "from-manifest")) == {"slides/a.tif.geojson", "slides/sub/a.tif.geojson"}


def test_the_python_of_batch_runs(place: Path) -> None:
    exec(compile(blocks("batch.md", "python")[0], "batch.md", "exec"), {})
    assert len(outlines(place / "results")) == 3
