"""Storing patches: CPU seconds per raw gigabyte, written and read back. Peer: zarr-python's own way."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from benchmarks.speed.rows import Row, Setup, measure_cost, with_ratios
from wsiseg.files import atomic_write
from wsiseg.slide import open_slide
from wsiseg.tiles import Grid, GridSpec, SlideTiles, TileStore, plan_grid, write_store
from wsiseg.tiles.shard import encode_chunk, encode_shard
from wsiseg.tiles.store import SHARD_TILES

WRITE_PEER = "zarr, sharded, zstd-1, write_empty_chunks"
READ_PEER = "zarr z[i]"
TILES = 256


def measure(setup: Setup) -> list[Row]:
    with open_slide(setup.slide) as slide:
        grid = plan_grid(slide, GridSpec(slide.mpp[0]))
        store = write_store(slide, grid, setup.folder / "slide.zarr")
    patches = setup.folder / "patches.npy"
    np.save(patches, store.tiles(range(min(TILES, len(grid)))))

    def row(part: str, way: str, function: object, *arguments: object) -> Row:
        cost = measure_cost(function, *arguments, repeat=setup.repeat)  # type: ignore[arg-type]
        return Row(part, way, cost.cpu_s / (cost.result / 1e9), "GB", cost.peak_mb)

    written = [
        row("store, write", "wsiseg shards", write_ours, patches, setup.folder / "ours"),
        row("store, write", WRITE_PEER, write_zarr, patches, setup.folder / "zarr"),
    ]
    read = [
        row("store, read", "wsiseg TileStore", read_ours, store.path),
        row("store, read", READ_PEER, read_zarr, store.path),
        row("store, read", "the slide itself, SlideTiles", read_slide, setup.slide, grid),
    ]
    return with_ratios(written, WRITE_PEER) + with_ratios(read, READ_PEER)


def write_ours(patches_file: Path, folder: Path) -> int:
    patches = np.load(patches_file, mmap_mode="r")
    folder.mkdir(exist_ok=True)
    for start in range(0, len(patches), SHARD_TILES):
        encoded = [encode_chunk(patch) for patch in patches[start : start + SHARD_TILES]]
        with atomic_write(folder / str(start)) as file:
            file.writelines(encode_shard(encoded, SHARD_TILES))
    return int(patches.nbytes)


def write_zarr(patches_file: Path, folder: Path) -> int:
    import zarr
    from zarr.codecs import ZstdCodec

    patches = np.load(patches_file, mmap_mode="r")
    shutil.rmtree(folder, ignore_errors=True)
    array = zarr.create_array(
        folder,
        shape=patches.shape,
        chunks=(1, *patches.shape[1:]),
        shards=(SHARD_TILES, *patches.shape[1:]),
        dtype=patches.dtype,
        compressors=ZstdCodec(level=1),
        config={"write_empty_chunks": True},
    )
    for start in range(0, len(patches), SHARD_TILES):
        array[start : start + SHARD_TILES] = patches[start : start + SHARD_TILES]
    return int(patches.nbytes)


def read_ours(path: Path) -> int:
    return sum(tiles.nbytes for _, tiles in TileStore.open(path).batches(8))


def read_zarr(path: Path) -> int:
    pixels = TileStore.open(path).pixels
    return sum(np.asarray(pixels[i]).nbytes for i in range(pixels.shape[0]))


def read_slide(path: Path, grid: Grid) -> int:
    with open_slide(path) as slide:
        return sum(tiles.nbytes for _, tiles in SlideTiles(slide, grid).batches(8))
