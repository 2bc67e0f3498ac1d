"""A file behind a URL, whose reads are tried again: connections break, and servers hang, for a moment."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

from wsiseg.errors import SlideError
from wsiseg.slide.patience import NoAnswerError, Readers, read_timeout_s, waited

PAUSES_S = (0.5, 1.0, 2.0)  # before each further try
_FOR_GOOD = (FileNotFoundError, PermissionError, ImportError, ValueError, NotImplementedError)

Result = TypeVar("Result")


class RemoteFile(io.RawIOBase):
    """A URL that fsspec opens, read-only and seekable.

    A read that fails, or hangs for a quarter of the time that a read may take, is tried again on a new
    connection, after a pause; what a server refuses for good (not found, forbidden) is not.

    Raises:
        FileNotFoundError, PermissionError, ImportError, ValueError: as fsspec.
        SlideError: after the last try.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.name = url
        self._file: Any = None
        self._opened: Any = None
        self._at = 0
        self._size = self._tried(lambda file: int(file.seek(0, os.SEEK_END)))

    def read(self, size: int | None = -1) -> bytes:
        size = self._size - self._at if size is None or size < 0 else size

        def read(file: IO[bytes]) -> bytes:
            file.seek(self._at)
            return file.read(size)

        data = self._tried(read)
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self._file is not None and not self.closed:
            self._file.close()
        super().close()

    def _tried(self, function: Callable[[IO[bytes]], Result]) -> Result:
        for pause in (*PAUSES_S, None):
            try:
                with Readers(1) as reader:
                    return waited(reader.submit(self._do, function), read_timeout_s() / (len(PAUSES_S) + 1))
            except Exception as raised:  # network clients raise errors of their own kinds
                error = _true(raised)
                # A new file on a new connection; the old one may be in use by a thread that hangs.
                self._file = None
                if _is_for_good(error):
                    raise error from None
                if pause is None:
                    raise _given_up(self.name, error) from raised
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _do(self, function: Callable[[IO[bytes]], Result]) -> Result:
        import fsspec

        file = self._file
        if file is None:
            self._opened = fsspec.open(self.name, "rb")  # kept: a zip archive is closed with its file system
            file = self._file = self._opened.open()
        return function(file)


def _true(error: BaseException) -> BaseException:
    """fsspec calls everything "not found" that goes wrong while it opens a URL; the true error is its cause."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        if getattr(error.__cause__, "status", 0) == 404:
            break
        error = error.__cause__
    return error


def _is_for_good(error: BaseException) -> bool:
    status = getattr(error, "status", 0)  # of an HTTP answer: 408 and 429 say "later"
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return refused or isinstance(error, _FOR_GOOD)


def _given_up(url: str, error: BaseException) -> SlideError:
    said = str(error) if isinstance(error, NoAnswerError) else f"{type(error).__name__}: {error}"
    return SlideError(f"cannot read {url}, tried {len(PAUSES_S) + 1} times: {said}")
