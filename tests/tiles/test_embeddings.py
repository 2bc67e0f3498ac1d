"""Kept embeddings: what was added is read back, by Zarr too; whatever is not whole counts as not there."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiles.fakes import FakeSlide, all_tissue
from wsiseg.tiles import Embeddings, GridSpec, TileStore, plan_grid, write_store

SLIDE: Any = FakeSlide(dimensions=(400, 300))
GRID = plan_grid(SLIDE, GridSpec(0.5, tile_size=48, overlap=8), tissue=all_tissue(SLIDE))
TILES = len(GRID)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(SLIDE, GRID, tmp_path_factory.mktemp("store") / "slide.zarr").path


@pytest.fixture
def store(tmp_path: Path, finished: Path) -> TileStore:
    return TileStore.open(shutil.copytree(finished, tmp_path / "slide.zarr"))


def open_of(store: TileStore, fingerprint: str = "f00d") -> Embeddings:
    return Embeddings(store, model_name="tiny", model_fingerprint=fingerprint)


def row(tile: int) -> list[np.ndarray]:
    rng = np.random.default_rng(tile)
    return [rng.normal(size=shape).astype(np.float16) for shape in ((3, 4), (2, 2, 2))]


def keep(store: TileStore, tiles: list[int], fingerprint: str = "f00d") -> None:
    embeddings = open_of(store, fingerprint)
    embeddings.add("seen", tiles, [row(tile) for tile in tiles])
    embeddings.flush()


def kept(store: TileStore, fingerprint: str = "f00d") -> list[int]:
    """The tiles whose rows are kept, each compared with what was added."""
    rows = open_of(store, fingerprint).read("seen", range(TILES))
    for tile, arrays in enumerate(rows):
        if arrays is not None:
            assert [array.dtype for array in arrays] == [np.float16] * 2
            assert all((a == b).all() for a, b in zip(arrays, row(tile), strict=True))
    return [tile for tile, arrays in enumerate(rows) if arrays is not None]


@given(st.lists(st.sets(st.integers(0, TILES - 1), min_size=1), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_query_adds_to_what_earlier_ones_left(finished: Path, visits: list[set[int]]) -> None:
    store = TileStore.open(finished)
    shutil.rmtree(finished / "embeddings", ignore_errors=True)
    for tiles in visits:
        keep(store, sorted(tiles))
    everything = sorted(set().union(*visits))
    assert kept(store) == everything
    assert open_of(store).has_all("seen") == (everything == list(range(TILES)))
    shutil.rmtree(finished / "embeddings")


def test_zarr_reads_them_and_zeros_where_there_is_none(store: TileStore) -> None:
    keep(store, [1, 40])
    group: Any = zarr.open_group(store.path, mode="r")["embeddings"]
    [(name, of_model)] = group.groups()
    assert name.startswith("f00d-")
    assert of_model.attrs["wsiseg"]["model"] == {"name": "tiny", "fingerprint": "f00d"}
    array = of_model["seen"]
    assert (array.shape, array.dtype, array.attrs["shapes"]) == ((TILES, 20), np.float16, [[3, 4], [2, 2, 2]])
    values = array[...]
    for tile in range(TILES):
        flat = np.concatenate([a.ravel() for a in row(tile)]) if tile in (1, 40) else np.zeros(20)
        assert (values[tile] == flat).all()


def test_another_model_sees_nothing_of_it(store: TileStore) -> None:
    keep(store, [1])
    assert kept(store, "beef") == []
    keep(store, [2], "beef")
    assert (kept(store), kept(store, "beef")) == ([1], [2])


def test_whole_shards_are_written_as_the_tiles_pass(store: TileStore) -> None:
    embeddings = open_of(store)
    embeddings.add("seen", range(20), [row(tile) for tile in range(20)])
    embeddings.flush(before=20)
    assert kept(store) == list(range(16))
    embeddings.flush()
    assert kept(store) == list(range(20))


@pytest.mark.parametrize("spoil", ["cut", "empty", "flipped", "metadata", "folder"])
def test_what_is_damaged_is_not_there_and_can_be_added_again(store: TileStore, spoil: str) -> None:
    keep(store, [3, 20])
    part = open_of(store).folder / "seen"
    shard = part / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    if spoil == "metadata":
        (part / "zarr.json").write_text("{")
    elif spoil == "folder":
        shutil.rmtree(part)
    else:
        data[len(data) // 8 if spoil == "flipped" else -1] ^= 16
        shard.write_bytes({"cut": data[:-9], "empty": b"", "flipped": data}[spoil])
    assert 3 not in kept(store)
    keep(store, [3, 20])
    assert kept(store) == [3, 20]


def test_a_writer_that_dies_leaves_what_was_whole(store: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before any of its renames: metadata first, then one shard after the other."""
    replace, before = os.replace, {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()}

    class Killed(BaseException):
        pass

    for step in range(1, 8):
        left = step

        def counted(source: str, target: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", counted)
        try:
            keep(store, [0, 17, 33])
        except Killed:
            assert kept(store) == [0, 17, 33][: max(0, step - 4)]
            zarr.open_group(store.path, mode="r")
        else:
            assert step == 7
        monkeypatch.setattr(os, "replace", replace)
        shutil.rmtree(store.path / "embeddings")
    # The store itself is untouched, so `wsiseg tile` has nothing to mend.
    assert {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()} == before


def test_a_store_that_cannot_be_written_is_only_read(store: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(store, [1])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root, modes forbid nothing
    keep(store, [2])
    assert kept(store) == [1]


def test_a_full_disk_ends_the_keeping_with_one_warning(
    store: TileStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    embeddings = open_of(store)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(os, "fsync", full)
        for tile in range(40):
            embeddings.add("seen", [tile], [row(tile)])
            embeddings.flush(before=tile + 1)
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.messages[0]
    assert kept(store) == []
    assert not list(store.path.rglob("*.tmp"))
