"""What docs/viewer.md tells people to type, typed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

import wsiseg.model
from wsiseg.cli.main import main
from wsiseg.inference import TileMask
from wsiseg.testing import FakeModel

PAGE = (Path(__file__).parents[2] / "docs" / "viewer.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("wsiseg ")
]


class NucleiAreOlive(FakeModel):
    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        return super().segment_tiles(tiles, query.replace("nuclei", "olive"), mpp)


def test_every_command_does_what_the_page_says(
    slide_path: Path, geojson: Path, tmp_path: Path, running_view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: NucleiAreOlive(tile_size=128, overlap=32))
    monkeypatch.chdir(tmp_path)
    shutil.copy(slide_path, "slide.svs")
    shutil.copy(geojson, "out.geojson")
    assert len(COMMANDS) == 5
    for line in COMMANDS:
        words = shlex.split(line.split(" > ")[0])[1:]
        if words[0] == "view":
            address = running_view(*words[1:])
            assert httpx.get(address + "slide").json()["objects"] == (3 if "out.geojson" in words else 0)
            continue
        shown = CliRunner().invoke(main, words)
        assert shown.exit_code == 0, (line, shown.stderr)
        if " > " in line:
            Path(line.split(" > ")[1]).write_bytes(shown.stdout_bytes)
            assert len(shown.stdout.splitlines()) > 2
    assert "px of olive" in Path("report.html").read_text()


def test_its_pictures_are_there_and_small() -> None:
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / name).stat().st_size < 300_000
