"""Results on stdout: whole, or not at all where that can be had."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import IO

import click

from wsiseg.errors import OutputError

FAILED_SLIDES = 3  # exit code: the others are done


def tell_failed(failed: Sequence[tuple[str, str]], slides: int, out: str | os.PathLike[str]) -> int:
    """Say on stderr which of `slides` slides (source, reason) failed; returns the exit code."""
    for source, reason in failed:
        slide = "" if source in reason else f"{source}: "
        click.echo("wsiseg: error: " + " ".join(f"{slide}{reason}".split()), err=True)
    if failed:
        others = f", the others are in {os.fspath(out)}" if len(failed) < slides else ""
        click.echo(f"wsiseg: error: {len(failed)} of {slides} slides failed{others}", err=True)
    return FAILED_SLIDES if failed else 0


def write_stdout(write: Callable[[IO[bytes]], None]) -> None:
    """Call `write` on a temporary file and copy that to stdout: an error while writing leaves nothing there.

    Where stdout is a file and the disk fills up, or it is stopped, the file is cut back to what it was.

    Raises:
        OutputError: the disk of stdout, or the temporary folder, is full.
    """
    try:
        with tempfile.TemporaryFile(prefix="wsiseg-") as whole:
            write(whole)
            whole.seek(0)
            _copy_to_stdout(whole)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the result to stdout: {error.strerror or error}") from error


def _copy_to_stdout(whole: IO[bytes]) -> None:
    stdout = sys.stdout.buffer
    stdout.flush()
    status = os.fstat(1)
    try:
        shutil.copyfileobj(whole, stdout)
        stdout.flush()
    except BrokenPipeError:
        raise
    except BaseException:  # Ctrl-C and SIGTERM, too
        if stat.S_ISREG(status.st_mode):
            os.ftruncate(1, status.st_size)
        discard_stdout()
        raise


def discard_stdout() -> None:
    """Send what is still buffered for stdout nowhere: Python would write it at exit, and fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
