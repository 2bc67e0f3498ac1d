"""What the TIFF container says before any pixel is decoded: is it whole, tiled, OME, and at what scale."""

from __future__ import annotations

import logging
import math
import os
import struct
from typing import IO
from xml.etree import ElementTree

import numpy as np
import tifffile

from wsiseg.errors import SlideError
from wsiseg.slide.scale import tidy

# tifffile reports damage on its logger; without a handler Python would print that beside our one-line errors.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

END_OF_JPEG = b"\xff\xd9"

# Vendors whose levels are grids of tiles without overlap, gap or offset: a tile's index gives its place. So are OME's,
# but their pages may be channels and planes of other images.
PLAIN_TILED = ("aperio", "generic-tiff")

_MICRONS = {"pm": 1e-6, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


def chain_is_whole(file: IO[bytes]) -> bool:
    """Whether every image directory of a TIFF or BigTIFF is inside the file.

    Scanners write directories after the pixels, so a copy that was cut off misses some; readers that stop at
    the first missing one would show a slide without its last levels.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(4)
    order = "<" if magic[:2] == b"II" else ">"
    big = b"+" in magic
    offset_format, count_format, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
    offset_bytes, count_bytes = struct.calcsize(offset_format), struct.calcsize(count_format)
    file.seek(8 if big else 4)
    seen: set[int] = set()
    while True:
        raw = file.read(offset_bytes)
        if len(raw) < offset_bytes:
            return False
        (offset,) = struct.unpack(order + offset_format, raw)
        if offset == 0:
            return bool(seen)
        if offset in seen or offset + count_bytes > size:
            return False
        seen.add(offset)
        file.seek(offset)
        (count,) = struct.unpack(order + count_format, file.read(count_bytes))
        file.seek(offset + count_bytes + count * entry_bytes)


def tiles_are_inside(page: tifffile.TiffPage | tifffile.TiffFrame, size: int) -> bool:
    """Whether the pixel data of a page end within a file of `size` bytes."""
    ends = np.asarray(page.dataoffsets, np.int64) + np.asarray(page.databytecounts, np.int64)
    return ends.size == 0 or int(ends.max()) <= size


def has_all_tiles(page: tifffile.TiffPage | tifffile.TiffFrame) -> bool:
    """Whether a page has just the tiles that its dimensions need; if not, its header lies about them."""
    key = page.keyframe  # a frame has the tags of another page
    if key is None or not key.is_tiled:
        return True
    sides = (key.imagewidth, key.tilewidth), (key.imagelength, key.tilelength), (key.imagedepth, key.tiledepth)
    planes = key.samplesperpixel if key.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    return len(page.dataoffsets) == planes * math.prod(-(-length // tile) for length, tile in sides)


def lies_about_dimensions(source: str) -> SlideError:
    return SlideError(
        f"{source} states dimensions that its number of tiles does not fit: its header is damaged; "
        "copy or download the slide again"
    )


def ome_mpp(description: str, size: tuple[int, int]) -> tuple[float | None, float | None]:
    """PhysicalSizeX and PhysicalSizeY, in microns, of the image of `size` (width, height) in an OME-XML text."""
    try:
        nodes = ElementTree.fromstring(description).iter()
    except ElementTree.ParseError:
        return None, None
    images = [node for node in nodes if node.tag.rpartition("}")[2] == "Pixels"]
    stated = tuple(map(str, size))
    pixels = next((image for image in images if (image.get("SizeX"), image.get("SizeY")) == stated), None)
    if pixels is None:
        return None, None

    def physical(axis: str) -> float | None:
        value = tidy(pixels.get(f"PhysicalSize{axis}"))
        unit = _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        return None if value is None or unit is None else value * unit

    return physical("X"), physical("Y")
