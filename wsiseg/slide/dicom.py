"""Just enough of DICOM to tell which files are one slide: a series has a file for each level, and more."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_KIND, _SYNTAX = (0x0002, 0x0002), (0x0002, 0x0010)  # MediaStorageSOPClassUID, TransferSyntaxUID
_SERIES = (0x0020, 0x000E)  # SeriesInstanceUID
_ANNOTATIONS = "1.2.840.10008.5.1.4.1.1.91.1"  # Microscopy Bulk Simple Annotations: what `--format dicom-ann` writes
_EXPLICIT, _IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_ENDS = {(0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)}  # of an item, of a sequence
_UNDEFINED = 0xFFFFFFFF


def first_of_series(paths: Sequence[Path]) -> list[Path]:
    """The same paths, but of the `.dcm` files that are one series in one folder only the first, and no annotations."""
    firsts: dict[tuple[Path, str], Path] = {}
    kept = []
    for path in paths:
        kind, series = _uids(path) if path.suffix.lower() == ".dcm" else ("", None)
        if kind == _ANNOTATIONS:
            continue
        if series is None or firsts.setdefault((path.parent, series), path) is path:
            kept.append(path)
    return kept


def files_of_series(path: Path) -> list[Path]:
    """The files of the series that the DICOM file `path` belongs to, in its folder; `path` alone if it names none."""
    series = series_uid(path)
    if series is None:
        return [path]
    return [file for file in sorted(path.parent.iterdir()) if file.is_file() and series_uid(file) == series]


def series_uid(path: Path) -> str | None:
    """SeriesInstanceUID of a DICOM file (PS3.10, little-endian, not deflated); None where none is found."""
    return _uids(path)[1]


def _uids(path: Path) -> tuple[str, str | None]:
    """SOP class ("" where none is found) and series of a DICOM file."""
    kind = ""
    try:
        with open(path, "rb") as file:
            file.seek(128)
            if file.read(4) != b"DICM":
                return kind, None
            syntax = _EXPLICIT  # of the first group, whatever follows
            while True:
                place = file.tell()
                tag, length = _header(file, explicit=True)
                if tag[0] > 2:
                    file.seek(place)
                    break
                if tag == _SYNTAX:
                    syntax = _text(file, length)
                elif tag == _KIND:
                    kind = _text(file, length)
                else:
                    file.seek(length, os.SEEK_CUR)
            explicit = syntax != _IMPLICIT
            tag, length = _header(file, explicit)
            while tag < _SERIES:  # elements are in the order of their tags
                _skip(file, length, explicit)
                tag, length = _header(file, explicit)
            return kind, _text(file, length) if tag == _SERIES else None
    except (OSError, ValueError, struct.error, RecursionError):
        return kind, None


def _header(file: IO[bytes], explicit: bool) -> tuple[tuple[int, int], int]:
    """Tag and length of the next element. struct.error at the end of the file."""
    group, element = struct.unpack("<HH", file.read(4))
    tag = group, element
    if not explicit or group == 0xFFFE:
        return tag, struct.unpack("<I", file.read(4))[0]
    kind, short = struct.unpack("<2sH", file.read(4))
    return tag, struct.unpack("<I", file.read(4))[0] if kind in _LONG else short


def _skip(file: IO[bytes], length: int, explicit: bool) -> None:
    """Pass over a value; a sequence, or an item of one, may only end where it says so."""
    if length != _UNDEFINED:
        file.seek(length, os.SEEK_CUR)
        return
    while True:
        tag, inner = _header(file, explicit)
        if tag in _ENDS:
            return
        _skip(file, inner, explicit)


def _text(file: IO[bytes], length: int) -> str:
    if length > 64:  # PS3.5: of a UID
        raise ValueError("no UID")
    return file.read(length).decode("ascii").rstrip("\0 ")
