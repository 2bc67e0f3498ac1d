"""`wsiseg tile`: a store on disk, nothing on stdout, one line on stderr when it cannot be."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.signals import heed_interrupts
from wsiseg.cli.main import main
from wsiseg.errors import StoreError
from wsiseg.testing import synthetic_slide
from wsiseg.tiles import GridSpec, TileStore


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    synthetic_slide(path, {}, l0_width=900, l0_height=700, jpeg_quality=80)
    return path


def tile(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["tile", *map(str, arguments)])


def test_tile_writes_a_store_and_goes_on_with_it(slide: Path, tmp_path: Path) -> None:
    store = tmp_path / "slide.zarr"
    for _ in range(2):
        result = tile(slide, "--out", store, "--mpp", 1, "--tile-size", 128, "--overlap", 32)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == ""
        assert "tiles of 128 px at 1 µm/px" in result.stderr
    spec = TileStore.open(store).grid.spec
    assert (spec.mpp, spec.tile_size, spec.overlap, spec.min_tissue) == (1.0, 128, 32, 0.02)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--overlap", "512"], "overlap must lie in 0..511"),
        (["--mpp", "0"], "0.0 is not in the range"),
        (["--slide-mpp", "400"], "--slide-mpp"),
    ],
)
def test_what_cannot_be_is_one_line(slide: Path, tmp_path: Path, options: list[str], reason: str) -> None:
    result = tile(slide, "--out", tmp_path / "slide.zarr", *options)
    assert result.exit_code != 0
    assert result.stdout == ""
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_slides_needs_a_place_for_its_stores(slide: Path) -> None:
    result = tile(slide.parent, "--out", "")  # as an unset variable of the shell gives it
    assert result.exit_code == 2
    assert "many slides need --out FOLDER" in result.stderr


def test_a_folder_of_slides_becomes_a_folder_of_stores(slide: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    (slides / "sub").mkdir(parents=True)
    for name in ("a.tif", "sub/a.tif"):
        shutil.copy(slide, slides / name)
    (slides / "bad.svs").write_text("no slide")
    asked = [slides, "--recursive", "--out", tmp_path / "stores", "--mpp", 1, "--tile-size", 128, "--no-pixels"]
    asked += ["--slide-mpp", 0.4, "--min-tissue", 0, "--overlap", 32]
    died_of = tmp_path / "stores" / ".a.tif.zarr.claim"
    died_of.parent.mkdir()
    died_of.touch()
    os.utime(died_of, (0, 0))
    for first, last in (("sub/a.tif.zarr", "a.tif.zarr"), ("a.tif.zarr", "sub/a.tif.zarr")):
        result = tile(*asked)
        assert (result.exit_code, result.stdout) == (3, ""), result.stderr
        told = [f"{tmp_path / 'stores' / name}: " for name in (first, last)]
        assert result.stderr.index(told[0]) < result.stderr.index(told[1])
        assert "bad.svs is no slide" in result.stderr
        assert "1 of 3 slides failed" in result.stderr
    for name in ("a.tif.zarr", "sub/a.tif.zarr"):
        store = TileStore.open(tmp_path / "stores" / name)
        assert (store.grid.slide.mpp_x, store.grid.spec) == (0.4, GridSpec(1.0, 128, 32, 0.0))
        assert len(store.grid) > 0
        assert not (store.path / "pixels").exists()
    left = [path.name for path in (tmp_path / "stores").rglob("*") if path.name.endswith((".claim", ".tmp"))]
    assert left == []


def test_a_store_without_pixels_finds_its_slide_from_any_folder_as_it_was_read_then(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: with the backend that the content would choose, the slide has another vendor.
    for name in ("slides", "stores", "elsewhere"):
        (tmp_path / name).mkdir()
    shutil.copy(slide, tmp_path / "slides" / "slide.tif")
    monkeypatch.chdir(tmp_path / "slides")
    made = tile("slide.tif", "--out", tmp_path / "stores" / "s.zarr", "--no-pixels", "--backend", "image", "--mpp", 1)
    assert made.exit_code == 0, made.stderr
    monkeypatch.chdir(tmp_path / "elsewhere")
    store = TileStore.open(tmp_path / "stores" / "s.zarr")
    expected = store.tiles([0])
    for content in (b"no slide", None):  # an empty disk in its place, say, and nothing
        shutil.copy(slide, tmp_path / "stores" / "slide.tif")
        if content:
            (tmp_path / "slides" / "slide.tif").write_bytes(content)
        else:
            (tmp_path / "slides" / "slide.tif").unlink()
        assert (store.tiles([0]) == expected).all()
    (tmp_path / "stores" / "slide.tif").write_bytes(b"no slide")
    with pytest.raises(StoreError, match=r"holds no pixels and its slide cannot be read: .*stores/slide\.tif"):
        store.tiles([0])


def test_another_grid_is_refused(slide: Path, tmp_path: Path) -> None:
    store = tmp_path / "slide.zarr"
    assert tile(slide, "--out", store, "--mpp", 1, "--tile-size", 128).exit_code == 0
    result = tile(slide, "--out", store, "--mpp", 1, "--tile-size", 96)
    assert result.exit_code == 1
    assert "its grid has tile_size 128, asked for 96" in result.stderr


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(slide: Path, tmp_path: Path) -> None:
    store, arguments = tmp_path / "slide.zarr", ["--mpp", "1", "--tile-size", "128"]
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    limited += "from wsiseg.cli.main import main; main()"
    command = [sys.executable, "-c", limited, "--quiet", "tile", str(slide), "--out", str(store), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"wsiseg: error: cannot write {store}/pixels/")
    assert tile(slide, "--out", store, *arguments).exit_code == 0
    assert tile(slide, "--out", tmp_path / "whole.zarr", *arguments).exit_code == 0
    once, again = TileStore.open(tmp_path / "whole.zarr"), TileStore.open(store)
    every = range(len(once.grid))
    assert (once.tiles(every) == again.tiles(every)).all()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_soon_and_says_how_to_go_on(
    sample_slide: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    store = tmp_path / "slide.zarr"
    command = [sys.executable, "-c", "from wsiseg.cli.main import main; main()", "--quiet", "tile", str(sample_slide)]
    command += ["--out", str(store), "--mpp", "0.5", "--tile-size", "64", "--overlap", "56"]  # half a minute of work
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        deadline = time.monotonic() + 120
        while not any(path.is_file() for path in store.glob("pixels/c/**/*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begin = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert time.monotonic() - begin < 5
    assert process.returncode == code
    assert said.splitlines()[0] == "wsiseg: stopped; the same command goes on from there"
    assert not list(tmp_path.rglob("*.tmp"))
