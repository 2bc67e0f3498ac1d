"""What the README tells people to type."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.typed import parse
from wsiseg.qupath import check_dialect

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"wsiseg (?:[^\n]*)", "\n".join(BLOCKS))
COMMANDS = [line for line in COMMANDS if not line.startswith("wsiseg cli training")]
BUNDLED = ROOT / "wsiseg" / "assets" / "tiny" / "config.json"


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_names_what_exists(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-images").mkdir()
    monkeypatch.chdir(tmp_path)
    parse(line)


def test_the_test_command_is_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for line in BLOCKS[-1].splitlines():
        assert line.removeprefix("pip install ") in ci


@pytest.mark.skipif(not BUNDLED.exists(), reason="no bundled model in wsiseg/assets yet")
def test_the_first_command_finds_nuclei_on_the_sample_slide(tmp_path: Path) -> None:
    line = BLOCKS[0].split("&&")[1].strip()
    assert re.fullmatch(r"wsiseg segment tests/data/.* > out\.geojson", line)
    words = shlex.split(line.split(">")[0])[1:]
    out = tmp_path / "out.geojson"
    with open(out, "wb") as file:
        command = [sys.executable, "-m", "wsiseg.cli.main", *words]
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert check_dialect(out) == []
    assert len(json.loads(out.read_bytes())["features"]) > 100
