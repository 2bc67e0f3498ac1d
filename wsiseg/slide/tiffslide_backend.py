"""TIFF slides through tiffslide: local files and any URL that fsspec opens, OME-TIFF and qptiff too."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from wsiseg.errors import PixelError, SlideError
from wsiseg.slide.base import Header, Slide, stated_bounds
from wsiseg.slide.quiet import quietly
from wsiseg.slide.remote import RemoteFile
from wsiseg.slide.resample import WHITE
from wsiseg.slide.scale import stated_mpp, tidy
from wsiseg.slide.source import fingerprint, is_url, open_binary
from wsiseg.slide.tiff import (
    END_OF_JPEG,
    PLAIN_TILED,
    chain_is_whole,
    has_all_tiles,
    lies_about_dimensions,
    ome_mpp,
    tiles_are_inside,
)

# Their tiles overlap, each with its neighbours in its own way, which tiffslide does not undo.
_STITCHED = ("trestle", "ventana")
_COLOURS = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)


class TiffSlideSlide(Slide):
    """A slide that tiffslide reads. Thread-safe: one zarr group per thread, one lock on the file."""

    backend = "tiffslide"

    def __init__(self, source: str, slide_mpp: float | tuple[float, float] | None = None) -> None:
        self._file = RemoteFile(source) if is_url(source) else None
        self._handle = _open(source, self._file)
        try:
            super().__init__(source, _header(source, self._handle), slide_mpp)
        except BaseException:
            self.close()
            raise

    def _read_inside(self, level: int, r_x: int, r_y: int, width: int, height: int) -> np.ndarray:
        downsample = self._handle.level_downsamples[level]
        # tiffslide truncates level-0 pixels / downsample: rounding up first meets the level pixel exactly.
        location = math.ceil(r_x * downsample), math.ceil(r_y * downsample)
        try:
            pixels = self._handle.read_region(location, level, (width, height), as_array=True)
        except SlideError:  # of the server, not of these pixels
            raise
        except Exception as error:  # decoders raise errors of their own kinds
            raise PixelError(
                f"cannot read {self.source} at level-0 pixel {location}, level {level}: {type(error).__name__}: "
                f"{error}; the file is damaged or truncated there: copy or download it again"
            ) from error
        return _rgb(pixels)

    def native_source(self) -> Path | None:
        return Path(self.source) if self.vendor in PLAIN_TILED and not is_url(self.source) else None

    def close(self) -> None:
        self._handle.close()
        if self._file is not None:
            self._file.close()


def _open(source: str, remote: RemoteFile | None) -> Any:
    import tiffslide

    with open_binary(source) as file:
        whole = chain_is_whole(file)
    try:
        handle = tiffslide.TiffSlide(remote or source)
    except Exception as error:  # tifffile raises many kinds on malformed files
        raise SlideError(
            f"{source} is no slide that tiffslide reads: {type(error).__name__}: {error}"
        ) from error
    # NDPI stores offsets beyond 4 GB in a way of its own, which only tifffile follows.
    if not whole and not handle.ts_tifffile.is_ndpi:
        handle.close()
        raise SlideError(f"{source} is a truncated TIFF: copy or download the slide again")
    handle.ts_tifffile.filehandle.set_lock(True)
    return handle


def _header(source: str, handle: Any) -> Header:
    vendor = _vendor(handle.ts_tifffile)
    if vendor in _STITCHED:
        raise SlideError(
            f"{source} is a {vendor.capitalize()} slide, whose overlapping tiles tiffslide does not join: "
            "open a local copy with OpenSlide"
        )
    try:
        with quietly(UserWarning):  # "metadata parsing only partially implemented"
            _arrange(handle.ts_tifffile)
            properties = handle.properties
        series = handle.ts_tifffile.series[properties["tiffslide.series-index"]]
    except Exception as error:
        raise SlideError(f"tiffslide cannot use {source}: {type(error).__name__}: {error}") from error
    try:
        _check_pixels(source, handle, series)
        for every in handle.ts_tifffile.series:
            for level in every.levels:
                page = level.keyframe
                page.nodata = WHITE  # tiles that were not scanned, black otherwise
                if page.compression == tifffile.COMPRESSION.JPEG and not handle.ts_tifffile.is_ndpi:  # cut into pieces
                    page.decode = _refusing_cut_off(page.decode)
    except SlideError:
        raise
    except Exception as error:  # numbers that fit nothing, from tiles of width 0 to offsets that are missing
        raise SlideError(
            f"{source} cannot be used: its header is damaged ({type(error).__name__}: {error}); "
            "copy or download the slide again"
        ) from error
    mpp_x, mpp_y = properties["tiffslide.mpp-x"], properties["tiffslide.mpp-y"]
    if handle.ts_tifffile.is_ome:
        ome_x, ome_y = ome_mpp(handle.ts_tifffile.ome_metadata or "", handle.dimensions)
        mpp_x, mpp_y = ome_x or mpp_x, ome_y or mpp_y
    return Header(
        vendor=vendor,
        level_dimensions=handle.level_dimensions,
        level_downsamples=handle.level_downsamples,
        fingerprint=fingerprint(source),
        mpp=stated_mpp(mpp_x, mpp_y),
        objective_power=tidy(properties.get("tiffslide.objective-power")),
        l0_bounds=stated_bounds(properties, "tiffslide"),
        associated_images=tuple(handle.associated_images),
        icc_profile=handle._profile,
        properties={key: str(value) for key, value in properties.items() if value is not None},
    )


def _arrange(tiff: Any) -> None:
    """Before tiffslide looks: it takes the first image for the slide, and planes for colours only where they are C."""
    if tiff.is_ome:  # may begin with the overview of the glass
        images = getattr(tiff.series, "_series", tiff.series)  # tifffile's releases for Python 3.12 wrap the list
        images.sort(key=lambda series: series.keyframe.imagewidth * series.keyframe.imagelength, reverse=True)
    for series in tiff.series:
        for level in series.levels:
            if level.axes == "SYX":  # red, green and blue in planes
                setattr(level, "_axes_squeezed" if hasattr(level, "_axes_squeezed") else "_axes", "CYX")


def _refusing_cut_off(decode: Callable[..., Any]) -> Callable[..., Any]:
    """`decode` of a JPEG page, but not of streams without an end: the decoder would make up the rest in grey."""

    def decoded(data: bytes | None, *args: Any, **options: Any) -> Any:
        if data and END_OF_JPEG not in data:
            raise ValueError("premature end of JPEG data")
        return decode(data, *args, **options)

    return decoded


def _check_pixels(source: str, handle: Any, series: Any) -> None:
    channels = next((series.shape[series.axes.index(axis)] for axis in "SC" if axis in series.axes), 1)
    # A fourth sample of a pixel is alpha, a fourth channel some stain.
    if series.dtype != np.uint8 or channels not in ((1, 3, 4) if "S" in series.axes else (1, 3)):
        raise SlideError(
            f"{source} holds {channels} channel(s) of {series.dtype}: wsiseg reads 8-bit RGB or grey slides; "
            "export the slide as 8-bit RGB first"
        )
    if series.keyframe.photometric not in _COLOURS:
        raise SlideError(
            f"{source} holds a palette, CMYK, Lab or inverted grey, which tiffslide does not turn into RGB: "
            "open a local copy with OpenSlide, or export the slide as 8-bit RGB first"
        )
    size = handle.ts_tifffile.filehandle.size
    pages = [page for level in series.levels for page in level if page is not None]
    if not all(has_all_tiles(page) for page in pages):
        raise lies_about_dimensions(source)
    if not all(tiles_are_inside(page, size) for page in pages):
        raise SlideError(f"{source} is a truncated TIFF: copy or download the slide again")


def _vendor(tiff: Any) -> str:
    """OpenSlide's name for the kind of slide."""
    kinds = {"svs": "aperio", "scn": "leica", "bif": "ventana", "ndpi": "hamamatsu", "philips": "philips"}
    kinds |= {"qpi": "perkinelmer", "ome": "ome"}
    if str(tiff.pages.first.software).startswith("MedScan"):
        return "trestle"
    return next((vendor for kind, vendor in kinds.items() if getattr(tiff, f"is_{kind}")), "generic-tiff")


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """(height, width, 3) from 1, 3 or 4 channels; a fourth is alpha over white."""
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        over = (pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
        return over.astype(np.uint8)
    return np.ascontiguousarray(pixels)
