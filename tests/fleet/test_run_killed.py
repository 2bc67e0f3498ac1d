"""A run that is killed, or has no room, goes on as if nothing had been."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fleet.slides import MODEL, QUERIES, SETTINGS, TellingModel, outlines
from wsiseg import spill
from wsiseg.errors import OutputError
from wsiseg.fleet import Job, run
from wsiseg.fleet.work import segment_slide
from wsiseg.inference import TileMask
from wsiseg.testing import FakeModel


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "wsiseg-test", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_with_room_it_goes_on(
    jobs: list[Job], whole: dict[str, bytes], small_disk: Path
) -> None:
    """At every writer in turn: claim, outlines, record, run.json, summary.csv."""
    ballast = small_disk / ".ballast"
    stopped = 0
    for room in range(0, 13, 2):  # pages of 4 KiB
        with open(ballast, "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(ballast, max(0, ballast.stat().st_size - room * 4096))
        said = ""
        try:
            run(jobs, small_disk / "out", SETTINGS, model=MODEL)
        except OutputError as error:
            said = str(error)
            stopped += 1
        assert not said or "No space left on device" in said
        assert not list(small_disk.rglob("*.tmp"))
        assert not list(small_disk.rglob("*.claim"))
        there = outlines(small_disk / "out") if (small_disk / "out").exists() else {}
        assert there.items() <= whole.items()
        ballast.unlink()
    assert stopped >= 3
    run(jobs, small_disk / "out", SETTINGS, model=MODEL)
    assert outlines(small_disk / "out") == whole


def test_a_full_temporary_folder_costs_no_answer(
    jobs: list[Job], whole: dict[str, bytes], telling: TellingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as morning:
        morning.setattr(spill, "write_all", full)
        for record in run(jobs, tmp_path / "out", SETTINGS, model=telling):
            assert record.status == "failed"
            assert record.reason.endswith("No space left on device; point TMPDIR at a disk with room")
    asked = len(telling.pids())
    assert {record.status for record in run(jobs, tmp_path / "out", SETTINGS, model=telling)} == {"done"}
    assert len(telling.pids()) == asked
    assert outlines(tmp_path / "out") == whole


def killed(work: Callable[[], None], kill: Callable[[int], None]) -> int:
    """Do `work` in a child that `kill` is told the process id of; its exit status, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    kill(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(step: int) -> None:
    """Kill this process just before its `step`-th change of what other processes see."""
    left = step

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def change(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return change

    for name in ("replace", "unlink", "fsync"):
        setattr(os, name, dying(getattr(os, name)))


def test_a_slide_that_kills_its_process_keeps_no_other_from_being_done(
    jobs: list[Job], whole: dict[str, bytes], tmp_path: Path
) -> None:
    class Deadly(FakeModel):
        def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
            claim = tmp_path / ".wsiseg" / "b.tif.claim"
            if claim.exists() and json.loads(claim.read_text())["pid"] == os.getpid():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().segment_tiles(tiles, query, mpp)

    deadly = Deadly(tile_size=128, overlap=32)
    for done in ({"a.tif.geojson"}, set(whole) - {"b.tif.geojson"}):
        assert killed(lambda: run(jobs, tmp_path, SETTINGS, model=deadly) and None, lambda pid: None) == -signal.SIGKILL
        assert set(outlines(tmp_path)) == done


def test_killed_before_every_step_it_goes_on(jobs: list[Job], whole: dict[str, bytes], tmp_path: Path) -> None:
    def work(step: int) -> None:
        die_at(step)
        run(jobs[:1], tmp_path / str(step), SETTINGS, model=MODEL)

    wanted = {"a.tif.geojson": whole["a.tif.geojson"]}
    step, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        out = tmp_path / str(step)
        status = killed(lambda step=step: work(step), lambda pid: None)  # type: ignore[misc]
        there = {name: data for name, data in outlines(out).items() if not name.endswith(".tmp")}
        assert there.items() <= wanted.items()
        run(jobs[:1], out, SETTINGS, model=MODEL)
        assert {name: d for name, d in outlines(out).items() if not name.endswith(".tmp")} == wanted
        assert not list(out.rglob("*.claim"))
        assert len(json.loads((out / "run.json").read_text())["slides"]) == 1
        step += 1
    assert status == 0
    assert step > 12


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_killed_at_a_random_moment_it_goes_on(
    jobs: list[Job], whole: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    begin = time.monotonic()
    run(jobs, tmp_path / "timed", SETTINGS, model=MODEL)
    moment = random.Random(seed).uniform(0, time.monotonic() - begin)

    def kill(pid: int) -> None:
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)

    killed(lambda: run(jobs, tmp_path / "out", SETTINGS, model=MODEL) and None, kill)
    run(jobs, tmp_path / "out", SETTINGS, model=MODEL)
    assert outlines(tmp_path / "out") == whole


def test_an_old_output_is_never_taken_for_a_new_one(jobs: list[Job], tmp_path: Path) -> None:
    """Killed between outlines and record, with outlines of another question before and asked for again."""
    job, other = jobs[0], replace(jobs[0], queries=QUERIES[:1])
    segment_slide(job, tmp_path, SETTINGS, MODEL)
    first = outlines(tmp_path)

    def work() -> None:
        replaced = os.replace

        def after_the_outlines(source: str, target: str) -> None:
            replaced(source, target)
            if str(target).endswith(".geojson"):
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = after_the_outlines  # type: ignore[assignment]
        segment_slide(other, tmp_path, SETTINGS, MODEL)

    assert killed(work, lambda pid: None) == -signal.SIGKILL
    assert outlines(tmp_path) != first
    segment_slide(replace(job, slide_fingerprint="other"), tmp_path, SETTINGS, MODEL)  # it fails once
    segment_slide(job, tmp_path, SETTINGS, MODEL)
    assert outlines(tmp_path) == first
