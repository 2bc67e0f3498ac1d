"""Whole files and folders or none: write under a temporary name, close, fsync, rename."""

from __future__ import annotations

import errno
import glob
import gzip
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from wsiseg.errors import OutputError, WsisegError

ABANDONED_S = 3600.0  # nobody writes for so long without touching anything
_TOKEN_BYTES = 4


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` only when the block ends without an error.

    A link is followed; a device or pipe (/dev/null, /dev/stdout) is written as it is. A file that was there
    keeps its permissions.

    Raises:
        OutputError: the file is write-protected, the folder is missing or unwritable, or the disk is full; nothing
            is left behind.
    """
    target = Path(path)
    try:
        if target.exists() and not (target.is_file() or target.is_dir()):
            with open(target, "wb") as device:
                yield device
            return
        target = Path(os.path.realpath(target))
        _check_unprotected(target)
        temporary = _beside(target)
        with open(temporary, "xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                file.close()
                with suppress(OSError):  # there was none, or the disk knows no permissions
                    shutil.copymode(target, temporary)
                os.replace(temporary, target)
            except BaseException:
                with suppress(OSError):
                    file.close()  # Windows removes no open file
                with suppress(OSError):  # not in the place of what went wrong
                    temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        if isinstance(error, WsisegError):
            raise
        raise _unwritable(target, error) from error


@contextmanager
def packed_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """`atomic_write`, compressed if the name ends in .gz: programs unpack such a file before they read it."""
    with atomic_write(path) as raw:
        if Path(path).suffix.lower() != ".gz":
            yield raw
            return
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            yield cast("IO[bytes]", packed)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replaces: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder that appears at `path` only when the block ends without an error.

    replaces: whether a folder that is there already may go. What a killed process began to write there goes, too.

    Raises:
        OutputError: something else is there, the parent folder is missing or unwritable, or the disk is full;
            nothing is left behind.
    """
    check_writable(path, replaces=replaces)
    target, begun = Path(os.path.realpath(path)), time.time()
    temporary, old = _beside(target), _beside(target)
    try:
        remove_leftovers(target, older_s=ABANDONED_S)  # now: their room may be needed
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "r+b") as written:  # Windows flushes no file that is open for reading only
                        os.fsync(written.fileno())
            if target.exists():
                check_writable(path, replaces=replaces)  # again: another process may have written it meanwhile
                os.replace(target, old)
            os.replace(temporary, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.replace(old, target)
            _remove_busy(temporary)
            raise
        shutil.rmtree(old, ignore_errors=True)
        remove_leftovers(target, older_s=time.time() - begun)  # not what another process is writing there now
    except OSError as error:
        if isinstance(error, WsisegError):
            raise
        raise _unwritable(target, error) from error


def _remove_busy(folder: Path) -> None:
    """Remove a folder into which threads may still be writing: zarr's go on for a moment when their caller stops."""
    looks = 0
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)  # they make it anew
        looks = 0 if folder.exists() else looks + 1
        if looks == 3:
            return


def make_folder(folder: Path) -> None:
    """With those above it, unless it is there. OutputError if that fails, or it is a URL."""
    if re.match(r"[a-z][a-z0-9+.-]+:[\\/]", str(folder)) and not folder.exists():
        raise OutputError(f"{folder} looks like a URL, and results are written to a folder: give one of this machine")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def remove_leftovers(path: Path, *, older_s: float = 0.0) -> None:
    """What killed processes have left of writing `path`.

    older_s: only what nobody has touched for so many seconds; 0 is for who knows that nobody else is writing.
    """
    for leftover in _leftovers(path):
        with suppress(OSError):  # another process removes it too, or it is somebody else's
            if not older_s or time.time() - _last_touched(leftover) > older_s:
                _remove(leftover)


def _leftovers(path: Path) -> list[Path]:
    token = "[0-9a-f]" * (2 * _TOKEN_BYTES)  # of `_beside`; `*` would be the leftovers of "name.v2", too
    return list(path.parent.glob(f".{glob.escape(path.name[:200])}.{token}.tmp"))


def _last_touched(path: Path) -> float:
    """Seconds since the epoch; of a folder, also what lies in it counts."""
    return max(part.stat().st_mtime for part in (path, *path.rglob("*")))


def _remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str], *, replaces: Callable[[Path], bool] | None = None) -> None:
    """Raise OutputError now if `atomic_write(path)` could not even begin: before hours of work, not after.

    replaces: of `atomic_folder`, if that is to be written.
    """
    target = Path(path)
    try:
        if replaces is not None:
            if target.exists() and not (target.is_dir() and replaces(target)):
                raise OutputError(f"cannot write {target}: something else is there; delete it, or choose another name")
        elif target.is_dir():
            raise OutputError(f"cannot write {target}: it is a folder")
        elif target.exists() and not target.is_file():
            return
        _check_unprotected(target)
        probe = _beside(Path(os.path.realpath(target)))
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        if isinstance(error, WsisegError):
            raise
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> OutputError:
    folder = target.parent
    # In this order: where nobody may look, and of names that are too long, `is_dir` raises.
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR) and not folder.is_dir()
    reason = f"there is no folder {folder}" if missing else error.strerror or error
    left = [] if missing or error.errno != errno.ENOSPC else _leftovers(target)
    advice = f"; delete {left[0]}, unless another command is writing it: one that was killed left it" if left else ""
    return OutputError(f"cannot write {target}: {reason}{advice}")


def _check_unprotected(target: Path) -> None:
    """Renaming would replace a file that somebody has protected from being written."""
    if target.exists() and not os.access(target, os.W_OK):
        raise OutputError(f"cannot write {target}: it is write-protected; choose another name")


def check_apart(path: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None) -> None:
    """Raise OutputError if writing `path` would replace a file that the command reads, also by way of a link."""
    for other in inputs:
        if other is not None and _same_file(path, other):
            raise OutputError(f"cannot write {os.fspath(path)}: this command reads that file; choose another name")


def _same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # one that is not there, a URL
        return False


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write to an unbuffered file. OSError unless all of it was taken: a disk that is nearly full takes a part."""
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room(what: str, folder: Path, error: OSError) -> OutputError:
    """The error for a temporary file that a run keeps `what` in."""
    reason = error.strerror or os.strerror(error.errno or 0)
    return OutputError(f"cannot keep {what} in {folder}: {reason}; point TMPDIR at a disk with room")


def _beside(target: Path) -> Path:
    """A new hidden name in the same folder."""
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(_TOKEN_BYTES)}.tmp")
