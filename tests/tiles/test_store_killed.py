"""A writer killed with SIGKILL at any step, started again, ends in the same store, byte for byte."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiles.write_child import SLIDE, grid
from wsiseg.errors import OutputError, StoreError
from wsiseg.tiles import TileStore, write_store

ROOT = Path(__file__).parents[2]


def content(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted(store.rglob("*")) if f.is_file()}


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tiles.write_child", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("whole") / "slide.zarr"
    write_store(SLIDE, grid(), store)
    return content(store)


def test_killed_around_every_rename_it_goes_on(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """Metadata, coordinates, seal, five shards, `complete`: what is visible changes only at a rename."""
    said, _ = child("--all", tmp_path).communicate(timeout=300)
    runs = [tuple(map(int, line.split())) for line in said.splitlines()]
    assert len(runs) >= 10
    assert [status for _, status in runs] == [-signal.SIGKILL] * (len(runs) - 1) + [0]
    for step, _ in runs:
        store = tmp_path / f"{step}.zarr"
        if content(store) != uninterrupted:  # the last two had finished
            with pytest.raises(StoreError):
                TileStore.open(store)
            assert step < len(runs)
        write_store(SLIDE, grid(), store)
        assert content(store) == uninterrupted


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 7))])
def test_killed_at_three_random_moments_it_goes_on(tmp_path: Path, uninterrupted: dict[str, bytes], seed: int) -> None:
    rng = random.Random(seed)
    store = tmp_path / "slide.zarr"
    for lines in (rng.randrange(1, 90), rng.randrange(20, 90), rng.randrange(20, 90)):
        process = child(store)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    write_store(SLIDE, grid(), store)
    assert content(store) == uninterrupted


def test_a_second_writer_is_turned_away(tmp_path: Path) -> None:
    store = tmp_path / "slide.zarr"
    process = child(store)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(StoreError, match="being written by another process"):
        write_store(SLIDE, grid(), store)
    process.communicate(timeout=60)
    assert process.returncode == 0
    TileStore.open(store)


def test_a_disk_without_locks_and_a_leftover_that_stays_keep_nobody_from_writing(
    tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    store = tmp_path / "slide.zarr"
    write_store(SLIDE, grid(), store)
    (store / ".zarr.json.0123abcd.tmp").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    write_store(SLIDE, grid(), store)
    assert content(store).items() > uninterrupted.items()


def test_a_full_disk_is_one_clear_error_and_loses_nothing(
    tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "slide.zarr"
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            write_store(SLIDE, grid(), store)
    assert not list(store.rglob("*.tmp"))
    write_store(SLIDE, grid(), store)
    assert content(store) == uninterrupted
