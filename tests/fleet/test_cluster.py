"""A real Dask cluster: a scheduler and workers, each a process of its own, one killed in the middle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.fleet.slides import TellingModel, outlines, small_slides
from wsiseg.errors import FleetError
from wsiseg.fleet import Job, Record, Settings, jobs_in_folder, run, runner
from wsiseg.fleet.claim import ClaimHeldError
from wsiseg.fleet.work import segment_slide
from wsiseg.testing import FakeModel

pytest.importorskip("distributed")
ROOT = Path(__file__).parents[2]
SETTINGS = Settings(min_area_um2=1.0, batch_size=4)


def start(module: str, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.{module}", *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)


@pytest.fixture
def scheduler() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"tcp://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def workers(scheduler: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One that offers a GPU, or says so, and one more of the kind; one without, which must stay idle."""
    offers = [["--resources", "GPU=1"], ["--resources", "GPU=1"], []]
    args = [scheduler, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--death-timeout", "120"]
    processes = [start("dask_worker", *args, *offer) for offer in offers]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_killed_worker_costs_nothing_but_time(
    scheduler: str, workers: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    from distributed import Client

    jobs = jobs_in_folder(small_slides(tmp_path / "slides"), ["the olive", "the orange"], recursive=True)
    here = TellingModel(tmp_path / "here")
    run(jobs, tmp_path / "whole", SETTINGS, model=here)

    with_gpu, idle = workers[:2], workers[2]
    with Client(scheduler, timeout="60s") as client:
        client.wait_for_workers(3, timeout=240)
    model = TellingModel(tmp_path / "there", seconds=0.5)
    victims: list[int] = []

    def kill_the_first_at_work() -> None:
        """In its second batch, when both queries on the first are answered."""
        while not model.pids() or model.pids().count(model.pids()[0]) < 3:
            time.sleep(0.05)
        victims.append(model.pids()[0])
        os.kill(victims[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first_at_work)
    killer.start()
    records = run(jobs, tmp_path / "out", SETTINGS, model=model, scheduler=scheduler)
    killer.join()
    assert victims[0] in {process.pid for process in with_gpu}
    assert [record.status for record in records] == ["done"] * 3
    assert outlines(tmp_path / "out") == outlines(tmp_path / "whole")
    # Of the killed one's slide only the batch that it was at is asked for again, at most both queries on it.
    assert 0 < len(model.pids()) - len(here.pids()) <= 2
    assert idle.pid not in model.pids()
    assert not list((tmp_path / "out").rglob("*.claim"))


@pytest.mark.parametrize(("restarts", "status"), [(True, "failed"), (False, "done")])
def test_a_slide_over_which_workers_of_many_hosts_die_is_given_up(
    restarts: bool, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask tries each on another host, where the dead one's claim counts for minutes; a live one's is waited for."""
    from distributed import LocalCluster

    tried = tmp_path / "tried"

    def held(job: Job, out: Path, settings: Settings, model: object) -> Record:
        with open(tried, "a") as file:
            file.write("x")
        trials = tried.stat().st_size
        if trials < 10:
            raise ClaimHeldError("process 7 on another", f"claim {trials if restarts else 1}")
        return segment_slide(job, out, settings, FakeModel())

    monkeypatch.setattr(runner, "segment_slide_on_worker", held)
    monkeypatch.setattr(runner, "POLL_S", 0.0)
    jobs = jobs_in_folder(small_slides(tmp_path / "slides"), ["the olive"])[:1]
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        (record,) = run(jobs, tmp_path / "out", SETTINGS, model=FakeModel(), scheduler=cluster.scheduler_address)
    assert record.status == status
    assert ("several workers died" in record.reason) == restarts


def test_no_scheduler_is_one_sentence(tmp_path: Path) -> None:
    jobs = jobs_in_folder(small_slides(tmp_path / "slides"), ["the olive"])
    with pytest.raises(FleetError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        run(jobs, tmp_path / "out", SETTINGS, scheduler="tcp://127.0.0.1:1")


def test_a_scheduler_without_a_worker_is_told(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE_S", 0.1)
    monkeypatch.setattr(runner.log, "warning", Mock(side_effect=KeyboardInterrupt))
    jobs = jobs_in_folder(small_slides(tmp_path / "slides"), ["the olive"])
    with pytest.raises(KeyboardInterrupt):
        run(jobs, tmp_path / "out", SETTINGS, scheduler=scheduler)
    assert "has no worker yet" in runner.log.warning.call_args[0][0]


def test_a_lost_scheduler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client, Future, LocalCluster

    def slow(*job: object) -> None:
        time.sleep(2)

    monkeypatch.setattr(runner, "segment_slide_on_worker", slow)
    jobs = jobs_in_folder(small_slides(tmp_path / "slides"), ["the olive"])[:1]
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:

        def cancel() -> None:  # as all futures are when it is gone
            while not (tasks := list(cluster.scheduler.tasks)):
                time.sleep(0.05)
            with Client(cluster) as client:
                client.cancel([Future(key, client) for key in tasks], force=True)

        canceller = threading.Thread(target=cancel)
        canceller.start()
        with pytest.raises(FleetError, match="lost the Dask scheduler at inproc:"):
            run(jobs, tmp_path / "out", SETTINGS, model=FakeModel(), scheduler=cluster.scheduler_address)
        canceller.join()
