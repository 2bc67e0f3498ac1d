"""Tiles in a Zarr v3 store: written once, resumed after any interruption, read many times.

    slide.zarr/zarr.json          group; attribute `wsiseg`: slide, grid, software, complete
    slide.zarr/pixels             (N, H, W, 3) uint8, shards of 64 patches, one zstd-1 chunk per patch
    slide.zarr/m_xy               (N, 2) int64, corners in model pixels
    slide.zarr/tissue             (N,) float32

A store without pixels holds coordinates only, and reads the slide again when tiles are asked for.
A store is built in three steps, each whole or absent: the arrays' metadata, sealed by the group's
`zarr.json`; one shard after another; `complete` in the group. Killed anywhere, the next run goes on from what
is whole, and the finished store is the same byte for byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from wsiseg import __version__
from wsiseg.errors import OutputError, StoreError
from wsiseg.files import atomic_write, make_folder
from wsiseg.slide.opening import check_unchanged
from wsiseg.slide.source import is_url
from wsiseg.tiles.ahead import map_ahead, read_ahead
from wsiseg.tiles.attributes import StoreAttributes, explain_difference, read_attributes, write_group
from wsiseg.tiles.grid import Grid, SlideIdentity
from wsiseg.tiles.shard import ZSTD_LEVEL, decode_chunk, encode_chunk, encode_shard, read_chunk, read_index
from wsiseg.tiles.stream import READ_AHEAD_BATCHES, WORKERS, Batches, OnBadTile, SlideTiles, batch_indices

if TYPE_CHECKING:
    import zarr

    from wsiseg.slide import Slide

SHARD_TILES = 64
ARRAYS = ("pixels", "m_xy", "tissue")


class TileStore:
    """A `TileSource` over a finished store. Open it with `TileStore.open`."""

    def __init__(
        self, path: Path, grid: Grid, attributes: StoreAttributes, on_bad_tile: OnBadTile = "stop"
    ) -> None:
        self.path = path
        self.grid = grid
        self.attributes = attributes
        self._on_bad_tile = on_bad_tile

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, grid: Grid | None = None, on_bad_tile: OnBadTile = "stop"
    ) -> TileStore:
        """Open a finished store; with `grid`, only if it holds exactly that grid of that slide.

        on_bad_tile: what to do with tiles that could not be read when it was made.

        Raises:
            StoreError: no store, incomplete, malformed, or of another slide or grid.
        """
        folder = Path(path)
        attributes = read_attributes(folder)
        if not attributes.complete:
            raise StoreError(f"{folder} is incomplete: run `wsiseg tile` again, it goes on where it stopped")
        if grid is not None:
            _require_same(folder, attributes, grid)
        return cls(folder, _read_grid(folder, attributes), attributes, on_bad_tile)

    @property
    def pixels(self) -> zarr.Array[Any]:
        """The Zarr array (N, H, W, 3) uint8, for readers who want it as such."""
        import zarr

        return zarr.open_array(self.path / "pixels", mode="r")

    def batches(self, size: int, first: int = 0) -> Batches:
        """As `TileSource.batches`.

        Raises:
            StoreError: a shard is missing or damaged; a tile could not be read when the store was made, and none
                may be left out; or the slide is gone or changed, where it has to be read.
        """
        if not self.attributes.pixels:
            return self._slide_batches(size, first)
        left_out = self.attributes.left_out
        if left_out and self._on_bad_tile == "stop":
            raise StoreError(
                f"{self.path} lacks {len(left_out)} tiles that could not be read from the slide: "
                "leave them out with --on-bad-tile skip, or mend the slide and tile it again"
            )

        def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for indices in batch_indices(len(self.grid), size, first):
                there = np.setdiff1d(indices, left_out)
                if len(there):
                    yield there, self.tiles(there)

        return read_ahead(read(), READ_AHEAD_BATCHES)

    def tiles(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The tiles (n, H, W, 3) uint8 with these indices, in any order.

        Raises:
            StoreError: as `batches`.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        size = self.grid.spec.tile_size
        out = np.empty((len(wanted), size, size, 3), np.uint8)
        if not self.attributes.pixels:
            with self._open_slide() as slide, closing(SlideTiles(slide, self.grid).tiles(wanted.tolist())) as tiles:
                for i, tile in enumerate(tiles):
                    assert tile is not None  # none is left out here
                    out[i] = tile
            return out
        runs = np.flatnonzero(np.diff(wanted // SHARD_TILES, prepend=-1, append=-1))
        for first, stop in pairwise(runs):
            shard = int(wanted[first]) // SHARD_TILES
            file = _shard_file(self.path, shard)
            try:
                with open(file, "rb") as opened:
                    index = _whole_index(opened, _shard_tiles(shard, len(self.grid)), gaps=True)
                    for place, tile in zip(wanted[first:stop] % SHARD_TILES, out[first:stop], strict=True):
                        decode_chunk(read_chunk(opened, index, place), tile)
            except (OSError, RuntimeError, ValueError) as error:
                raise StoreError(
                    f"{file} is missing or damaged ({error}): delete it and run `wsiseg tile` again"
                ) from error
        return out

    def _slide_batches(self, size: int, first: int) -> Batches:
        with self._open_slide() as slide:
            source = SlideTiles(slide, self.grid, self._on_bad_tile)
            with closing(source.batches(size, first)) as batches:
                yield from batches

    def _open_slide(self) -> Slide:
        """The slide that the store was made from: where it lay then, or beside the store."""
        from wsiseg.slide import open_slide

        identity = self.grid.slide
        beside = str(self.path.parent / Path(identity.source).name)
        reason = f"it lies neither at {identity.source} nor at {beside}"
        for source in (identity.source, beside):
            if not is_url(source) and not Path(source).exists():
                continue
            slide = open_slide(source, slide_mpp=(identity.mpp_x, identity.mpp_y))
            if replace(SlideIdentity.of(slide), source=identity.source) == identity:
                return slide
            slide.close()
            reason = f"{source} has changed, or is another slide"
        raise StoreError(
            f"{self.path} holds no pixels and its slide cannot be read: {reason}; "
            "put the slide back, or run `wsiseg tile` on it with another --out"
        )


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
    wanted = StoreAttributes.of(grid, level=level, software=f"wsiseg {__version__}", pixels=pixels)
    if folder.is_file():
        raise StoreError(f"{folder} is a file, not a tile store: choose another --out")
    make_folder(folder)
    with _sole_writer(folder):
        if not (folder / "zarr.json").exists():
            _write_skeleton(folder, grid, wanted)
        stored = read_attributes(folder)
        _require_same(folder, stored, grid)
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
        if not _is_whole(_shard_file(folder, shard), _shard_tiles(shard, total), gaps)
    ]
    wanted = [shard * SHARD_TILES + place for shard in missing for place in range(_shard_tiles(shard, total))]
    done = total - len(wanted)
    if progress:
        progress(done, total)
    with (
        closing(source.tiles(wanted)) as tiles,
        closing(map_ahead(_encoded, tiles, workers=WORKERS, ahead=2 * WORKERS)) as patches,
    ):
        for shard in missing:
            parts = []
            for patch in islice(patches, _shard_tiles(shard, total)):
                parts.append(patch)
                done += 1
                if progress:
                    progress(done, total)
            file = _shard_file(folder, shard)
            make_folder(file.parent)
            with atomic_write(file) as out:
                out.writelines(encode_shard(parts, SHARD_TILES))


def _encoded(tile: np.ndarray | None) -> bytes | None:
    return None if tile is None else encode_chunk(tile)


def _left_out(folder: Path, total: int) -> tuple[int, ...]:
    """The tiles without pixels, of shards that are all there."""
    gaps: list[int] = []
    for shard in range(-(-total // SHARD_TILES)):
        with open(_shard_file(folder, shard), "rb") as file:
            index = _whole_index(file, _shard_tiles(shard, total), gaps=True)
        absent = np.flatnonzero(index[: _shard_tiles(shard, total), 0] == -1)
        gaps.extend((shard * SHARD_TILES + absent).tolist())
    return tuple(gaps)


def _shard_file(folder: Path, shard: int) -> Path:
    return folder / "pixels" / "c" / str(shard) / "0" / "0" / "0"


def _is_whole(file: Path, tiles: int, gaps: bool) -> bool:
    try:
        with open(file, "rb") as shard:
            _whole_index(shard, tiles, gaps)
    except (OSError, ValueError):
        return False
    return True


def _whole_index(shard: IO[bytes], tiles: int, gaps: bool) -> np.ndarray:
    """As `read_index`. Raises ValueError unless it holds just its first `tiles` chunks; with `gaps`, some of them."""
    index = read_index(shard, SHARD_TILES)
    if index is None or (not gaps and (index[:tiles] == -1).any()) or (index[tiles:] != -1).any():
        raise ValueError("its index is not that of a whole shard")
    return index


def _shard_tiles(shard: int, total: int) -> int:
    return min(SHARD_TILES, total - shard * SHARD_TILES)


def _write_skeleton(folder: Path, grid: Grid, attributes: StoreAttributes) -> None:
    """The arrays' metadata and the coordinates, then the group's `zarr.json`, which makes it a store."""
    foreign = [entry.name for entry in folder.iterdir() if not _is_leftover(entry)]
    if foreign:
        raise StoreError(f"{folder} is a folder with other things in it ({foreign[0]}): choose another --out")
    import zarr
    from zarr.codecs import ZstdCodec

    tiles, size = len(grid), grid.spec.tile_size
    try:
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
    """Whether an interrupted run left this; a folder of the user's may be called `tissue` or `pixels`, too."""
    if entry.name in ARRAYS and entry.is_dir():
        return all(part.name in ("zarr.json", "c") or part.suffix == ".partial" for part in entry.iterdir())
    return entry.name.startswith(".") and entry.suffix == ".tmp"


def _read_grid(folder: Path, attributes: StoreAttributes) -> Grid:
    import zarr

    try:
        m_xy = np.asarray(zarr.open_array(folder / "m_xy", mode="r")[...])
        tissue = np.asarray(zarr.open_array(folder / "tissue", mode="r")[...])
    except Exception as error:  # zarr's errors for broken metadata and chunks have no common root
        raise StoreError(f"{folder} is damaged (its coordinates): delete it and run `wsiseg tile`") from error
    grid = Grid(attributes.spec, attributes.slide, attributes.m_width, attributes.m_height, m_xy, tissue)
    if (
        m_xy.shape != (attributes.tiles, 2)
        or tissue.shape != (attributes.tiles,)
        or grid.fingerprint != attributes.grid_fingerprint
    ):
        raise StoreError(f"{folder} is damaged: its coordinates are not those that its attributes name")
    return grid


def _require_same(folder: Path, stored: StoreAttributes, grid: Grid) -> None:
    wanted = StoreAttributes.of(grid, level=stored.level, software=stored.software)
    if reason := explain_difference(stored, wanted):
        raise StoreError(f"{folder} cannot be used: {reason}; choose another store, or delete this one")


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
        yield
    finally:
        os.close(handle)
