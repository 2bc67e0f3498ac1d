"""Plain images (png, jpg, tif, …) as slides of one level, held in memory; and masks in such files."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsiseg.errors import SlideError
from wsiseg.slide.base import Header, Slide
from wsiseg.slide.quiet import quietly
from wsiseg.slide.scale import stated_mpp
from wsiseg.slide.source import fingerprint, head, open_binary

_SMOOTH = 16  # more values than this, many of them white, are a region whose edges were smoothed


class ImageSlide(Slide):
    """A plain image, decoded once; the array is read-only, hence thread-safe."""

    backend = "image"

    def __init__(self, source: str, slide_mpp: float | tuple[float, float] | None = None) -> None:
        self._pixels, header = _load(source)
        super().__init__(source, header, slide_mpp)

    def _read_inside(self, level: int, r_x: int, r_y: int, width: int, height: int) -> np.ndarray:
        return self._pixels[r_y : r_y + height, r_x : r_x + width].copy()

    def close(self) -> None:
        self._pixels = np.empty((0, 0, 3), np.uint8)


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W) numbers of a mask file: 0 where nothing is marked, else labels, or one value for all.

    Colours are marks by their brightest channel, transparency is none. A palette's numbers count, not its colours,
    unless black is in use and is not its number 0: programs number the two colours of a mask as they like. JPEG and
    regions with smooth edges, as resizing leaves them, are 255 above a half and else 0.

    Raises:
        SlideError: the file is missing or no image, or it has several values and none of them is 0.
    """
    try:
        with quietly(), Image.open(path) as image:
            jpeg = image.format == "JPEG"
            pixels = np.asarray(image)
            if image.mode == "P" and any((image.getpalette() or [])[:3]):
                colours = np.asarray(image.convert("RGB"))
                pixels = colours if (colours == 0).all(axis=2).any() else pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SlideError(f"{os.fspath(path)} cannot be read as a mask: {error}") from error
    spread = pixels.max(axis=(0, 1)).astype(np.float64) - pixels.min(axis=(0, 1))
    if pixels.ndim == 3:
        pixels = pixels[..., : 3 if pixels.shape[2] >= 3 else 1].max(axis=2)
    if jpeg or (pixels.dtype == np.uint8 and _is_smooth(pixels)):
        pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    if pixels.all() and (spread > (127 if jpeg else 0)).any():
        raise SlideError(f"{os.fspath(path)} has several values or colours, and none is 0 (black): what is not marked?")
    return pixels


def _is_smooth(mask: np.ndarray) -> bool:
    """Of 255 labels, or of 17, none has a quarter of what is marked and the number 255."""
    counts = np.bincount(mask.ravel(), minlength=256)[1:]
    return bool(4 * counts[-1] > counts.sum() and np.count_nonzero(counts) > _SMOOTH)


def _load(source: str) -> tuple[np.ndarray, Header]:
    # Pillow warns from 89 Mpx on, and of odd metadata; what matters is what it refuses (179 Mpx, damage).
    with open_binary(source) as file, quietly():
        try:
            image = Image.open(file)
            _check_mode(source, image.mode)
            image.load()
        except SlideError:  # an OSError, too
            raise
        except Image.DecompressionBombError as error:
            raise SlideError(
                f"{source} is too large for a plain image ({error}): convert it to a tiled pyramid, "
                "for example `vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg`"
            ) from error
        except UnidentifiedImageError as error:
            raise SlideError(
                f"{source} is no slide or image in a known format: it begins with {head(source, 16)!r}"
            ) from error
        except (OSError, SyntaxError, ValueError) as error:
            raise SlideError(f"{source} is a damaged or truncated image: {error}") from error
    pixels = np.array(_rgb(image))
    pixels.setflags(write=False)
    dpi = image.info.get("dpi", (None, None))
    return pixels, Header(
        vendor="image",
        level_dimensions=(image.size,),
        level_downsamples=(1.0,),
        fingerprint=fingerprint(source),
        mpp=stated_mpp(*(25400 / float(value) if value else None for value in dpi)),
        icc_profile=image.info.get("icc_profile"),
        properties={"image.format": str(image.format), "image.mode": image.mode},
    )


def _check_mode(source: str, mode: str) -> None:
    if mode.startswith(("I", "F")):
        raise SlideError(
            f"{source} has pixels of mode {mode} (16 or 32 bits): wsiseg reads 8-bit RGB or grey images"
        )


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, transparency laid on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
