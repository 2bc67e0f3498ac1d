"""A training run that is killed, stopped or out of disk goes on from its last checkpoint, to the same weights."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tests.signals import heed_interrupts
from wsiseg.cli.main import main
from wsiseg.errors import DataError, OutputError
from wsiseg.training import loop, sft
from wsiseg.training import run as training_run
from wsiseg.training.run import START, Average, full_disk_told, has_state, load_state, save_state, sole_run

ROOT = Path(__file__).parents[2]


def killed_and_resumed(store: Path, start: Path, folder: Path, moments: list[float]) -> list[str]:
    command = [sys.executable, "-m", "tests.training.train_child", str(store), str(start), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [f"{moment:g}" for moment in moments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if line.endswith(("same", "differs"))]


def test_killed_within_a_checkpoint_it_goes_on(store: Path, start: Path, tmp_path: Path) -> None:
    """Between the two renames of the second; before the first is whole, a slow test below kills it."""
    assert killed_and_resumed(store, start, tmp_path, [7]) == ["7 killed same"]


@pytest.mark.slow
def test_killed_at_other_renames_it_goes_on(store: Path, start: Path, tmp_path: Path) -> None:
    lines = killed_and_resumed(store, start, tmp_path, [2, 3, 6, 9])
    assert lines == [f"{moment} killed same" for moment in (2, 3, 6, 9)]


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_goes_on(store: Path, start: Path, tmp_path: Path) -> None:
    moments = [round(random.Random(seed).uniform(0.01, 0.99), 4) for seed in range(20)]
    lines = killed_and_resumed(store, start, tmp_path, moments)
    assert len(lines) == 20
    assert all(line.endswith("same") for line in lines), lines


def recipe(store: Path, start: Path) -> sft.SftRecipe:
    return sft.SftRecipe(
        data=str(store), model=str(start), steps=2, batch_images=2, queries_per_image=2, precision="fp32",
        workers=0, validation_images=0, checkpoint_every=1,
    )  # fmt: skip


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(
    store: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, left = training_run.write_tensors, [1]

    def full(*args: object, **kwargs: object) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        save(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(training_run, "write_tensors", full)
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device.*--resume"):
        sft.train(recipe(store, start), tmp_path / "run")
    assert has_state(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.new"))
    monkeypatch.undo()
    sft.train(recipe(store, start), tmp_path / "run", resume=True)
    sft.train(recipe(store, start), tmp_path / "whole")
    weights = "model/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_what_is_no_number_reaches_no_checkpoint(
    store: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(step: int, *rest: object) -> dict[str, float]:
        return {"loss": math.nan if step else 1.0, "norm": 1.0}

    monkeypatch.setattr(loop, "_step", nothing)
    with pytest.raises(DataError, match=r"step 2: the loss is nan.*--resume and a learning_rate below 0\.001"):
        sft.train(recipe(store, start), tmp_path / "run")
    assert json.loads((tmp_path / "run/state/state.json").read_text())["step"] == 1


def begun(learns: tuple[bool, ...]) -> tuple[nn.Module, torch.optim.Optimizer, Average]:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for part, learning in zip(module, learns, strict=True):
        part.requires_grad_(learning)
    return module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad]), Average(module, 0.9)


@pytest.mark.parametrize(("trained", "later"), [((True, True), (True, False)), ((True, False), (True, True))])
def test_a_state_is_of_the_weights_that_trained(
    trained: tuple[bool, ...], later: tuple[bool, ...], tmp_path: Path
) -> None:
    """What trains only from now on has no average, and the moments of what trains would be those of others."""
    save_state(tmp_path / "state", 1, *begun(trained))
    assert load_state(tmp_path / "state", *begun(trained)) == 1
    with pytest.raises(DataError, match="saved by another recipe"):
        load_state(tmp_path / "state", *begun(later))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_a_resumed_run_holds_no_file_of_its_state(tmp_path: Path) -> None:
    """The next checkpoint takes the file away, which NFS and Windows refuse while it is mapped."""
    module, optimizer, average = begun((True, True))
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "state", 1, module, optimizer, average)
    resumed = begun((True, True))
    load_state(tmp_path / "state", *resumed)
    assert str(tmp_path / "state") not in Path("/proc/self/maps").read_text()
    moments = [optimizer.state[p] for p in module.parameters()]
    again = [resumed[1].state[p] for p in resumed[0].parameters()]
    torch.testing.assert_close(again, moments, rtol=0, atol=0)


def test_a_state_that_cannot_take_its_place_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before it has left that place already."""
    save_state(tmp_path / "state", 1, *begun((True, True)))
    replace = os.replace

    def refused(source: Path, target: Path) -> None:
        if target == tmp_path / "state":
            raise OSError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OutputError, match="Permission denied"), full_disk_told(tmp_path):
        save_state(tmp_path / "state", 2, *begun((True, True)))
    monkeypatch.undo()
    assert has_state(tmp_path)
    assert load_state(tmp_path / "state", *begun((True, True))) == 2


def test_what_was_killed_at_its_last_checkpoint_leaves_nothing_to_who_resumes(tmp_path: Path) -> None:
    save_state(tmp_path / "state", 2, *begun((True, True)))
    for name in ("state.old", "state.new"):
        (tmp_path / name).mkdir()
    for name in ("recipe.yaml", START):
        (tmp_path / f".{name}.0123abcd.tmp").touch()
    with sole_run(tmp_path, main=True):
        assert load_state(tmp_path / "state", *begun((True, True))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_two_runs_in_one_folder_are_told_at_once(store: Path, start: Path, tmp_path: Path) -> None:
    with sole_run(tmp_path / "run", main=True), pytest.raises(DataError, match=r"trains in .* already"):
        sft.train(recipe(store, start), tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"), sole_run(tmp_path / "file", main=True):
        pass
    with sole_run(tmp_path / "run", main=False):  # another process of the same run
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_soon_and_says_how_to_go_on(
    store: Path, start: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "wsiseg.cli.main", "train", "--stage", "sft", "--data", str(store), "--model"]
    command += [str(start), "--out", str(out), "--steps", "5000", "batch_images=2", "validation_images=0", "workers=0"]
    with open(tmp_path / "stderr", "wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, cwd=ROOT, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    # Seconds of the processor, as a step takes longer by the clock the more else the machine has to do.
    before = sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    process.send_signal(number)
    _, status, used = os.wait4(process.pid, 0)
    assert used.ru_utime + used.ru_stime - before / os.sysconf("SC_CLK_TCK") < 5
    assert os.waitstatus_to_exitcode(status) == 128 + number
    said = (tmp_path / "stderr").read_text()
    assert "with --resume goes on from the last checkpoint" in said
    assert not (out / ".claim").exists()
    arguments = ["train", "--stage", "sft", "--out", str(out), "--resume", "--steps", "1"]
    if number == signal.SIGTERM:
        shutil.copy(out / "recipe.yaml", tmp_path / "mine.yaml")
        arguments += ["--config", str(tmp_path / "mine.yaml")]
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    assert "no checkpoint yet" in again.output
