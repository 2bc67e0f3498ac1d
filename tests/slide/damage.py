"""Slides that are broken in known ways, made of a sound TIFF."""

from __future__ import annotations

import shutil
from pathlib import Path

import tifffile


def with_bad_tile(sound: Path, broken: Path, tile: int) -> Path:
    """A copy in which one native tile of level 0 is zeros: no JPEG."""
    shutil.copy(sound, broken)
    with tifffile.TiffFile(sound) as tiff:
        page = tiff.pages.first
        offset, length = page.dataoffsets[tile], page.databytecounts[tile]
    with open(broken, "r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    return broken


def with_tag(sound: Path, broken: Path, tag: str, value: int) -> Path:
    """A copy whose level 0 states another number."""
    shutil.copy(sound, broken)
    with tifffile.TiffFile(broken, mode="r+b") as tiff:
        tiff.pages.first.tags[tag].overwrite(value)
    return broken
