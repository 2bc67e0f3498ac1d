"""What a model saw of the tiles, kept in their store, so that a second query reads no pixel and encodes no image.

    slide.zarr/embeddings/<model>-<version>/zarr.json   group; attribute `wsiseg`: model, software
    slide.zarr/embeddings/<model>-<version>/<part>      (N, length) float16, shards of 16 tiles, one chunk a tile;
                                                        attribute `shapes`: of the arrays that lie in one row

`<model>` is the fingerprint of configuration and weights, `<version>` that of wsiseg: whatever could change an
embedding leads to another group. A row is there or not: a shard appears whole, by a rename, and its index says
which tiles it holds; later queries add to it. Of two writers at once the later rename wins, and what it did not
know is computed again. Nothing here is needed: whatever cannot be read or written is computed again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from wsiseg import __version__
from wsiseg.errors import OutputError
from wsiseg.files import atomic_write, make_folder
from wsiseg.tiles.attributes import write_group, zarr_attributes
from wsiseg.tiles.shard import ZSTD_LEVEL, decode_chunk, encode_chunk, encode_shard, read_chunk, read_index
from wsiseg.tiles.store import TileStore

log = logging.getLogger(__name__)

SHARD_TILES = 16  # a tile may take a megabyte, and what is not yet in a shard waits in memory

Row = list[np.ndarray]  # the float16 arrays of one tile


class Embeddings:
    """The embeddings of one model in a tile store, for any number of threads; one of them calls `flush`."""

    def __init__(self, store: TileStore, *, model_name: str, model_fingerprint: str) -> None:
        self.folder = store.path / "embeddings" / f"{model_fingerprint}-{__version__}"
        self.tiles = len(store.grid)
        self._about = {
            "kind": "wsiseg embeddings",
            "model": {"name": model_name, "fingerprint": model_fingerprint},
            "software": f"wsiseg {__version__}",
        }
        self._waiting: dict[tuple[str, int], dict[int, bytes]] = {}  # part, shard -> encoded rows by place
        self._shapes: dict[str, list[tuple[int, ...]]] = {}
        self._writable = os.access(store.path, os.W_OK)
        self._lock = Lock()  # of _waiting

    def read(self, part: str, tiles: Sequence[int] | np.ndarray) -> list[Row | None]:
        """The rows of these tiles, None for those that are not kept or damaged."""
        shapes = self._shapes_of(part)
        rows: list[Row | None] = [None] * len(tiles)
        if shapes is None:
            return rows
        places: dict[int, list[tuple[int, int]]] = {}
        for i, tile in enumerate(tiles):
            shard, place = divmod(int(tile), SHARD_TILES)
            places.setdefault(shard, []).append((i, place))
        for shard, wanted in places.items():
            kept = self._kept(part, shard, [place for _, place in wanted])
            for i, place in wanted:
                rows[i] = _decode(kept[place], shapes) if place in kept else None
        return rows

    def has_all(self, part: str) -> bool:
        """Whether the rows of all tiles are kept; looks at the shards' indices only."""
        for shard in range(-(-self.tiles // SHARD_TILES)):
            try:
                with open(self._shard_file(part, shard), "rb") as file:
                    index = read_index(file, SHARD_TILES)
            except OSError:
                return False
            if index is None or (index[: self.tiles - shard * SHARD_TILES] == -1).any():
                return False
        return True

    def add(self, part: str, tiles: Iterable[int], rows: Iterable[Row]) -> None:
        """Keep these rows; `flush` writes them. They must have the same shapes for all tiles of a part."""
        if not self._writable:
            return
        for tile, row in zip(tiles, rows, strict=True):
            shard, place = divmod(int(tile), SHARD_TILES)
            self._shapes.setdefault(part, [array.shape for array in row])
            flat = np.concatenate([array.ravel() for array in row], dtype="<f2")
            chunk = encode_chunk(flat)
            with self._lock:
                self._waiting.setdefault((part, shard), {})[place] = chunk

    def flush(self, before: int | None = None) -> None:
        """Write what was added: all of it, or only whole shards of tiles below `before`.

        A disk that is full, or a store that cannot be written, ends the keeping with a warning.
        """
        with self._lock:
            whole = [key for key in sorted(self._waiting) if before is None or (key[1] + 1) * SHARD_TILES <= before]
            ready = [(*key, self._waiting.pop(key)) for key in whole]
        for part, shard, added in ready:
            try:
                self._write(part, shard, added)
            except OutputError as error:
                log.warning("embeddings are no longer kept for later queries: %s", error)
                self._writable = False
                with self._lock:
                    self._waiting.clear()
                return

    def _kept(self, part: str, shard: int, places: Iterable[int]) -> dict[int, bytes]:
        """The encoded rows of a shard at these places, as far as they are there."""
        try:
            with open(self._shard_file(part, shard), "rb") as file:
                index = read_index(file, SHARD_TILES)
                if index is None:
                    return {}
                return {place: read_chunk(file, index, place) for place in places if index[place, 0] != -1}
        except OSError:
            return {}

    def _write(self, part: str, shard: int, added: dict[int, bytes]) -> None:
        self._write_metadata(part)
        rows = self._kept(part, shard, range(SHARD_TILES)) | added
        file = self._shard_file(part, shard)
        make_folder(file.parent)
        with atomic_write(file) as out:
            out.writelines(encode_shard([rows.get(place) for place in range(SHARD_TILES)], SHARD_TILES))

    def _write_metadata(self, part: str) -> None:
        """The groups and the array's `zarr.json`, from the outside in; each only once."""
        make_folder(self.folder / part)
        for group, about in ((self.folder.parent, {}), (self.folder, {"wsiseg": self._about})):
            if not (group / "zarr.json").exists():
                write_group(group, about)
        if self._stored_shapes(part) is None:
            with atomic_write(self.folder / part / "zarr.json") as file:
                file.write(_array_metadata(self.tiles, self._shapes[part]))

    def _shapes_of(self, part: str) -> list[tuple[int, ...]] | None:
        if part not in self._shapes and (stored := self._stored_shapes(part)) is not None:
            self._shapes[part] = stored
        return self._shapes.get(part)

    def _stored_shapes(self, part: str) -> list[tuple[int, ...]] | None:
        try:
            return [tuple(int(n) for n in shape) for shape in zarr_attributes(self.folder / part)["shapes"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _shard_file(self, part: str, shard: int) -> Path:
        return self.folder / part / "c" / str(shard) / "0"


def _decode(chunk: bytes, shapes: list[tuple[int, ...]]) -> Row | None:
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
    flat = np.empty(ends[-1], "<f2")
    try:
        decode_chunk(chunk, flat)
    except (RuntimeError, ValueError):
        return None
    parts = np.split(flat, ends[:-1])
    return [values.reshape(shape) for values, shape in zip(parts, shapes, strict=True)]


def _array_metadata(tiles: int, shapes: list[tuple[int, ...]]) -> bytes:
    """The `zarr.json` of a part, as zarr writes it."""
    import zarr
    from zarr.codecs import ZstdCodec

    length = sum(int(np.prod(shape)) for shape in shapes)
    memory: dict[str, zarr.core.buffer.Buffer] = {}
    zarr.create_array(
        zarr.storage.MemoryStore(memory),
        shape=(tiles, length),
        chunks=(1, length),
        shards=(SHARD_TILES, length),
        dtype="float16",
        compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
        dimension_names=("tile", "value"),
        attributes={"shapes": [list(shape) for shape in shapes]},
    )
    return memory["zarr.json"].to_bytes()
