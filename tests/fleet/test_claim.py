"""Claims: one process a slide, and nothing claimed for ever."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from wsiseg.errors import OutputError
from wsiseg.fleet import claim
from wsiseg.fleet.claim import ClaimHeldError, claimed


def left_by(path: Path, host: str, pid: int, seconds_ago: float = 0.0, pids: str | None = None) -> None:
    path.write_text(json.dumps({"host": host, "pids": pids or claim._pids(), "pid": pid, "token": "x"}))
    os.utime(path, (time.time() - seconds_ago,) * 2)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_killed_process_is_dead_before_its_parent_asks(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
    left_by(tmp_path / "a.claim", socket.gethostname(), child.pid)
    with claimed(tmp_path / "a.claim"):
        pass
    child.wait()


def test_a_claim_keeps_others_out_and_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.claim"
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with claimed(path), pytest.raises(ClaimHeldError, match=me), claimed(path):
        pass
    assert not path.exists()
    with pytest.raises(ValueError, match="x"), claimed(path):
        raise ValueError("x")
    assert not path.exists()
    with claimed(path):
        path.write_text("taken over")
    assert path.read_text() == "taken over"  # that of another stays


def test_who_is_stopped_while_he_claims_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", stopped)
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "a.claim"):
        pass
    assert not (tmp_path / "a.claim").exists()


@pytest.mark.parametrize(
    ("host", "pid", "seconds_ago", "stale"),
    [
        (socket.gethostname(), "dead", 0, True),
        (socket.gethostname(), os.getpid(), 0, False),
        (socket.gethostname(), os.getpid(), 10 * claim.STALE_S, True),  # the process id is another's by now
        ("elsewhere", 1, 0, False),
        ("elsewhere", 1, 10 * claim.STALE_S, True),
    ],
    ids=["dead", "alive", "another's by now", "elsewhere", "silent elsewhere"],
)
def test_a_stale_claim_is_taken_over(tmp_path: Path, host: str, pid: object, seconds_ago: float, stale: bool) -> None:
    path = tmp_path / "a.claim"
    left_by(path, host, dead_pid() if pid == "dead" else int(str(pid)), seconds_ago)
    if stale:
        with claimed(path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert not path.exists()
    else:
        with pytest.raises(ClaimHeldError), claimed(path):
            pass
        assert path.exists()


def test_a_process_in_another_container_is_not_dead_for_being_out_of_sight(tmp_path: Path) -> None:
    """Which has the name of its host, as with Docker's --network host or Apptainer's --containall."""
    path = tmp_path / "a.claim"
    left_by(path, socket.gethostname(), dead_pid(), pids="pid:[1]")
    with pytest.raises(ClaimHeldError), claimed(path):
        pass
    left_by(path, socket.gethostname(), dead_pid(), 10 * claim.STALE_S, pids="pid:[1]")
    with claimed(path):
        pass


def test_an_unwritten_claim_goes_stale_too(tmp_path: Path) -> None:
    path = tmp_path / "a.claim"
    path.touch()
    with pytest.raises(ClaimHeldError), claimed(path):
        pass
    os.utime(path, (0, 0))
    with claimed(path):
        pass


def test_a_held_claim_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "HEARTBEAT_S", 0.01)
    path = tmp_path / "a.claim"
    with claimed(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_of_many_who_find_a_stale_claim_one_takes_it(tmp_path: Path) -> None:
    path, pid = tmp_path / "a.claim", dead_pid()
    for _ in range(20):
        left_by(path, socket.gethostname(), pid)
        together, all_tried, owners = threading.Barrier(6), threading.Barrier(6), []

        def take(
            together: threading.Barrier = together, all_tried: threading.Barrier = all_tried, owners: list[int] = owners
        ) -> None:
            together.wait()
            try:
                with claimed(path):
                    owners.append(threading.get_ident())
                    all_tried.wait()
            except ClaimHeldError:
                all_tried.wait()

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(owners) == 1


def test_no_room_for_a_claim_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), claimed(tmp_path / "file" / "a.claim"):
        pass
