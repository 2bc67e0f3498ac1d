"""Write the tiles of a slide into a store, and finish one that was begun.

A store is built in three steps, each whole or absent: the arrays' metadata, begun with a mark and sealed by the
group's `zarr.json`; one shard after another; `complete` in the group. Killed anywhere, the next run goes on from what
is whole, and the finished store is the same byte for byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsiseg import __version__
from wsiseg.errors import OutputError, StoreError
from wsiseg.files import atomic_write, make_folder
from wsiseg.slide.opening import check_unchanged
from wsiseg.tiles.ahead import map_ahead
from wsiseg.tiles.attributes import StoreAttributes, read_attributes, write_group
from wsiseg.tiles.grid import Grid
from wsiseg.tiles.shard import ZSTD_LEVEL, encode_chunk, encode_shard
from wsiseg.tiles.store import SHARD_TILES, TileStore, require_same, shard_file, shard_index, shard_tiles
from wsiseg.tiles.stream import WORKERS, OnBadTile, SlideTiles

if TYPE_CHECKING:
    from wsiseg.slide import Slide

ARRAYS = ("pixels", "m_xy", "tissue")
BEGUN = ".begun.tmp"  # lies beside arrays until the group's zarr.json says whose they are


def write_store(
    slide: Slide,
    grid: Grid,
    path: str | os.PathLike[str],
    *,
    pixels: bool = True,
    on_bad_tile: OnBadTile = "stop",
    progress: Callable[[int, int], None] | None = None,
) -> TileStore:
    """Read all tiles of `grid` into a store at `path`, or finish the one begun there.

    pixels: False stores the coordinates only.
    on_bad_tile: "skip" leaves out tiles that cannot be decoded; the store's attribute `left_out` lists them.
    progress: called with (tiles in the store, tiles in all). Memory: one compressed shard and a few tiles.

    Raises:
        StoreError: `path` is something else, a store of another slide or grid, one begun by another version
            of wsiseg, or one that another process is writing.
        OutputError: it cannot be written. What is whole stays, and the next run goes on from there.
        SlideError: the slide cannot be read, or changed meanwhile.
    """
    folder = Path(path)
    level = slide.level_for_mpp(grid.spec.mpp)[0]
    wanted = StoreAttributes.of(
        grid,
        level=level,
        software=f"wsiseg {__version__}",
        pixels=pixels,
        backend=None if pixels else slide.backend,
    )
    if os.path.isfile(folder):  # not `is_file`, which raises where nobody may look: that is for `make_folder` to tell
        raise StoreError(f"{folder} is a file, not a tile store: choose another --out")
    make_folder(folder)
    with _sole_writer(folder):
        if not (folder / "zarr.json").exists():
            _write_skeleton(folder, grid, wanted)
        stored = read_attributes(folder)
        require_same(folder, stored, grid)
        if stored.pixels != pixels:
            has = "pixels" if stored.pixels else "coordinates only"
            raise StoreError(f"{folder} cannot be used: it holds {has}; choose another store, or delete this one")
        if not stored.complete and stored.software != wanted.software:
            raise StoreError(
                f"{folder} was begun by {stored.software} and this is {wanted.software}: "
                "delete it, or finish it with the version that began it"
            )
        # Not below `embeddings`: a query may be writing there at this moment.
        for leftover in (*folder.glob(".*.tmp"), *(folder / "pixels").rglob(".*.tmp")):
            with suppress(OSError):  # somebody else's, or a disk that is only read
                leftover.unlink()
        if pixels:
            # Without leave to skip, what was left out before is tried again.
            gaps = on_bad_tile == "skip"
            _write_missing_shards(SlideTiles(slide, grid, on_bad_tile), folder, gaps, progress)
        finished = replace(stored, complete=True, left_out=_left_out(folder, len(grid)) if pixels else ())
        if stored != finished:
            check_unchanged(slide, all_read=not finished.left_out)
            write_group(folder, {"wsiseg": finished.to_json()})
    return TileStore.open(folder, on_bad_tile=on_bad_tile)


def _write_missing_shards(
    source: SlideTiles, folder: Path, gaps: bool, progress: Callable[[int, int], None] | None
) -> None:
    total = len(source.grid)
    missing = [
        shard
        for shard in range(-(-total // SHARD_TILES))
        if not _is_whole(shard_file(folder, shard), shard_tiles(shard, total), gaps)
    ]
    wanted = [shard * SHARD_TILES + place for shard in missing for place in range(shard_tiles(shard, total))]
    done = total - len(wanted)
    if progress:
        progress(done, total)
    with (
        closing(source.tiles(wanted)) as tiles,
        closing(map_ahead(_encoded, tiles, workers=WORKERS, ahead=2 * WORKERS)) as patches,
    ):
        for shard in missing:
            parts = []
            for patch in islice(patches, shard_tiles(shard, total)):
                parts.append(patch)
                done += 1
                if progress:
                    progress(done, total)
            file = shard_file(folder, shard)
            make_folder(file.parent)
            with atomic_write(file) as out:
                out.writelines(encode_shard(parts, SHARD_TILES))


def _encoded(tile: np.ndarray | None) -> bytes | None:
    return None if tile is None else encode_chunk(tile)


def _left_out(folder: Path, total: int) -> tuple[int, ...]:
    """The tiles without pixels, of shards that are all there."""
    gaps: list[int] = []
    for shard in range(-(-total // SHARD_TILES)):
        with open(shard_file(folder, shard), "rb") as file:
            index = shard_index(file, shard_tiles(shard, total))
        absent = np.flatnonzero(index[:, 0] == -1)
        gaps.extend((shard * SHARD_TILES + absent).tolist())
    return tuple(gaps)


def _is_whole(file: Path, tiles: int, gaps: bool) -> bool:
    """Whether a shard is there, with all of its tiles, or with `gaps` perhaps without some."""
    try:
        with open(file, "rb") as shard:
            index = shard_index(shard, tiles)
    except (OSError, ValueError):
        return False
    return gaps or bool((index != -1).all())


def _write_skeleton(folder: Path, grid: Grid, attributes: StoreAttributes) -> None:
    """The arrays' metadata and the coordinates, then the group's `zarr.json`, which makes it a store."""
    foreign = [entry.name for entry in folder.iterdir() if not _is_leftover(entry)]
    if foreign:
        raise StoreError(f"{folder} is a folder with other things in it ({foreign[0]}): choose another --out")
    import zarr
    from zarr.codecs import ZstdCodec

    tiles, size = len(grid), grid.spec.tile_size
    try:
        (folder / BEGUN).touch()
        for name in ARRAYS:  # what an interrupted run left
            shutil.rmtree(folder / name, ignore_errors=True)
        if attributes.pixels:
            zarr.create_array(
                folder / "pixels",
                shape=(tiles, size, size, 3),
                chunks=(1, size, size, 3),
                shards=(SHARD_TILES, size, size, 3),
                dtype="uint8",
                compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
                dimension_names=("tile", "y", "x", "rgb"),
                config={"write_empty_chunks": True},
            )
        for name, values in (
            ("m_xy", grid.m_xy.astype(np.int64)),
            ("tissue", grid.tissue.astype(np.float32)),
        ):
            array = zarr.create_array(
                folder / name,
                shape=values.shape,
                chunks=(max(1, tiles), *values.shape[1:]),
                dtype=values.dtype,
                config={"write_empty_chunks": True},
            )
            if tiles:
                array[...] = values
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    write_group(folder, {"wsiseg": attributes.to_json()})


def _is_leftover(entry: Path) -> bool:
    """Whether an interrupted run left this; a folder or array of the user's may be called `tissue` or `pixels`, too."""
    if entry.name in ARRAYS and entry.is_dir():
        ours = entry.with_name(BEGUN).exists()
        return ours and all(part.name in ("zarr.json", "c") or part.suffix == ".partial" for part in entry.iterdir())
    return entry.name.startswith(".") and entry.suffix == ".tmp"


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back from a killed process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; shards are whole there all the same
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{folder} is being written by another process: wait for it") from error
        except OSError:  # a disk without locks, such as some network shares: as on Windows
            pass
        yield
    finally:
        os.close(handle)
