"""The pages of docs/: their commands exist, their links lead somewhere, the tutorial runs, the site builds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import wsiseg.model
from tests.typed import parse
from wsiseg.cli.main import main
from wsiseg.inference import TileMask
from wsiseg.model import model_folder
from wsiseg.model.config import load_config
from wsiseg.testing import FakeModel

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# beside the commands of README.md; those of batch.md and cluster.md also run, in tests/fleet/test_docs.py
COMMANDS = [
    (page.name, line.partition(" #")[0].strip())
    for page in PAGES
    for block in re.findall(r"```(?:sh|bash)?\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("wsiseg ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value[:60])
def test_every_command_is_one(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("PATH", "my-images", "wsiseg-export", "MODEL", "ADAPTER"):
        Path(folder).mkdir()
    parse(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_stores_are_made_for_the_bundled_model() -> None:
    readme = re.findall(r"^(wsiseg tile .*)", (ROOT / "README.md").read_text(), re.MULTILINE)
    config = load_config(model_folder("tiny") / "config.json")
    for line in [line for _, line in COMMANDS if line.startswith("wsiseg tile ")] + readme:
        said = dict(re.findall(r"--(mpp|tile-size) (\S+)", line))
        assert float(said["mpp"]) in (config.mpp, config.cell_mpp), line
        assert int(said["tile-size"]) == config.tile_size, line


class AnyQuery(FakeModel):
    """Takes every query for that of the structure it knows: the bundled model's answers have tests of their own."""

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        return super().segment_tiles(tiles, "olive", mpp)


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: AnyQuery(tile_size=256, overlap=64))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    lines = [line for page, line in COMMANDS if page == "index.md"]
    assert len(lines) == 7
    for line in lines:
        done = CliRunner().invoke(main, shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.stderr)
    names = ("nuclei.geojson", "tiles.jsonl", "nuclei.png", "glomeruli.geojson", "first.geojson", "second.geojson")
    assert all((tmp_path / name).stat().st_size for name in names)


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    python = (tmp_path / "site" / "python.html").read_text()
    assert "to_geojson" in python  # the API is there
    assert 'href="../' not in (tmp_path / "site" / "model.html").read_text()
