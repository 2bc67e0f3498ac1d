r"""Make a large slide for benchmarks: real tissue side by side on white, as a tiled pyramidal JPEG TIFF.

    python benchmarks/speed/make_pyramid.py slide.tif --size 10000 \
        --images ../shared/data/open/nuinsseg/images

OpenSlide reads the result as `generic-tiff`, tiffslide and QuPath read it too. No large real slide can be
shipped; the pixels are real H&E, turned and mirrored at random so that no decoder profits from repetition.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".svs"}


def tissue_images(folder: Path) -> list[np.ndarray]:
    """The RGB images (h, w, 3) uint8 of a folder, in the order of their names, or of one file or slide."""
    files = [folder] if folder.is_file() else sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES)
    if not files:
        raise SystemExit(f"no images in {folder}")
    images = []
    for file in files[:64]:
        if file.suffix == ".svs":
            images.append(np.asarray(tifffile.imread(file, key=0)))
        else:
            images.append(np.asarray(Image.open(file).convert("RGB")))
    return images


def lay_out(images: Sequence[np.ndarray], size: int, *, fill: float = 1.0, seed: int = 0) -> np.ndarray:
    """A white square (size, size, 3) with an ellipse of tissue, whose axes are `fill` of the side, laid out
    in cells of 500 px, each a random crop of a random image, turned and mirrored. `fill` = 1.5 covers all."""
    rng = np.random.default_rng(seed)
    canvas = np.full((size, size, 3), 255, np.uint8)
    cell = min(500, *(min(image.shape[:2]) for image in images))
    for y in range(0, size, cell):
        for x in range(0, size, cell):
            off_centre = np.hypot(y + cell / 2 - size / 2, x + cell / 2 - size / 2) / (size / 2)
            image = images[int(rng.integers(len(images)))]
            top = rng.integers(image.shape[0] - cell + 1)
            left = rng.integers(image.shape[1] - cell + 1)
            patch = np.rot90(image[top : top + cell, left : left + cell], int(rng.integers(4)))
            if off_centre <= fill:
                canvas[y : y + cell, x : x + cell] = patch[: size - y, : size - x]
    return canvas


def write_pyramid(
    path: Path, level0: np.ndarray, *, mpp: float, tile: int = 256, quality: int = 80, downsample: int = 4
) -> None:
    """Write `level0` (h, w, 3) and ever smaller levels, each the mean of squares of the one before."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        level, reduced = level0, False
        while True:
            tiff.write(
                _tiles(level, tile),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=1 if reduced else 0,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            height, width = (length // downsample for length in level.shape[:2])
            if min(height, width) < tile:
                return
            squares = level[: height * downsample, : width * downsample]
            squares = squares.reshape(height, downsample, width, downsample, 3)
            level = np.stack([row.mean(axis=(0, 2)).round().astype(np.uint8) for row in squares])
            mpp, reduced = mpp * downsample, True


def _tiles(level: np.ndarray, tile: int) -> Iterator[np.ndarray]:
    for y in range(0, level.shape[0], tile):
        for x in range(0, level.shape[1], tile):
            piece = level[y : y + tile, x : x + tile]
            missing = [(0, tile - piece.shape[0]), (0, tile - piece.shape[1]), (0, 0)]
            yield np.ascontiguousarray(np.pad(piece, missing, mode="edge"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=10000, help="width and height in pixels")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--images", type=Path, default=Path("tests/data/CMU-1-Small-Region.svs"))
    parser.add_argument("--fill", type=float, default=0.9, help="axes of the ellipse of tissue / side")
    arguments = parser.parse_args()
    level0 = lay_out(tissue_images(arguments.images), arguments.size, fill=arguments.fill)
    write_pyramid(arguments.out, level0, mpp=arguments.mpp)


if __name__ == "__main__":
    main()
