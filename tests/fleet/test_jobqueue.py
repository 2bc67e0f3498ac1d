"""The recipe of docs/cluster.md for SLURM, run as it stands; only `sbatch` and `scancel` are ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fleet.slides import outlines, small_slides
from tests.fleet.test_docs import blocks
from tests.fleet.worker_with_fake import load_fake
from wsiseg.fleet import Settings, jobs_in_folder, run

jobqueue = pytest.importorskip("dask_jobqueue")
ROOT = Path(__file__).parents[2]
SLURM = ROOT / "tests" / "fleet" / "slurm"


def test_the_recipe_is_one_that_dask_jobqueue_takes() -> None:
    (recipe,) = blocks("cluster.md", "python")
    call = recipe[recipe.index("SLURMCluster(") : recipe.index("cluster.scale")]
    with eval(call, {"SLURMCluster": jobqueue.SLURMCluster}) as cluster:  # our own page, not foreign input
        script = cluster.job_script()
    for asked in ("#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=4", "--nthreads 1", "--resources GPU=1"):
        assert asked in script


@pytest.mark.slow  # a scheduler and two workers are started: 15 s
@pytest.mark.skipif(sys.platform != "linux", reason="starts jobs with setsid")
def test_the_recipe_segments_a_folder_on_slurm_though_a_job_is_killed(tmp_path: Path) -> None:
    small_slides(tmp_path / "slides")
    jobs = jobs_in_folder(tmp_path / "slides", ["outline the nuclei"], recursive=True)
    run(jobs, tmp_path / "here", Settings(), model=load_fake())

    (recipe,) = blocks("cluster.md", "python")
    assert "cluster.scale(jobs=8)" in recipe
    (tmp_path / "recipe.py").write_text(recipe.replace("jobs=8", "jobs=2"))
    slurm, log = tmp_path / "slurm", tmp_path / "log"
    slurm.mkdir()
    log.touch()
    environment = os.environ | {
        "PATH": f"{SLURM}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "FAKE_SLURM": str(slurm),
        "FAKE_LOG": str(log),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": "['tests.fleet.worker_with_fake']",
    }
    process = subprocess.Popen(
        [sys.executable, "recipe.py"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not log.read_text().endswith("\n"):  # it is at its first batch
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    first = log.read_text().split()[0]
    os.killpg(int(first), signal.SIGKILL)  # as SLURM does when the time is up, and some more
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert outlines(tmp_path / "results") == outlines(tmp_path / "here")

    started = {(slurm / n / "pid").read_text().strip(): int(n) - 1 for n in ("1", "2")}
    assert sorted(os.listdir(slurm)) == ["1", "2"]
    worked = {tuple(line.split()) for line in log.read_text().splitlines()}
    # Each job at its own GPU, as the script asked for one; the second one did what the first one left.
    assert worked == {(pid, str(gpu)) for pid, gpu in started.items()}
    for n in ("1", "2"):
        assert "--resources GPU=1" in (slurm / n / "job.sh").read_text()
        assert (slurm / n / "cancelled").exists()  # none is left behind in the queue
    for pid in started:
        with pytest.raises(ProcessLookupError):
            gone(int(pid), deadline)


def gone(group: int, deadline: float) -> None:
    """Raises ProcessLookupError as soon as there is no such group of processes."""
    while time.monotonic() < deadline:
        os.killpg(group, 0)
        time.sleep(0.05)
