"""Peak memory of the whole road without a model, on ever larger slides: it should not grow with them.

    python -m benchmarks.speed.memory --size 10000 --size 40000 --size 100000
    python -m benchmarks.speed.memory --size 10000 --dust

Each size in a process of its own. The slides are synthetic pyramids, written as a stream: an ellipse of tissue
(one patch, turned and mirrored) on white, so that a slide of 100,000 x 100,000 px needs disk (about 2 GB), no memory.

The model answers in blocks of 128 px, so that outlines are few and what is measured is the pixels' road; with
`--dust` it answers pixel by pixel, a hundred outlines to a tile and several times as many specks that are too small.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from benchmarks.speed.road import RedThreshold
from benchmarks.speed.rows import Cost, measure_cost
from benchmarks.speed.run import SAMPLE
from wsiseg.inference import TileMask

TILE_PX, MPP, DOWNSAMPLE = 256, 0.5, 4


class BlockThreshold(RedThreshold):
    """Tissue or glass, for each block of 128 px."""

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        """tiles (B, H, W, 3) uint8, H and W multiples of 128."""
        return [TileMask(_blocks(tile), "", 1.0) for tile in tiles]


def segment(slide: Path, out: Path, dust: bool) -> int:
    """Number of outlines."""
    import wsiseg

    result = wsiseg.segment(slide, "tissue", model=RedThreshold() if dust else BlockThreshold())
    result.write(out)
    return len(result.annotations)


def write_large_pyramid(path: Path, size: int) -> None:
    """A tiled JPEG TIFF of `size` x `size` px at 0.5 µm/px, and levels down to one tile, in flat memory."""
    tissue, glass = _encoded_tissue(), _encode(np.full((TILE_PX, TILE_PX, 3), 255, np.uint8))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        length, mpp = size, MPP
        while True:
            tiff.write(
                _tiles(length, tissue, glass),
                shape=(length, length, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=0 if length == size else 1,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            length, mpp = length // DOWNSAMPLE, mpp * DOWNSAMPLE
            if length < TILE_PX:
                return


def measure(size: int, folder: Path, *, dust: bool = False) -> Cost:
    """Of a process that segments such a slide; the result is the number of outlines."""
    slide = folder / f"{size}.tif"
    write_large_pyramid(slide, size)
    try:
        return measure_cost(segment, slide, folder / f"{size}.geojson", dust)
    finally:
        slide.unlink()


def _blocks(tile: np.ndarray) -> np.ndarray:
    """(H, W) float32 from (H, W, 3) uint8."""
    height, width, _ = tile.shape
    mean = tile[..., 1].reshape(height // 128, 128, width // 128, 128).mean(axis=(1, 3))
    return np.kron((mean < 200).astype(np.float32), np.ones((128, 128), np.float32))


def _encoded_tissue() -> list[bytes]:
    """JPEG streams of one patch of tissue in its eight positions."""
    level0 = np.asarray(tifffile.imread(SAMPLE, key=0))
    patch = level0[1000 : 1000 + TILE_PX, 1000 : 1000 + TILE_PX]
    return [_encode(np.rot90(side, turns)) for side in (patch, patch[:, ::-1]) for turns in range(4)]


def _encode(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=60, subsampling="4:2:0")
    return stream.getvalue()


def _tiles(length: int, tissue: list[bytes], glass: bytes) -> Iterator[bytes]:
    across = -(-length // TILE_PX)
    for row in range(across):
        for column in range(across):
            off_centre = np.hypot(row + 0.5 - across / 2, column + 0.5 - across / 2)
            yield tissue[(row * 5 + column * 3) % 8] if off_centre < 0.4 * across else glass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, action="append", help="side in pixels (may be repeated)")
    parser.add_argument("--dust", action="store_true", help="outlines by the ten thousand")
    arguments = parser.parse_args()
    print("| side, px | outlines | peak MB | CPU s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="wsiseg-memory-") as folder:
        for size in arguments.size or [10_000, 20_000]:
            cost = measure(size, Path(folder), dust=arguments.dust)
            print(f"| {size:,} | {cost.result:,} | {cost.peak_mb:,.0f} | {cost.cpu_s:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
