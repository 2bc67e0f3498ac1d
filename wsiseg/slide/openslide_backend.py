"""Slides through OpenSlide: svs, ndpi, mrxs, scn, bif, vms, Philips, tiled TIFF, DICOM."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import Image

from wsiseg.errors import PixelError, SlideError
from wsiseg.slide.base import Header, Slide, stated_bounds
from wsiseg.slide.dicom import files_of_series
from wsiseg.slide.resample import WHITE
from wsiseg.slide.scale import stated_mpp, tidy
from wsiseg.slide.source import fingerprint, head
from wsiseg.slide.tiff import PLAIN_TILED, TIFF_MAGICS, has_all_tiles, lies_about_dimensions

_LATTICE_PX = 512


class OpenSlideSlide(Slide):
    """A slide that OpenSlide reads.

    OpenSlide objects are thread-safe, but once a read fails every later one fails too (its errors latch).
    The broken one is replaced for all threads; it is dropped, not closed, since some may be inside it, and closes
    itself when the last of them leaves. The failed read is tried once more on an object of its own, which no
    other thread's bad tile can break.
    """

    backend = "openslide"

    def __init__(self, source: str, slide_mpp: float | tuple[float, float] | None = None) -> None:
        self._handle = _open(source)
        self._lock = threading.Lock()
        super().__init__(source, _header(source, self._handle), slide_mpp)

    def _read_inside(self, level: int, r_x: int, r_y: int, width: int, height: int) -> np.ndarray:
        downsample = self.level_downsamples[level]
        if downsample == round(downsample):
            return self._read_l0(r_x * round(downsample), r_y * round(downsample), level, width, height)
        # OpenSlide takes level-0 integers, so on a level with downsample 4.0003 a read begins a fraction of a
        # pixel beside the level's own grid and is blended there. Reads that always begin on one lattice are
        # blended alike, whichever tile asks: neighbouring tiles stay equal where they overlap.
        out = np.empty((height, width, 3), np.uint8)
        for y in range(r_y - r_y % _LATTICE_PX, r_y + height, _LATTICE_PX):
            for x in range(r_x - r_x % _LATTICE_PX, r_x + width, _LATTICE_PX):
                x1, y1 = min(x + _LATTICE_PX, r_x + width), min(y + _LATTICE_PX, r_y + height)
                block = self._read_l0(round(x * downsample), round(y * downsample), level, x1 - x, y1 - y)
                left, top = max(x, r_x), max(y, r_y)
                out[top - r_y : y1 - r_y, left - r_x : x1 - r_x] = block[top - y :, left - x :]
        return out

    def _read_l0(self, l0_x: int, l0_y: int, level: int, width: int, height: int) -> np.ndarray:
        handle = self._handle
        try:
            return _over_white(handle.read_region((l0_x, l0_y), level, (width, height)))
        except openslide.OpenSlideError:
            self._replace(handle)
        with _open(self.source) as own:
            try:
                return _over_white(own.read_region((l0_x, l0_y), level, (width, height)))
            except openslide.OpenSlideError as error:
                raise PixelError(
                    f"cannot read {self.source} at level-0 pixel ({l0_x}, {l0_y}), level {level}: "
                    f"{error}; the file is damaged or truncated there: copy or download it again"
                ) from error

    def _replace(self, broken: openslide.OpenSlide) -> None:
        with self._lock:
            if self._handle is broken:
                self._handle = _open(self.source)

    def native_source(self) -> Path | None:
        return Path(self.source) if self.vendor in PLAIN_TILED else None

    def close(self) -> None:
        self._handle.close()


def _open(source: str) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(source)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(f"{source} is no slide that OpenSlide reads, or its header is damaged") from error
    except openslide.OpenSlideError as error:
        raise SlideError(f"OpenSlide cannot open {source}: {error}") from error


def _header(source: str, handle: openslide.OpenSlide) -> Header:
    properties = dict(handle.properties)
    is_tiff = head(source)[:4] in TIFF_MAGICS
    if is_tiff:
        _check_tiles(source)
    return Header(
        vendor=properties.get("openslide.vendor", "unknown"),
        level_dimensions=handle.level_dimensions,
        level_downsamples=handle.level_downsamples,
        fingerprint=fingerprint(source) if is_tiff else _fingerprint_of_parts(source, properties),
        mpp=stated_mpp(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")),
        objective_power=tidy(properties.get("openslide.objective-power")),
        l0_bounds=stated_bounds(properties, "openslide"),
        associated_images=tuple(handle.associated_images),
        icc_profile=handle._profile,
        properties=properties,
    )


def _fingerprint_of_parts(source: str, properties: Mapping[str, str]) -> str:
    """Of what is no TIFF (MIRAX, VMS, DICOM) the pixels lie in files beside the one named."""
    if properties.get("openslide.vendor") == "dicom":  # any file of the series may be named, and any may change
        parts = sorted({fingerprint(str(file)) for file in files_of_series(Path(source))})
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    return fingerprint(source, properties.get("openslide.quickhash-1", ""))


def _check_tiles(source: str) -> None:
    """Raises SlideError if a TIFF does not have the tiles that its dimensions need: OpenSlide would misplace them."""
    try:
        with tifffile.TiffFile(source) as tiff:
            whole = all(has_all_tiles(page) for page in tiff.pages if isinstance(page, tifffile.TiffPage))
    except Exception:  # tifffile raises many kinds where OpenSlide sees no fault
        return
    if not whole:
        raise lies_about_dimensions(source)


def _over_white(image: Image.Image) -> np.ndarray:
    """(height, width, 3) uint8 of an RGBA image laid on white."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (WHITE, WHITE):
        return np.asarray(image.convert("RGB"))
    ground = Image.new("RGB", image.size, (WHITE, WHITE, WHITE))
    ground.paste(image, mask=alpha)
    return np.asarray(ground)
