"""Decode each native JPEG tile of a TIFF slide once, and cut the planned tiles from the decoded ones.

`read_region` decodes a native tile again for every patch that touches it: 1.9 times the work at 25 % overlap
(measured, OpenSlide), on top of its premultiplied RGBA and its conversion. Here a native tile is decoded by
imagecodecs (libjpeg-turbo, without the GIL) when the first patch asks for it, and dropped after the last one.
A row of patches therefore holds only the native tiles that the next row shares with it.

The pixels equal OpenSlide's byte for byte, because this road is taken only where that is so: a plain tiled
TIFF (`aperio`, `generic-tiff`), 8-bit RGB or YCbCr JPEG in one plane, no tile missing, a level
whose downsample is a whole number (OpenSlide blends on others), and whose largest tile was decoded both ways
and found equal. Everything else is left to the slide.

Planes: `r_` pixels of the level that is read; `n_` index of a native tile, row and column.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tifffile

from wsiseg.slide.resample import WHITE, resample_region
from wsiseg.slide.tiff import END_OF_JPEG
from wsiseg.tiles.ahead import map_ahead
from wsiseg.tiles.grid import Grid

if TYPE_CHECKING:
    from wsiseg.slide import Slide

_HOLE = bytes(512)  # a sector that was never written; no coded picture has so many zeros, but for a flat one

MAX_KEPT_BYTES = 64 << 20  # decoded native tiles kept for the next row; beyond it some are decoded twice

Key = tuple[int, int]  # n_row, n_column


class NativeLevel:
    """One level of an open TIFF whose native tiles are decoded one by one; safe to use from many threads."""

    def __init__(self, page: tifffile.TiffPage, file: Path) -> None:
        self._page = page
        self._offsets = page.dataoffsets
        self.byte_counts = page.databytecounts
        self._file = open(file, "rb")  # noqa: SIM115 (closed by `close`)
        self._lock = threading.Lock()
        self.r_width, self.r_height = page.imagewidth, page.imagelength
        self.tile_width, self.tile_height = page.tilewidth, page.tilelength
        self.n_columns = -(-self.r_width // self.tile_width)
        self.n_rows = -(-self.r_height // self.tile_height)

    def ranges(self, r_x: int, r_y: int, width: int, height: int) -> tuple[range, range]:
        """Rows and columns of the native tiles under a box of the level."""
        stop_row, stop_column = -(-(r_y + height) // self.tile_height), -(-(r_x + width) // self.tile_width)
        rows = range(max(0, r_y // self.tile_height), min(self.n_rows, stop_row))
        columns = range(max(0, r_x // self.tile_width), min(self.n_columns, stop_column))
        return rows, columns

    def decode(self, key: Key) -> np.ndarray:
        """A native tile (h, w, 3) uint8, without the padding beyond the level."""
        index = key[0] * self.n_columns + key[1]
        with self._lock:
            self._file.seek(self._offsets[index])
            data = self._file.read(self.byte_counts[index])
        if not _is_whole(data):
            raise ValueError(f"native tile {key} is damaged, or needs a closer look")
        decoded, _, _ = self._page.decode(data, index, jpegtables=self._page.jpegtables)
        if decoded is None:
            raise ValueError(f"native tile {key} is empty")
        return decoded[0, : self.r_height - key[0] * self.tile_height, : self.r_width - key[1] * self.tile_width]

    def paste(self, pieces: Mapping[Key, Future[np.ndarray]], r_x: int, r_y: int, out: np.ndarray) -> None:
        """Fill out (h, w, 3) with the box at (r_x, r_y), from native tiles on their way or decoded now.

        What lies beyond the level is left as it is.
        """
        for key in product(*self.ranges(r_x, r_y, out.shape[1], out.shape[0])):
            piece = pieces[key].result() if key in pieces else self.decode(key)
            top, left = key[0] * self.tile_height, key[1] * self.tile_width
            y0, x0 = max(top, r_y), max(left, r_x)
            y1 = min(top + piece.shape[0], r_y + out.shape[0])
            x1 = min(left + piece.shape[1], r_x + out.shape[1])
            out[y0 - r_y : y1 - r_y, x0 - r_x : x1 - r_x] = piece[y0 - top : y1 - top, x0 - left : x1 - left]

    def cut(self, pieces: Mapping[Key, Future[np.ndarray]], r_x: int, r_y: int, width: int, height: int) -> np.ndarray:
        """A box (height, width, 3) inside the level."""
        out = np.empty((height, width, 3), np.uint8)
        self.paste(pieces, r_x, r_y, out)
        return out

    def close(self) -> None:
        if self._lock.acquire(blocking=False):  # else a read hangs in the file, and closing would too
            self._file.close()
        self._page.parent.close()


def _is_whole(jpeg: bytes) -> bool:
    """Whether a JPEG stream ends as it should, and has no hole of zeros.

    What is missing in one, libjpeg makes up in grey; OpenSlide takes its warning for an error, imagecodecs drops it.
    """
    coded = jpeg.rstrip(b"\0")
    return coded.endswith(END_OF_JPEG) and _HOLE not in coded


def open_native_level(slide: Slide, level: int) -> NativeLevel | None:
    """The level for decoding once, or None where the slide has to read it itself. The caller closes it."""
    file = slide.native_source()
    if file is None or not float(slide.level_downsamples[level]).is_integer():
        return None
    try:
        tiff = tifffile.TiffFile(file)
    except (OSError, ValueError, tifffile.TiffFileError):
        return None
    size = slide.level_dimensions[level]
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    pages = [page for page in pages if (page.imagewidth, page.imagelength) == size and page.is_tiled]
    if len(pages) == 1 and _is_plain_jpeg(pages[0]):
        native = NativeLevel(pages[0], file)
        if _largest_tile_is_equal(native, slide, level):
            return native
        native.close()
    tiff.close()
    return None


def _is_plain_jpeg(page: tifffile.TiffPage) -> bool:
    return (
        page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and page.bitspersample == 8
        and page.samplesperpixel == 3
        and page.imagedepth == 1
        and page.fillorder == 1
        and min(page.databytecounts, default=0) > 0
    )


def _largest_tile_is_equal(native: NativeLevel, slide: Slide, level: int) -> bool:
    """Whether the tile with most detail comes out as the slide reads it: colour space, place and decoder."""
    largest = int(np.argmax(native.byte_counts))
    row, column = divmod(largest, native.n_columns)
    try:
        decoded = native.decode((row, column))
        height, width = decoded.shape[:2]
        read = slide.read_level(level, column * native.tile_width, row * native.tile_height, width, height)
    except Exception:  # imagecodecs' errors are RuntimeErrors of many names; the slide's may lie off the tissue
        return False
    return np.array_equal(decoded, read)


def native_tiles(
    slide: Slide,
    grid: Grid,
    indices: Sequence[int],
    outs: Iterable[np.ndarray],
    native: NativeLevel,
    *,
    read: Callable[[int, int], np.ndarray],
    workers: int,
) -> Generator[np.ndarray, None, None]:
    """Fill each of outs (H, W, 3) uint8 as `slide.read_at_mpp` gives that tile, and yield it, in order.

    A tile with a native tile that cannot be decoded is left to `read(m_x, m_y)`, which reads it from the slide or
    says what is wrong. Closes `native` at the end.
    """
    size, mpp = grid.spec.tile_size, grid.spec.mpp
    _, scale = slide.level_for_mpp(mpp)

    def fill(job: Job) -> np.ndarray:
        for key in job.new:
            try:
                job.pieces[key].set_result(native.decode(key))
            except Exception as error:  # imagecodecs' errors are RuntimeErrors of many names
                job.pieces[key].set_exception(error)
        try:
            if scale == (1.0, 1.0):  # no resize, no copy: straight into place
                if min(job.m_x, job.m_y) < 0 or job.m_x + size > native.r_width or job.m_y + size > native.r_height:
                    job.out[...] = WHITE
                native.paste(job.pieces, job.m_x, job.m_y, job.out)
            else:
                cut, r_size = partial(native.cut, job.pieces), (native.r_width, native.r_height)
                job.out[...] = resample_region(cut, r_size, scale, job.m_x, job.m_y, size, size)
        except Exception:  # the error of a piece, whichever job decoded it
            job.out[...] = read(job.m_x, job.m_y)
        return job.out

    try:
        yield from map_ahead(fill, _jobs(grid, indices, outs, native, scale), workers=workers, ahead=2 * workers)
    finally:
        native.close()


class Job(NamedTuple):
    """One tile to fill, with the native tiles that it needs.

    new: those that this job decodes for all. It may wait for the others, as jobs begin in order: the jobs that
    decode them are under way, and wait for earlier ones only.
    """

    m_x: int
    m_y: int
    pieces: dict[Key, Future[np.ndarray]]
    new: list[Key]
    out: np.ndarray


def _jobs(
    grid: Grid,
    indices: Sequence[int],
    outs: Iterable[np.ndarray],
    native: NativeLevel,
    scale: tuple[float, float],
) -> Iterator[Job]:
    """The tiles in order; each native tile is new to one of them, and dropped after its last use."""
    size = grid.spec.tile_size

    def needed(job: int) -> tuple[range, range]:
        m_x, m_y = (int(m) for m in grid.m_xy[indices[job]])
        r_x, width = _r_reach(m_x, size, scale[0])
        r_y, height = _r_reach(m_y, size, scale[1])
        return native.ranges(r_x, r_y, width, height)

    last_use = np.full((native.n_rows, native.n_columns), -1)
    for job in range(len(indices)):
        last_use[np.ix_(*needed(job))] = job
    kept: dict[Key, Future[np.ndarray]] = {}
    max_kept = MAX_KEPT_BYTES // (native.tile_height * native.tile_width * 3)
    for job, (index, out) in enumerate(zip(indices, outs, strict=False)):
        keys = list(product(*needed(job)))
        new = [key for key in keys if key not in kept]
        kept |= {key: Future() for key in new}
        m_x, m_y = (int(m) for m in grid.m_xy[index])
        yield Job(m_x, m_y, {key: kept[key] for key in keys}, new, out)
        full = len(kept) > max_kept
        following = set(product(*needed(job + 1))) if full and job + 1 < len(indices) else set()
        for key in keys:
            if last_use[key] == job or (full and key not in following):
                del kept[key]


def _r_reach(m: int, size: int, r_per_m: float) -> tuple[int, int]:
    """Start and length of what `resample_region` reads along one axis for a tile at m: the kernel's reach
    (two output pixels when shrinking, two level pixels when enlarging) lies around the tile's own box."""
    reach = 0.0 if r_per_m == 1.0 else 2 * max(r_per_m, 1.0) + 1
    first = math.floor(m * r_per_m - reach)
    return first, math.ceil((m + size) * r_per_m + reach) - first
