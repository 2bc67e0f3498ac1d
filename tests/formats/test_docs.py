"""What docs/output.md tells people to type, typed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import wsiseg.model
from tests.fleet.slides import NAMES, small_slides
from tests.fleet.worker_with_fake import load_fake
from wsiseg.cli.main import main
from wsiseg.fleet import work
from wsiseg.formats import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "output.md").read_text()


def test_every_command_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work.load.cache_clear()  # it may hold the model of another test
    monkeypatch.setattr(wsiseg.model, "load_model", load_fake)
    monkeypatch.chdir(tmp_path)
    small_slides(tmp_path / "slides")
    Path("slide.svs").symlink_to("slides/a.tif")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 6
    for line in commands:
        typed, _, target = line.partition(" > ")
        shown = CliRunner().invoke(main, shlex.split(typed)[1:])
        assert shown.exit_code == 0, (line, shown.stderr)
        if target:
            Path(target).write_bytes(shown.stdout_bytes)
        if line.endswith("--out nuclei.geojson"):
            features = json.loads(Path("nuclei.geojson").read_bytes())["features"]
            Path("export.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    for name in ("nuclei.parquet", "nuclei.xml", "nuclei.ome.zarr/zarr.json", "tables/a.tif.parquet"):
        assert Path(name).stat().st_size
    assert Path("export.xml").read_bytes() == Path("nuclei.xml").read_bytes()
    assert not any(Path(f"tables/{name}.geojson").exists() for name in NAMES)
    work.load.cache_clear()


def test_every_format_is_described() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| `(\.[a-z.]+)` \|", PAGE, re.MULTILINE)
    assert rows == [(name, kind.suffix) for name, kind in FORMATS.items()]
