"""Tiles that cannot be decoded: stop with a sentence, or leave them out and say how many and where."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import wsiseg
import wsiseg.model
from tests.slide.damage import with_bad_tile
from tests.tiles.fakes import FakeSlide, all_tissue
from wsiseg.cli.main import main
from wsiseg.errors import PixelError, SlideError, StoreError
from wsiseg.fleet import tile_slide
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel, disk, synthetic_slide
from wsiseg.tiles import GridSpec, SlideTiles, TileStore, plan_grid, write_store

MODEL = FakeModel(mpp=0.5, tile_size=128, overlap=32)
OLIVE = [disk(300, 300, 100), disk(900, 600, 60)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "sound.tif"
    synthetic_slide(path, {"olive": OLIVE}, jpeg_quality=95)
    return path


@pytest.fixture(scope="module")
def broken(sound: Path) -> Path:
    """Native tile 7, that is 512 to 768 by 256 to 512, is no JPEG."""
    return with_bad_tile(sound, sound.with_name("broken.tif"), tile=7)


def touches_bad(x: float, y: float) -> bool:
    return 512 - 128 < x < 768 and 256 - 128 < y < 512


@pytest.mark.parametrize("backend", ["openslide", "tiffslide"])  # with OpenSlide, by the decode-once road
def test_skipped_tiles_are_those_that_touch_the_damage_and_the_rest_is_as_ever(
    sound: Path, broken: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = wsiseg.segment(sound, "olive", model=MODEL, backend=backend)
    with pytest.raises(PixelError, match=r"broken\.tif at level-0 pixel"):
        wsiseg.segment(broken, "olive", model=MODEL, backend=backend)
    left = wsiseg.segment(broken, "olive", model=MODEL, backend=backend, on_bad_tile="skip")
    told = [record.getMessage() for record in caplog.records if "a tile is left out" in record.getMessage()]
    assert [message.endswith("further ones are counted only") for message in told] == [False] * 4 + [True]
    expected = [[t.l0_x, t.l0_y] for t in whole.reasoning if touches_bad(t.l0_x, t.l0_y)]
    assert left.run["skipped_tiles"] == expected
    assert left.notes == [f"{len(expected)} of {len(whole.reasoning)} tiles could not be read and were left out"]
    assert "skipped_tiles" not in whole.run
    coarse = wsiseg.segment(broken, "olive", model=MODEL, backend=backend, mpp=0.8, on_bad_tile="skip")
    assert {x for x, _ in coarse.run["skipped_tiles"]} < {tile.l0_x for tile in coarse.reasoning}  # level-0 pixels
    # but for the ids of outlines, which the slide's fingerprint goes into
    said, expected_said = ([replace(t, polygons=()) for t in r.reasoning] for r in (left, whole))
    assert said == [t for t in expected_said if not touches_bad(t.l0_x, t.l0_y)]
    assert [a.geometry for a in left.annotations] == [a.geometry for a in whole.annotations]


def test_what_a_killed_run_left_out_is_not_left_out_without_leave(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "s.tif", {"olive": OLIVE}, l0_width=4400, l0_height=1200, jpeg_quality=95)
    slide = with_bad_tile(tmp_path / "s.tif", tmp_path / "broken.tif", tile=9)  # the thumbnail does not touch it

    def killed(done: int, total: int) -> None:
        if done > total - 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wsiseg.segment(slide, "olive", model=MODEL, on_bad_tile="skip", work=tmp_path / "work", progress=killed)
    with pytest.raises(PixelError, match="leave such tiles out"):
        wsiseg.segment(slide, "olive", model=MODEL, work=tmp_path / "work")


def test_a_slide_of_which_nothing_can_be_read_is_an_error(sound: Path, tmp_path: Path) -> None:
    path = sound
    for tile in range(20):
        path = with_bad_tile(path, tmp_path / f"{tile}.tif", tile)
    with pytest.raises(SlideError, match=r"no tile of .* can be read"):
        wsiseg.segment(path, "olive", model=MODEL, on_bad_tile="skip")


def test_where_only_damaged_tiles_were_asked_the_slide_is_not_called_unreadable(broken: Path) -> None:
    """As in a region; a first pass leaves tiles out, too."""
    result = wsiseg.segment(broken, "olive", model=MODEL, on_bad_tile="skip", region=(640, 384, 1, 1))
    assert result.run["skipped_tiles"]
    assert result.reasoning == list(result.annotations) == []


def test_a_slide_that_changes_or_vanishes_while_it_is_read_is_an_error(
    broken: Path, sound: Path, tmp_path: Path
) -> None:
    def at_the_first_batch(change: Callable[[Path], object], batch_size: int = 16) -> None:
        path = tmp_path / "slide.tif"
        path.write_bytes(broken.read_bytes())

        def progress(done: int, total: int) -> None:
            change(path)

        wsiseg.segment(path, "olive", model=MODEL, on_bad_tile="skip", batch_size=batch_size, progress=progress)

    for batch_size in (16, 999):  # in the midst, or by the end: it may be why tiles are missing
        with pytest.raises(SlideError, match=r"slide\.tif does not exist|cannot open|is no slide"):
            at_the_first_batch(lambda path: path.unlink(missing_ok=True), batch_size)
    other = tmp_path / "other.tif"
    other.write_bytes(sound.read_bytes())
    with pytest.raises(SlideError, match="changed while it was being read"):
        at_the_first_batch(lambda path: other.exists() and other.replace(path))


def test_a_store_of_a_slide_that_changed_on_the_way_is_never_finished(
    broken: Path, sound: Path, tmp_path: Path
) -> None:
    path, other = tmp_path / "slide.tif", tmp_path / "other.tif"
    path.write_bytes(sound.read_bytes())
    other.write_bytes(broken.read_bytes())

    def progress(done: int, total: int) -> None:
        if done == total and other.exists():
            other.replace(path)

    spec = GridSpec(0.5, 128, 32)
    with pytest.raises(SlideError, match=r"slide\.tif changed while it was being read: run again"):
        tile_slide(str(path), tmp_path / "s.zarr", spec, progress=progress)
    with pytest.raises(StoreError):  # it has tiles of both
        TileStore.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="delete this one"):
        tile_slide(str(path), tmp_path / "s.zarr", spec, on_bad_tile="skip")


def test_a_store_lacks_the_bad_tiles_and_says_so(sound: Path, broken: Path, tmp_path: Path) -> None:
    with open_slide(broken) as slide:
        grid = plan_grid(slide, GridSpec(0.5, 128, 32), tissue=all_tissue(slide))  # type: ignore[arg-type]
        with pytest.raises(PixelError, match="--on-bad-tile skip"):
            write_store(slide, grid, tmp_path / "s.zarr")
        write_store(slide, grid, tmp_path / "s.zarr", on_bad_tile="skip")
    bad = tuple(i for i, (x, y) in enumerate(grid.m_xy.tolist()) if touches_bad(x, y))
    with pytest.raises(StoreError, match=f"lacks {len(bad)} tiles"):
        list(TileStore.open(tmp_path / "s.zarr").batches(8))
    store = TileStore.open(tmp_path / "s.zarr", on_bad_tile="skip")
    assert store.attributes.left_out == bad
    batches = list(store.batches(8))
    found = np.concatenate([indices for indices, _ in batches])
    assert set(found.tolist()) == set(range(len(grid))) - set(bad)
    with open_slide(sound) as whole:
        expected = list(SlideTiles(whole, grid).tiles(found.tolist()))
    np.testing.assert_array_equal(np.concatenate([tiles for _, tiles in batches]), expected)
    with open_slide(broken) as slide:
        calls: list[int] = []
        write_store(slide, grid, tmp_path / "s.zarr", on_bad_tile="skip", progress=lambda done, _: calls.append(done))
        assert calls == [len(grid)]  # with leave they are not tried again
        bare = write_store(slide, grid, tmp_path / "bare.zarr", on_bad_tile="skip", pixels=False)
    assert [i for (i,), _ in bare.batches(1, 9)] == [i for i in found if i >= 9]
    with open_slide(broken) as slide, pytest.raises(PixelError):  # without leave to skip they are tried again
        write_store(slide, grid, tmp_path / "s.zarr")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def test_the_command_tells_it_in_the_three_places(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: MODEL)
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "broken.tif").write_bytes(broken.read_bytes())
    asked = ["segment", tmp_path / "slides", "--query", "olive", "--out", tmp_path / "out"]
    stopped = run(*asked)
    assert (stopped.exit_code, "broken.tif at level-0 pixel" in stopped.stderr) == (3, True)
    assert not (tmp_path / "out" / "broken.tif.geojson").exists()
    left = run(*asked, "--on-bad-tile", "skip")
    assert left.exit_code == 0, left.stderr
    assert "tiles could not be read and were left out" in left.stderr
    skipped = json.loads((tmp_path / "out" / "broken.tif.geojson").read_text())["wsiseg"]["skipped_tiles"]
    (slide,) = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]
    assert slide["skipped_tiles"] == len(skipped) > 0
    (row,) = csv.DictReader((tmp_path / "out" / "summary.csv").open())
    assert row["skipped_tiles"] == str(len(skipped))
    made = run("tile", broken, "--out", tmp_path / "s.zarr", "--tile-size", 128, "--on-bad-tile", "skip")
    assert "of them left out" in made.stderr


class HangingSlide(FakeSlide):
    """Never comes back from its 30th read on, until it is set free."""

    def read_at_mpp(self, m_x: int, m_y: int, m_width: int, m_height: int, mpp: float) -> np.ndarray:
        if self.reads >= 30:
            self.free.wait()
        return super().read_at_mpp(m_x, m_y, m_width, m_height, mpp)


@pytest.fixture
def hanging() -> HangingSlide:
    slide = HangingSlide(dimensions=(1000, 700))
    slide.free = threading.Event()
    return slide


def test_a_read_that_hangs_is_given_up_with_its_place(hanging: HangingSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSISEG_READ_TIMEOUT", "0.3")
    grid = plan_grid(hanging, GridSpec(0.5, tile_size=32, overlap=0), tissue=all_tissue(hanging))
    seen: list[int] = []
    begin = time.monotonic()
    with pytest.raises(SlideError, match=r"fake\.svs does not answer: a read at level-0 pixel \(\d+, \d+\) has hung"):
        seen.extend(i for indices, _ in SlideTiles(hanging, grid).batches(4) for i in indices.tolist())
    assert time.monotonic() - begin < 10
    assert seen == list(range(len(seen)))
    assert 20 <= len(seen) <= 30
    hanging.free.set()


def test_who_stops_does_not_wait_for_a_read_that_hangs(hanging: HangingSlide) -> None:
    grid = plan_grid(hanging, GridSpec(0.5, tile_size=32, overlap=0), tissue=all_tissue(hanging))
    batches = SlideTiles(hanging, grid).batches(4)
    next(batches)
    time.sleep(0.2)  # it reads ahead, into the hanging read
    begin = time.monotonic()
    batches.close()
    assert time.monotonic() - begin < 5
    hanging.free.set()
