"""One slide, one process, also on a disk that many hosts share: a file that only one of them can create."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsiseg.errors import OutputError

HEARTBEAT_S = 15.0
STALE_S = 180.0  # more than a heartbeat and the minute for which NFS may show an old time of change


class ClaimHeldError(Exception):
    """Another process, alive as far as can be seen, has the claim; `str` says which, `claim` tells it from others."""

    def __init__(self, owner: str, claim: str) -> None:
        super().__init__(owner, claim)  # both, for the way to another process
        self.claim = claim

    def __str__(self) -> str:
        return str(self.args[0])


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the claim `path` while the block runs, and touch it now and then as a sign of life.

    A claim is stale, and taken over, when its process on this host is dead, or when it shows no sign of life
    for STALE_S seconds (another host or container, or a process id that something else has by now).

    Raises:
        ClaimHeldError: another process has it.
        OutputError: it cannot be written.
    """
    token = secrets.token_hex(8)
    content = json.dumps({"host": socket.gethostname(), "pids": _pids(), "pid": os.getpid(), "token": token})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _create(path, content.encode()):
            with one_at_a_time(path.parent):
                if _is_stale(path):
                    path.unlink(missing_ok=True)
                elif path.exists():
                    raise ClaimHeldError(_owner(path), _content(path))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, done), name="wsiseg-claim", daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        with suppress(OSError):  # what cannot be removed goes stale
            if token in path.read_text():
                path.unlink()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process after another through; the system takes the lock back from a killed one."""
    try:
        import fcntl
    except ImportError:  # Windows: two might take over one stale claim, and then write the same bytes twice
        yield
        return
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a file system without locks: as on Windows
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _create(path: Path, content: bytes) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, content)
        os.fsync(handle)
    except BaseException:  # Ctrl-C, too: an empty claim would stand until it is stale
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return True


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_S):
        with suppress(OSError):
            os.utime(path)


def _pids() -> str:
    """Among whose process ids this process has its own: containers on one host may share its name, not these."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _content(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _read(path: Path) -> tuple[str, str, int]:
    """Host, `_pids` and process id; ("", "", 0) where its writer has not come that far, or was killed before."""
    try:
        said = json.loads(path.read_bytes())
        return str(said["host"]), str(said["pids"]), int(said["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", "", 0


def _owner(path: Path) -> str:
    host, _, pid = _read(path)
    return f"process {pid} on {host}" if host else "another process"


def _is_stale(path: Path) -> bool:
    host, pids, pid = _read(path)
    if (host, pids) == (socket.gethostname(), _pids()) and not _is_alive(pid):
        return True
    try:
        return _now(path.parent) - path.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return False  # given back just now, and perhaps taken by somebody by the next line


def _is_alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # there os.kill(pid, 0) would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True  # no such file system here
    return state != "Z"  # killed, but its parent has not asked yet


def _now(folder: Path) -> float:
    """The time as the disk's own clock says, which may not be this host's."""
    probe = folder / f".{secrets.token_hex(8)}.now"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
