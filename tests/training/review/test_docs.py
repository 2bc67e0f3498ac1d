"""What docs/review.md tells people to type, typed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import wsiseg.viewer
from tests.training.review.conftest import write_store
from wsiseg.cli.main import main
from wsiseg.training.data.store import QuadrupletStore

PAGE = (Path(__file__).parents[3] / "docs" / "review.md").read_text()


def test_every_command_does_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("wsiseg ")]
    assert len(commands) == 5
    seen: list[int] = []

    def decide(review: Any, **_: Any) -> None:  # in place of the server
        seen.append(len(review.questions))
        review.decide(0, {"mask": "rejected"})

    monkeypatch.setattr(wsiseg.viewer, "serve", decide)
    monkeypatch.chdir(tmp_path)
    write_store(Path("mine.zarr"))
    for line in commands:
        shown = CliRunner().invoke(main, shlex.split(line.split(" > ")[0])[1:])
        assert shown.exit_code == 0, (line, shown.stderr)
        if " > " in line:
            assert json.loads(shown.stdout)["tallies"][0]["name"] == "Dr. X"
    assert seen == [4]
    stores = [QuadrupletStore.open(f"{name}.zarr") for name in ("mine", "reviewed", "by-x")]
    assert [len(store.quadruplets) for store in stores] == [12, 11, 11]


def test_its_picture_is_there_and_small() -> None:
    (name,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE)
    assert (Path(__file__).parents[3] / "docs" / name).stat().st_size < 300_000
