"""Whole files or none: write under a temporary name, close, fsync, rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wsiseg.errors import OutputError, WsisegError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` only when the block ends without an error.

    A link is followed; a device or pipe (/dev/null, /dev/stdout) is written as it is.

    Raises:
        OutputError: the folder is missing or unwritable, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    try:
        if target.exists() and not (target.is_file() or target.is_dir()):
            with open(target, "wb") as device:
                yield device
            return
        target = Path(os.path.realpath(target))
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
        with open(temporary, "xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                file.close()
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        if isinstance(error, WsisegError):
            raise
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OutputError now if `atomic_write(path)` could not even begin: before hours of work, not after."""
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder")
    if target.exists() and not target.is_file():
        return
    probe = Path(os.path.realpath(target)).with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def no_room(what: str, folder: Path, error: OSError) -> OutputError:
    """The error for a temporary file that a run keeps `what` in."""
    reason = error.strerror or os.strerror(error.errno or 0)
    return OutputError(f"cannot keep {what} in {folder}: {reason}; point TMPDIR at a disk with room")
