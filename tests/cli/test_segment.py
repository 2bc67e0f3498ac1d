"""`wsiseg segment`: stdout carries the result alone; what is wrong is one line and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import wsiseg.model
from wsiseg.cli.main import main
from wsiseg.qupath import check_dialect
from wsiseg.testing import FakeModel, disk, stripe, synthetic_slide

RUN_FAKE = [sys.executable, str(Path(__file__).parent / "run_fake.py")]
SHAPES = {"olive": [disk(300, 300, 100), disk(900, 300, 60)], "orange": [stripe(200, 600, 700, 40)]}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    synthetic_slide(path, SHAPES)
    return path


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: FakeModel(tile_size=128, overlap=32))


def segment(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["segment", *map(str, args)])


@pytest.mark.usefixtures("fake_model")
def test_stdout_is_the_geojson_and_nothing_else(slide: Path, tmp_path: Path) -> None:
    shown = segment(
        slide, "--query", "the olive", "--query", "the orange", "--reasoning", tmp_path / "r.jsonl"
    )
    assert shown.exit_code == 0, shown.stderr
    out = tmp_path / "out.geojson"
    out.write_bytes(shown.stdout_bytes)
    assert check_dialect(out) == []
    collection = json.loads(shown.stdout)
    assert [f["properties"]["name"] for f in collection["features"]] == ["the olive"] * 2 + ["the orange"]
    assert collection["wsiseg"]["queries"] == ["the olive", "the orange"]
    tiles = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {tile["query"] for tile in tiles} == {"the olive", "the orange"}
    assert all(tile["reasoning"] for tile in tiles)


@pytest.mark.usefixtures("fake_model")
def test_out_writes_the_same_bytes_and_leaves_stdout_empty(slide: Path, tmp_path: Path) -> None:
    names = (".out.geojson.0000000a.tmp", ".r.jsonl.0000000a.tmp", ".out.geojson.0000000b.tmp")
    *killed, at_work = (tmp_path / name for name in names)  # of others, while they wrote
    for file, touched in ((killed[0], 0.0), (killed[1], 0.0), (at_work, time.time() + 60)):
        file.touch()
        os.utime(file, (touched, touched))
    to_stdout = segment(slide, "--query", "olive")
    to_file = segment(slide, "--query", "olive", "--out", tmp_path / "out.geojson", "--reasoning", tmp_path / "r.jsonl")
    assert to_file.stdout == ""
    assert (tmp_path / "out.geojson").read_bytes() == to_stdout.stdout_bytes
    assert sorted(os.listdir(tmp_path)) == [at_work.name, "out.geojson", "r.jsonl"]


@pytest.mark.usefixtures("fake_model")
def test_a_region_finds_what_touches_it(slide: Path) -> None:
    shown = segment(slide, "--query", "olive", "--region", "180,180,240,240")
    (found,) = json.loads(shown.stdout)["features"]
    assert found["geometry"]["coordinates"][0][0] == pytest.approx((300, 300), abs=110)


@pytest.mark.usefixtures("fake_model")
def test_nothing_found_is_a_result_with_a_sentence_on_stderr(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "t.tif", {})
    shown = segment(tmp_path / "t.tif", "--query", "olive")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["features"] == []
    assert 'wsiseg: warning: "olive": not found in' in shown.stderr


def half_svs(folder: Path, sample: Path) -> Path:
    data = sample.read_bytes()
    (folder / "half.svs").write_bytes(data[: len(data) // 2])
    return folder / "half.svs"


def text_svs(folder: Path, sample: Path) -> Path:
    (folder / "text.svs").write_text("this is no slide\n" * 100)
    return folder / "text.svs"


def empty_svs(folder: Path, sample: Path) -> Path:
    (folder / "empty.svs").touch()
    return folder / "empty.svs"


def no_scale(folder: Path, sample: Path) -> Path:
    synthetic_slide(folder / "no-scale.tif", {}, mpp=None)
    return folder / "no-scale.tif"


@pytest.mark.parametrize(
    ("make", "args", "said"),
    [
        pytest.param(lambda f, s: f / "no.svs", [], "no.svs does not exist", id="no-file"),
        pytest.param(half_svs, [], "half.svs", id="truncated"),
        pytest.param(text_svs, [], "text.svs is no slide", id="text"),
        pytest.param(empty_svs, [], "empty.svs is empty", id="empty"),
        pytest.param(no_scale, [], "--slide-mpp", id="no-mpp"),
        pytest.param(lambda f, s: s, ["--model", "nix"], "no model at 'nix'", id="unknown-model"),
        pytest.param(lambda f, s: s, ["--query", " "], "the query is empty", id="empty-query"),
        pytest.param(lambda f, s: s, ["--out", "no/o.json"], "cannot write no/o.json", id="unwritable"),
        pytest.param(lambda f, s: s, ["--reasoning", "no/r"], "cannot write no/r", id="unwritable-reasoning"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    make: object,
    args: list[str],
    said: str,
    sample_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make(tmp_path, sample_slide)  # type: ignore[operator]
    before = sorted(os.listdir(tmp_path))
    monkeypatch.chdir(tmp_path)
    shown = segment(source, "--query", "nuclei", *args)
    assert shown.exit_code == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("wsiseg: error: ")
    assert shown.stderr.count("\n") == 1
    assert said in shown.stderr
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.usefixtures("fake_model")
def test_a_result_takes_the_place_of_nothing_that_was_read(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "link.tif").symlink_to(slide)
    before = slide.read_bytes()
    for args in (["--out", slide], ["--out", tmp_path / "link.tif"], ["--out", tmp_path / "o", "--reasoning", slide]):
        shown = segment(slide, "--query", "olive", *args)
        assert shown.exit_code == 1
        assert "this command reads that file; choose another name" in shown.stderr
    same = segment(slide, "--query", "olive", "--out", tmp_path / "o", "--reasoning", tmp_path / "o")
    assert "--reasoning names the same file" in same.stderr
    assert slide.read_bytes() == before
    assert os.listdir(tmp_path) == ["link.tif"]


def test_a_full_disk_is_one_line_and_leaves_nothing(slide: Path, tmp_path: Path) -> None:
    disk_folder = tmp_path / "disk"
    disk_folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "wsiseg-test", str(disk_folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small disk")
    try:
        (disk_folder / "full").write_bytes(b"x" * 8192)
        args = [*RUN_FAKE, "segment", str(slide), "--query", "olive"]
        out = disk_folder / "out.geojson"
        done = subprocess.run([*args, "--out", str(out)], capture_output=True, text=True)
        assert_one_line(done, "No space left on device")
        assert os.listdir(disk_folder) == ["full"]
        with open(out, "wb") as file:
            done = subprocess.run(args, stdout=file, stderr=subprocess.PIPE, text=True)
        assert_one_line(done, "No space left on device")
        assert out.read_bytes() == b""
    finally:
        subprocess.run(["umount", str(disk_folder)], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_stdout_that_takes_nothing_is_one_line(slide: Path) -> None:
    with open("/dev/full", "wb") as full:
        args = [*RUN_FAKE, "segment", str(slide), "--query", "olive"]
        done = subprocess.run(args, stdout=full, stderr=subprocess.PIPE, text=True)
    assert_one_line(done, "cannot write the result to stdout: No space left on device")


def test_a_copy_to_stdout_that_is_stopped_leaves_nothing_there(tmp_path: Path) -> None:
    stopped = (
        "import shutil; from wsiseg.cli.output import write_stdout\n"
        "def copy(source, target): target.write(source.read(20)); target.flush(); raise KeyboardInterrupt\n"
        "shutil.copyfileobj = copy; print('before'); write_stdout(lambda file: file.write(b'x' * 100))"
    )
    with open(tmp_path / "out", "wb") as file:
        done = subprocess.run([sys.executable, "-c", stopped], stdout=file, stderr=subprocess.PIPE, text=True)
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert (tmp_path / "out").read_bytes() == b"before\n"


def test_a_closed_stdout_takes_the_number_of_no_other_file(slide: Path, tmp_path: Path) -> None:
    command = [*RUN_FAKE, "segment", str(slide), "--query", "olive"]
    for args in (command, [*command, "--out", str(tmp_path / "out.geojson")]):
        done = subprocess.run([*args], preexec_fn=lambda: os.close(1), stderr=subprocess.PIPE, text=True)
        assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    assert check_dialect(tmp_path / "out.geojson") == []


def test_no_room_for_the_mask_is_one_line(slide: Path, tmp_path: Path) -> None:
    args = [*RUN_FAKE, "segment", str(slide), "--query", "olive", "--out", str(tmp_path / "o.geojson")]
    limited = "import resource, sys, os; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    limited += "os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", limited, *args], capture_output=True, text=True)
    assert_one_line(done, "cannot keep the mask in")
    assert os.listdir(tmp_path) == []


def assert_one_line(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 1
    errors = [
        line for line in done.stderr.splitlines() if not line.startswith("segment ")
    ]  # the progress bar
    assert len(errors) == 1
    assert errors[0].startswith("wsiseg: error: ")
    assert said in errors[0]
