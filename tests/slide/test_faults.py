"""Slides that are damaged, lie, hang or vanish: a sentence that says which and where, never wrong pixels."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.slide import vendors
from tests.slide.damage import with_bad_tile, with_tag
from tests.slide.make import smooth
from wsiseg.errors import PixelError, SlideError, WsisegError
from wsiseg.slide import open_slide
from wsiseg.slide.dicom import first_of_series, series_uid
from wsiseg.slide.patience import Readers, patiently, waited
from wsiseg.testing import synthetic_slide

BACKENDS = ["openslide", "tiffslide"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "sound.tif"
    synthetic_slide(path, {}, jpeg_quality=90)  # 1200 x 800 px: native tiles 0 to 19 of 256 px, five in a row
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_bad_tile_breaks_no_other(sound: Path, tmp_path: Path, backend: str) -> None:
    path = with_bad_tile(sound, tmp_path / "bad.tif", tile=7)
    with open_slide(sound, backend=backend) as whole, open_slide(path, backend=backend) as slide:

        def reads_elsewhere() -> None:
            for x in (0, 256, 768):
                np.testing.assert_array_equal(
                    slide.read_region(x, 256, 0, 256, 256), whole.read_region(x, 256, 0, 256, 256)
                )

        # OpenSlide's errors latch: whoever reads the bad tile must not spoil the reads of other threads.
        failures: list[BaseException] = []

        def other_thread() -> None:
            try:
                for _ in range(10):
                    reads_elsewhere()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=other_thread)
        thread.start()
        for _ in range(10):
            with pytest.raises(PixelError, match=r"bad\.tif at level-0 pixel \(600, 300\)"):
                slide.read_region(600, 300, 0, 64, 64)
        thread.join()
        assert failures == []
        reads_elsewhere()


def test_what_cannot_be_read_has_a_place_or_a_colour_in_the_thumbnail(sound: Path, tmp_path: Path) -> None:
    with open_slide(with_bad_tile(sound, tmp_path / "bad.tif", tile=7)) as slide:
        with pytest.raises(PixelError, match=r"level-0 pixel \(512, 256\)"):
            slide.thumbnail(1200)
        drawn = slide.thumbnail(1200, unreadable=(1, 2, 3))
    assert (drawn[256:512, 512:768] == (1, 2, 3)).all()
    with open_slide(sound) as slide:
        expected = slide.thumbnail(1200)
    np.testing.assert_array_equal(drawn[:256], expected[:256])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tag", "value"), [("ImageWidth", 5000), ("ImageWidth", 700), ("ImageLength", 9000)])
def test_a_slide_that_lies_about_its_dimensions_is_refused(
    sound: Path, tmp_path: Path, backend: str, tag: str, value: int
) -> None:
    path = with_tag(sound, tmp_path / "lies.tif", tag, value)
    with pytest.raises(SlideError, match="its number of tiles does not fit"):
        open_slide(path, backend=backend)


@pytest.mark.parametrize("tag", ["TileWidth", "TileLength"])
def test_tiles_without_a_size_are_one_sentence(sound: Path, tmp_path: Path, tag: str) -> None:
    path = with_tag(sound, tmp_path / "odd.tif", tag, 0)
    with pytest.raises(SlideError, match=r"odd\.tif cannot be used: its header is damaged"):
        open_slide(path, backend="tiffslide")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_slide_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "hangs.svs")
    monkeypatch.setenv("WSISEG_READ_TIMEOUT", "0.2")
    begin = time.monotonic()
    with pytest.raises(SlideError, match=r"hangs\.svs does not answer: a read has hung for 0\.2 s"):
        open_slide(tmp_path / "hangs.svs")
    assert time.monotonic() - begin < 5
    os.close(os.open(tmp_path / "hangs.svs", os.O_WRONLY | os.O_NONBLOCK))  # sets the thread free


def test_a_slide_with_a_read_under_way_is_not_closed_under_it(sound: Path) -> None:
    entered, leave = threading.Event(), threading.Event()
    with open_slide(sound) as slide:
        read_inside, closed = slide._read_inside, []
        slide.close = lambda: closed.append(True)  # type: ignore[method-assign]

        def hangs(*box: int) -> np.ndarray:
            entered.set()
            leave.wait()
            return read_inside(*box)

        slide._read_inside = hangs  # type: ignore[method-assign]
        thread = threading.Thread(target=slide.read_region, args=(0, 0, 0, 8, 8), daemon=True)
        thread.start()
        entered.wait()
    assert closed == []
    leave.set()
    thread.join()
    with slide:
        pass
    assert closed == [True]


@pytest.mark.parametrize("timeout", ["soon", "inf", "-1"])
def test_errors_come_through_and_a_timeout_must_be_a_number(monkeypatch: pytest.MonkeyPatch, timeout: str) -> None:
    with pytest.raises(ZeroDivisionError):
        patiently("x", lambda: 1 / 0)
    monkeypatch.setenv("WSISEG_READ_TIMEOUT", timeout)
    with pytest.raises(WsisegError, match="must be a number of seconds"):
        patiently("x", lambda: 1)


def test_readers_do_things_in_order_and_end() -> None:
    with Readers(1) as readers:
        done: list[int] = []
        futures = [readers.submit(done.append, i) for i in range(20)]
        waited(futures[-1], 60)
    assert done == list(range(20))
    assert not any(thread.is_alive() for thread in readers._threads)


def test_a_dicom_series_is_one_slide(shared_data: Path, tmp_path: Path) -> None:
    import openslide

    files = sorted((shared_data / "slides" / "dev").glob("*.dcm"))
    assert len(files) >= 2
    for file in files:
        assert series_uid(file) == openslide.OpenSlide(file).properties["dicom.SeriesInstanceUID"]
    copies = [tmp_path / f"{i}.dcm" for i in range(4)]
    for copy, of in zip(copies, (files[0], files[0], files[1], files[0]), strict=True):
        copy.write_bytes(of.read_bytes())
    (tmp_path / "no.dcm").write_text("no DICOM")
    assert first_of_series([*copies, tmp_path / "no.dcm"]) == [copies[0], copies[2], tmp_path / "no.dcm"]


def test_a_dicom_slide_is_the_same_whichever_of_its_files_is_named(tmp_path: Path) -> None:
    files = sorted(vendors.dicom(tmp_path, smooth(200, 150)).path.parent.iterdir())

    def fingerprints() -> set[str]:
        found = set()
        for file in files:
            with open_slide(file) as slide:
                found.add(slide.fingerprint)
        return found

    before = fingerprints()
    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1
    files[1].write_bytes(data)
    after = fingerprints()
    assert len(files) > 1
    assert (len(before), len(after), before == after) == (1, 1, False)
