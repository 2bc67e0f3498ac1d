"""`wsiseg segment FOLDER`: what is said, with which exit code, and what a signal leaves."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import wsiseg.model
from tests.fleet.slides import outlines, small_slides
from tests.signals import heed_interrupts
from wsiseg.cli.main import main
from wsiseg.cli.segment import _tell
from wsiseg.cli.table import SlideTable
from wsiseg.fleet import Job, Record
from wsiseg.testing import FakeModel

RUN_FAKE = [sys.executable, str(Path(__file__).parent / "run_fake.py")]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_slides(tmp_path_factory.mktemp("slides"))


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: FakeModel(tile_size=128, overlap=32))
    for key in ("ID", "MIN", "MAX", "COUNT"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{key}", raising=False)


def segment(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["segment", *map(str, args)])


def test_a_folder_is_done_with_one_line_a_slide_on_stderr(slides: Path, tmp_path: Path) -> None:
    shown = segment(slides, "--recursive", "--query", "the olive", "--out", tmp_path / "out")
    assert (shown.exit_code, shown.stdout) == (0, ""), shown.stderr
    lines = shown.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["1/3 a.tif", "2/3 b.tif", "3/3 sub/a.tif"]
    again = segment(slides, "--recursive", "--query", "the olive", "--out", tmp_path / "out")
    assert (again.exit_code, again.stderr) == (0, "")


def test_a_warning_names_its_slide(slides: Path, tmp_path: Path) -> None:
    shown = segment(slides, "--query", "the olive", "--min-area", "1e9", "--out", tmp_path / "out")
    warnings = [line for line in shown.stderr.splitlines() if line.startswith("wsiseg: warning: ")]
    assert [line.split(": ")[2] for line in warnings] == ["a.tif", "b.tif"], shown.stderr
    assert all('"the olive": seen in' in line for line in warnings)
    alone = segment(slides / "a.tif", "--query", "the olive", "--min-area", "1e9", "--out", tmp_path / "a.geojson")
    assert 'wsiseg: warning: "the olive": seen in' in alone.stderr


def test_broken_slides_are_told_at_the_end_with_exit_code_3(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    shutil.copy(slides / "b.tif", tmp_path / "slides")
    (tmp_path / "slides" / "bad.svs").write_text("no slide")
    (tmp_path / "slides" / "a.svs").touch()
    shown = segment(tmp_path / "slides", "--query", "the olive", "--out", tmp_path / "out")
    assert shown.exit_code == 3
    assert re.search(r"^wsiseg: 1/3 a\.svs: failed: .*a\.svs is empty", shown.stderr, re.MULTILINE)  # hours before
    told = [line for line in shown.stderr.splitlines() if line.startswith("wsiseg: error: ")]
    assert "a.svs is empty" in told[0]
    assert "bad.svs is no slide" in told[1]
    assert told[2].endswith(f"2 of 3 slides failed, the others are in {tmp_path / 'out'}")
    assert set(outlines(tmp_path / "out")) == {"b.tif.geojson"}
    (tmp_path / "slides" / "b.tif").unlink()
    alone = segment(tmp_path / "slides", "--query", "the olive", "--out", tmp_path / "none")
    assert alone.exit_code == 3
    assert alone.stderr.endswith("2 of 2 slides failed\n")


def test_a_slide_that_another_run_asked_something_else_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _tell([Record("a.tif", "done"), Record("b.tif")], tmp_path) == 3
    assert "b.tif: another run in this folder has asked something else of it" in capsys.readouterr().err


def test_the_table_shows_names_as_they_are() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    table = SlideTable(2, console)
    job = Job("/slides/x", "[he]/x[/he].svs", ("nuclei",))
    table.running(job, 1, 2)
    console.print(table)
    table.finished(job, Record(job.source, "done"), kept=False)
    console.print(table)
    assert console.file.getvalue().count(f"│ {job.name} │") == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "exit_code", "said"),
    [
        (["slides", "--query", "q"], 2, "many slides need --out FOLDER"),
        (["slides", "--query", "q", "--out", ""], 2, "many slides need --out FOLDER"),
        (["slides", "--out", "o"], 2, "Missing option '--query'"),
        (["slides", "--query", "q", "--out", "o", "--reasoning", "r"], 2, "--reasoning is for one slide"),
        (["a.svs", "--query", "q", "--reasoning", "-"], 2, "--reasoning takes the name of a file"),
        (["slides", "--query", "q", "--out", "o", "--region", "0,0,9,9"], 2, "--region is for one slide"),
        (["a.tif", "--query", "q", "--region", "0,0,9"], 2, "is not a region such as 1000,2000,512,512"),
        (["slides", "--query", "q", "--out", "o", "--shard", "3/2"], 2, "'3/2' is not a part such as 1/8"),
        (["x.svs", "--query", "q", "--recursive"], 2, "are for a folder or manifest"),
        (["x.svs", "--from", "run.json", "--out", "o"], 2, "--from repeats a run as it was"),
        (["--from", "run.json", "--threshold", "0.5", "--out", "o"], 2, "--from repeats a run as it was"),
        (["--from", "run.json", "--out", "o"], 1, "cannot read run.json"),
        (["empty", "--query", "q", "--out", "o"], 1, "no slides in empty"),
        (["m.csv", "--query", "q", "--out", "o"], 1, "cannot read m.csv"),
        (["slides", "--query", "q", "--out", "file"], 1, "cannot make the folder"),
        (["slides", "--query", " ", "--out", "o"], 1, "the query is empty"),
    ],
)
def test_what_is_wrong_is_one_line(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], exit_code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slides").symlink_to(slides)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    shown = segment(*args)
    assert (shown.exit_code, shown.stdout, shown.stderr.count("\n")) == (exit_code, "", 1), shown.stderr
    assert said in shown.stderr
    assert not (tmp_path / "o").exists()


def test_a_slurm_array_task_does_its_part(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"ID": 1, "MIN": 0, "MAX": 1, "COUNT": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
    shown = segment(slides, "--recursive", "--query", "the olive", "--out", tmp_path)
    assert shown.exit_code == 0
    assert "part 2 of 2 (this SLURM array task's; --shard 1/1 does all): 1 of 3 slides" in shown.stderr
    assert set(outlines(tmp_path)) == {"b.tif.geojson"}
    segment(slides, "--recursive", "--query", "the olive", "--out", tmp_path, "--shard", "1/2")
    assert len(outlines(tmp_path)) == 3


@pytest.mark.parametrize(
    ("number", "exit_code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_it_cleanly_and_soon(
    slides: Path, tmp_path: Path, number: signal.Signals, exit_code: int, word: str
) -> None:
    out = tmp_path / "out"
    args = ["segment", str(slides), "--recursive", "--query", "the olive", "--out", str(out)]
    environment = os.environ | {"FAKE_SECONDS": "30"}
    process = subprocess.Popen(
        [*RUN_FAKE, *args], stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 120
    while not (out / ".wsiseg" / "a.tif.claim").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begin < 5
    assert process.returncode == exit_code
    lines = [line for line in said.splitlines() if line]
    assert lines == [
        "wsiseg: stopped with 0 of 3 slides done; the same command goes on from there",
        f"wsiseg: {word}",
    ]
    assert outlines(out) == {}
    assert not list(out.rglob("*.claim"))
    assert {slide["status"] for slide in json.loads((out / "run.json").read_text())["slides"]} == {"pending"}
