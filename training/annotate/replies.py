"""Replies, kept as they come, so that none is paid for twice: lines of JSON, one appended and synced for each.

A line that was cut off by a kill is forgotten. The file lies beside the store (open.zarr: open.replies.jsonl) and is
worth as much as the replies cost; without it `wsiseg data annotate` asks everything anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from wsiseg.errors import OutputError
from wsiseg.files import write_all


@dataclass(frozen=True)
class Reply:
    """What a model said, the tokens that this counted, and when (UTC, ISO 8601)."""

    text: str
    tokens_in: int
    tokens_out: int
    made: str


def replies_path(store: str | os.PathLike[str]) -> Path:
    return Path(store).with_suffix(".replies.jsonl")


def read_replies(path: Path) -> dict[str, Reply]:
    """The replies in a file, by the key of their request; none where there is no file. What is damaged is left out."""
    replies = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            row = json.loads(line)
            key = str(row.pop("key"))
            replies[key] = Reply(**row)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # to be asked again
    return replies


class Replies:
    """The replies in a file, by the key of their request. A context manager; for one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path, self._kept = path, read_replies(path)
        self._file: IO[bytes] | None = None

    def get(self, key: str) -> Reply | None:
        return self._kept.get(key)

    def add(self, key: str, reply: Reply) -> None:
        """Keep it, on the disk when this returns. Raises OutputError: the disk is full, or the like."""
        line = json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
        try:
            self._file = self._file or self._open()
            write_all(self._file, line)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._kept[key] = reply

    def _open(self) -> IO[bytes]:
        """At the end of the last whole line."""
        file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        file.truncate(file.seek((file.read() or b"").rfind(b"\n") + 1))
        return file

    def __enter__(self) -> Replies:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
