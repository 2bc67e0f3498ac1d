"""Several processes at one run: nothing twice, nothing left out."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fleet.slides import MODEL, SETTINGS, Report, TellingModel, outlines
from wsiseg.fleet import Job, run, runner
from wsiseg.fleet.claim import claimed


def test_a_slide_that_another_process_is_at_is_waited_for_and_told(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.01)
    told: list[str] = []
    with ExitStack() as another:
        another.enter_context(claimed(tmp_path / ".wsiseg" / "a.tif.claim"))

        class Waiting(Report):
            def held(self, job: Job, by: str) -> None:
                told.append(f"{job.name}: {by}")
                another.close()

        waiting = Waiting(lambda: told.append(json.loads((tmp_path / "run.json").read_text())["slides"][0]["status"]))
        assert [r.status for r in run(jobs[:2], tmp_path, SETTINGS, model=MODEL, report=waiting)] == ["done", "done"]
    # The other slide first; what is going on stands in run.json from the beginning.
    assert told == ["pending", f"a.tif: process {os.getpid()} on {socket.gethostname()}", "pending"]


def test_two_runs_at_once_share_the_work_and_do_nothing_twice(
    jobs: list[Job], whole: dict[str, bytes], telling: TellingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.01)
    run(jobs, tmp_path / "alone", SETTINGS, model=telling)
    alone, done = len(telling.pids()), []
    telling.seconds = 0.05

    def work() -> None:
        done.append(run(jobs, tmp_path / "out", SETTINGS, model=telling))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(telling.pids()) == 2 * alone
    assert outlines(tmp_path / "out") == whole
    assert len(done) == 3
    assert all(record.status == "done" for records in done for record in records)


def test_shards_add_up_to_one_run(jobs: list[Job], whole: dict[str, bytes], tmp_path: Path) -> None:
    run(jobs, tmp_path, SETTINGS, model=MODEL, shard=(2, 2))
    told = json.loads((tmp_path / "run.json").read_text())
    assert [slide["status"] for slide in told["slides"]] == ["pending", "done", "pending"]
    run(jobs, tmp_path, SETTINGS, model=MODEL, shard=(1, 2))
    told = json.loads((tmp_path / "run.json").read_text())
    assert [slide["status"] for slide in told["slides"]] == ["done"] * 3
    assert outlines(tmp_path) == whole
