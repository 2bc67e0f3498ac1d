"""The store: what was written is read back, by Zarr too; what is not exactly that store is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiles.fakes import FakeSlide, all_tissue
from wsiseg.errors import StoreError
from wsiseg.tiles import GridSpec, SlideTiles, TileStore, is_store, plan_grid, write_store
from wsiseg.tiles.attributes import parse_attributes
from wsiseg.tiles.shard import crc32c

SLIDE: Any = FakeSlide(dimensions=(700, 500))
SPEC = GridSpec(0.5, tile_size=48, overlap=8)


@pytest.fixture(scope="module")
def grid() -> Any:
    return plan_grid(SLIDE, SPEC, tissue=all_tissue(SLIDE))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, grid: Any) -> Path:
    path = tmp_path_factory.mktemp("store") / "slide.zarr"
    write_store(SLIDE, grid, path)
    return path


@pytest.fixture
def store(tmp_path: Path, finished: Path) -> Path:
    """A copy that the test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "slide.zarr"))


def edit(store: Path, change: Any) -> None:
    group = json.loads((store / "zarr.json").read_text())
    change(group["attributes"]["wsiseg"])
    (store / "zarr.json").write_text(json.dumps(group))


def test_the_store_gives_back_the_slides_tiles(finished: Path, grid: Any) -> None:
    from_slide = list(SlideTiles(SLIDE, grid).batches(50))
    store = TileStore.open(finished, grid=grid)
    from_store = list(store.batches(50))
    assert len(from_slide) == len(from_store)
    for (indices, tiles), (indices_again, tiles_again) in zip(from_slide, from_store, strict=True):
        assert (indices == indices_again).all()
        assert (tiles == tiles_again).all()
    for source in (SlideTiles(SLIDE, grid), store):  # from the middle of a batch on
        begun = [(indices.tolist(), tiles) for indices, tiles in source.batches(50, 70)]
        assert [indices for indices, _ in begun[:2]] == [list(range(70, 100)), list(range(100, 150))]
        assert (begun[0][1] == from_slide[1][1][20:]).all()
    shuffled = np.random.default_rng(0).permutation(len(grid))[:90]
    everything = np.concatenate([tiles for _, tiles in from_slide])
    assert (store.tiles(shuffled) == everything[shuffled]).all()
    assert store.tiles([]).shape == (0, 48, 48, 3)
    assert (store.grid.m_xy == grid.m_xy).all()
    assert (store.grid.tissue == grid.tissue).all()
    assert store.grid.fingerprint == grid.fingerprint


@pytest.mark.parametrize("pipeline", ["zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"])
def test_zarr_reads_the_same_pixels_and_the_identity(finished: Path, grid: Any, pipeline: str) -> None:
    if pipeline.startswith("zarrs"):
        pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        group: Any = zarr.open_group(finished, mode="r")
        pixels = group["pixels"][...]
    assert pixels.shape == (len(grid), 48, 48, 3)
    assert (pixels == TileStore.open(finished).tiles(range(len(grid)))).all()
    assert group["pixels"].shards == (64, 48, 48, 3)
    assert group["pixels"].chunks == (1, 48, 48, 3)
    said = group.attrs["wsiseg"]
    assert said["slide"]["fingerprint"] == "fake"
    assert (said["slide"]["mpp_x"], said["level"], said["spec"]["overlap"]) == (0.5, 0, 8)
    assert said["software"].startswith("wsiseg ")


def test_zarr_writes_shards_that_we_read(finished: Path, store: Path, grid: Any) -> None:
    shutil.rmtree(store / "pixels" / "c")
    array: Any = zarr.open_array(store / "pixels", mode="r+", config={"write_empty_chunks": True})
    expected = TileStore.open(finished).tiles(range(len(grid)))
    array[...] = expected
    assert (zarr.open_array(store / "pixels", mode="r")[...] == expected).all()
    # Zarr lays the chunks of a shard down in another order: allowed by the format, but not ours, so a
    # resumed run writes them anew rather than trusting them.
    write_store(SLIDE, grid, store)
    assert (TileStore.open(store).tiles(range(len(grid))) == expected).all()
    shard = "pixels/c/1/0/0/0"
    assert (store / shard).read_bytes() == (finished / shard).read_bytes()


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_an_empty_grid_makes_an_empty_store(tmp_path: Path) -> None:
    nothing = plan_grid(SLIDE, SPEC, tissue=replace(all_tissue(SLIDE), mask=np.zeros((30, 40), bool)))
    store = write_store(SLIDE, nothing, tmp_path / "empty.zarr")
    assert list(store.batches(4)) == []
    assert len(TileStore.open(tmp_path / "empty.zarr").grid) == 0


def test_whole_numbers_may_be_given_as_such(tmp_path: Path) -> None:
    spec = GridSpec(1, tile_size=256, overlap=0, min_tissue=0)
    made = write_store(SLIDE, plan_grid(SLIDE, spec, tissue=all_tissue(SLIDE)), tmp_path / "slide.zarr")
    assert made.grid.spec == spec == GridSpec(1.0, tile_size=256, overlap=0, min_tissue=0.0)


def test_writing_again_reads_no_pixel_wherever_the_slide_lies_by_now(store: Path, grid: Any) -> None:
    slide: Any = FakeSlide(dimensions=(700, 500), source="moved.svs")
    calls: list[tuple[int, int]] = []
    moved = plan_grid(slide, SPEC, tissue=all_tissue(slide))
    write_store(slide, moved, store, progress=lambda done, total: calls.append((done, total)))
    assert slide.reads == 0
    assert calls == [(len(grid), len(grid))]


@pytest.mark.parametrize(
    ("slide", "spec", "reason"),
    [
        (replace(SLIDE, fingerprint="other"), SPEC, "another slide"),
        (SLIDE, replace(SPEC, overlap=16), "grid has overlap 8, asked for 16"),
        (SLIDE, replace(SPEC, mpp=0.25), "mpp 0.5, asked for 0.25"),
        (replace(SLIDE, mpp=(0.5, 0.4)), SPEC, "slide has mpp_y 0.5, asked for 0.4"),
    ],
)
def test_a_store_of_another_slide_or_grid_is_never_reused(store: Path, slide: Any, spec: GridSpec, reason: str) -> None:
    other = plan_grid(slide, spec, tissue=all_tissue(slide))
    before = sorted((file, file.stat().st_mtime_ns) for file in store.rglob("*"))
    with pytest.raises(StoreError, match=reason):
        write_store(slide, other, store)
    with pytest.raises(StoreError, match=reason):
        TileStore.open(store, grid=other)
    assert sorted((file, file.stat().st_mtime_ns) for file in store.rglob("*")) == before


def test_a_store_with_tiles_elsewhere_is_refused(store: Path, grid: Any) -> None:
    fewer = replace(grid, m_xy=grid.m_xy[1:], tissue=grid.tissue[1:])
    with pytest.raises(StoreError, match="tissue was found in other places"):
        write_store(SLIDE, fewer, store)


def test_an_incomplete_store_says_how_to_finish_it(store: Path) -> None:
    edit(store, lambda said: said.update(complete=False))
    with pytest.raises(StoreError, match="incomplete: run `wsiseg tile` again"):
        TileStore.open(store)
    assert is_store(store)


def test_a_store_begun_by_another_version_is_not_continued(store: Path, grid: Any) -> None:
    edit(store, lambda said: said.update(software="wsiseg 0.0.1"))
    assert write_store(SLIDE, grid, store).attributes.software == "wsiseg 0.0.1"  # finished, it is as good as ever
    edit(store, lambda said: said.update(complete=False, software="wsiseg 0.0.1"))
    with pytest.raises(StoreError, match=r"begun by wsiseg 0\.0\.1"):
        write_store(SLIDE, grid, store)


@pytest.mark.parametrize("spoil", ["missing", "cut", "empty", "flipped index"])
def test_a_broken_shard_is_found_when_read_and_mended_by_the_next_run(
    store: Path, finished: Path, grid: Any, spoil: str
) -> None:
    shard = store / "pixels" / "c" / "1" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    if spoil == "missing":
        shard.unlink()
    elif spoil == "cut":
        shard.write_bytes(data[:-7])
    elif spoil == "empty":
        shard.write_bytes(b"")
    else:
        data[-100] ^= 1
        shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"missing or damaged .* run `wsiseg tile` again"):
        list(TileStore.open(store).batches(16))
    write_store(SLIDE, grid, store)
    assert shard.read_bytes() == (finished / shard.relative_to(store)).read_bytes()


def test_a_flipped_bit_in_the_pixels_is_never_served(store: Path) -> None:
    shard = store / "pixels" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 16
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="is missing or damaged"):
        list(TileStore.open(store).batches(16))


@pytest.mark.parametrize(
    ("name", "content"),
    [("m_xy/zarr.json", b""), ("m_xy/c/0/0", b"not zstd"), ("tissue/zarr.json", b"{"), ("zarr.json", b"")],
)
def test_a_broken_piece_of_metadata_is_a_store_error(store: Path, name: str, content: bytes) -> None:
    (store / name).write_bytes(content)
    with pytest.raises(StoreError, match=r"slide\.zarr"):
        TileStore.open(store)


def test_coordinates_of_another_grid_are_refused(store: Path) -> None:
    array: Any = zarr.open_array(store / "m_xy", mode="r+")
    array[5] = [1, 2]
    with pytest.raises(StoreError, match="not those that its attributes name"):
        TileStore.open(store)


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path, grid: Any) -> None:
    with pytest.raises(StoreError, match="no tile store at"):
        TileStore.open(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "figures" / "tissue").mkdir(parents=True)  # a name that arrays of a store have, too
    (tmp_path / "figures" / "tissue" / "slide.png").write_text("mine")
    zarr.create_array(tmp_path / "arrays" / "pixels", shape=(9,), dtype="uint8")[...] = 1
    before = sorted(tmp_path.rglob("*"))
    for target in (tmp_path, tmp_path / "notes.txt", tmp_path / "figures", tmp_path / "arrays"):
        assert not is_store(target)
        with pytest.raises(StoreError, match="choose another --out"):
            write_store(SLIDE, grid, target)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_temporary_files_of_the_store_itself_are_swept(store: Path, grid: Any) -> None:
    ours, of_a_query = (store / part / "c" / "0" / ".0.1234.tmp" for part in ("pixels", "embeddings/m-1/image_tokens"))
    for file in (ours, of_a_query):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    write_store(SLIDE, grid, store)
    assert (ours.exists(), of_a_query.exists()) == (False, True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@given(st.data(), json_values)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_attributes_are_either_read_exactly_or_refused(finished: Path, data: st.DataObject, value: Any) -> None:
    said = json.loads((finished / "zarr.json").read_text())["attributes"]["wsiseg"]
    assert parse_attributes(said).to_json() == json_like(said)
    holder = data.draw(st.sampled_from([said, said["spec"], said["slide"]]))
    key = data.draw(st.sampled_from(sorted(holder)) | st.text(max_size=6))
    if data.draw(st.booleans()):
        holder.pop(key, None)
    else:
        holder[key] = value
    try:
        parsed = parse_attributes(said)
    except StoreError:
        return
    assert parsed.to_json() == json_like(said)


@given(json_values)
def test_any_json_as_attributes_is_refused(value: Any) -> None:
    with pytest.raises(StoreError):
        parse_attributes(value)


def json_like(said: Any) -> Any:
    """As `to_json` gives it: JSON has no tuples."""
    bounds = said["slide"]["l0_bounds"]
    slide = {**said["slide"], "l0_bounds": tuple(bounds) if bounds else None}
    return {**said, "slide": slide, "left_out": tuple(said["left_out"])}
