"""Whole files or none."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from wsiseg.errors import OutputError, SlideError
from wsiseg.files import atomic_folder, atomic_write, check_writable, make_folder, remove_leftovers


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with atomic_write(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), SlideError("the slide broke")])
def test_an_error_leaves_what_was_there_and_stays_what_it_is(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "out").write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(tmp_path / "out") as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here to see which files are open")
def test_what_windows_refuses_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There no open file can be removed, and none flushed that is open for reading only."""
    unlink, fsync = Path.unlink, os.fsync

    def unlink_closed(path: Path, missing_ok: bool = False) -> None:
        if any(os.path.realpath(handle) == str(path) for handle in Path("/proc/self/fd").iterdir()):
            raise PermissionError(errno.EACCES, "it is being used by another process")
        unlink(path, missing_ok)

    def fsync_writable(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(handle)

    monkeypatch.setattr(Path, "unlink", unlink_closed)
    monkeypatch.setattr(os, "fsync", fsync_writable)
    with pytest.raises(ValueError, match="what went wrong"), atomic_write(tmp_path / "out"):
        raise ValueError("what went wrong")
    assert os.listdir(tmp_path) == []
    with atomic_folder(tmp_path / "folder", replaces=lambda folder: False) as folder:
        (folder / "a").write_text("a")
    assert os.listdir(tmp_path / "folder") == ["a"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/out", "there is no folder .*missing"),
        ("file/out", "there is no folder .*file"),
        ("folder", ".*(it is a folder|Is a directory)"),
        (f"{300 * 'a'}/out", "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_and_after_the_work(
    tmp_path: Path, path: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=f"cannot write .*{path}: {reason}"):
        check_writable(tmp_path / path)
    with pytest.raises(OutputError, match=f"cannot write .*{path}: {reason}"), atomic_write(tmp_path / path) as file:
        file.write(b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_file_keeps_its_permissions_and_its_protection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.touch()
    target.chmod(0o640)
    with atomic_write(target) as file:
        file.write(b"x")
    assert target.stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != target)  # root may write everything
    with pytest.raises(OutputError, match="it is write-protected"):
        check_writable(target)
    with pytest.raises(OutputError, match="it is write-protected"), atomic_write(target) as file:
        file.write(b"y")
    assert target.read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"

    def write(text: str) -> None:
        with atomic_folder(target, replaces=lambda folder: (folder / "a").exists()) as folder:
            (folder / "a").write_text(text)

    (tmp_path / ".out.0123abcd.tmp").mkdir()  # of a process that was killed
    os.utime(tmp_path / ".out.0123abcd.tmp", (0, 0))
    write("old")
    assert os.listdir(tmp_path) == ["out"]
    rename = os.replace

    def refused(source: Path, goal: Path) -> None:
        if goal == target and (source / "a").read_text() == "new":
            raise PermissionError(13, "Permission denied")
        rename(source, goal)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refused)
        with pytest.raises(OutputError, match="Permission denied"):
            write("new")
    assert (target / "a").read_text() == "old"
    write("new")
    assert (target / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]
    (target / "a").rename(target / "b")
    with pytest.raises(OutputError, match="something else is there"):
        write("newer")


def test_a_folder_that_another_process_wrote_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "store"

    def write() -> None:
        with atomic_folder(target, replaces=lambda there: (there / "half").exists()) as new:
            (new / "mine").touch()
            target.mkdir()
            (target / "whole").touch()

    with pytest.raises(OutputError, match="something else is there"):
        write()
    assert os.listdir(tmp_path) == ["store"]
    assert os.listdir(target) == ["whole"]


def test_what_a_killed_process_left_takes_no_room_from_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, young = (tmp_path / f".store.{digit * 8}.tmp" for digit in "ab")
    for left in (old, young):
        left.mkdir()
    os.utime(old, (0, 0))
    full = OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with atomic_folder(tmp_path / "store", replaces=lambda _: True):
            assert not old.exists()
            raise full

    with pytest.raises(OutputError, match=rf"No space left on device; delete {young}, unless another command"):
        write()


def test_a_link_keeps_pointing_at_its_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_what_a_killed_process_left_long_ago_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [f".a[1].csv.{8 * digit}.tmp" for digit in "01"] + [".a1.csv.22222222.tmp", ".a[1].csv.v2.33333333.tmp"]
    old, young, *others = (tmp_path / name for name in names)
    for path in (old, young, *others):
        path.touch()
    os.utime(old, (0, 0))
    remove_leftovers(tmp_path / "a[1].csv", older_s=3600)
    assert set(tmp_path.iterdir()) == {young, *others}
    remove_leftovers(tmp_path / "a[1].csv")
    assert set(tmp_path.iterdir()) == set(others)


def test_threads_that_write_on_for_a_moment_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As zarr's, which make the folder anew."""
    moments = [True, True, False, True, False]
    folders: list[Path] = []

    def write_on(_: float) -> None:
        if moments and moments.pop(0):
            (folders[0] / "c").mkdir(parents=True)

    monkeypatch.setattr(time, "sleep", write_on)

    def stopped() -> None:
        with atomic_folder(tmp_path / "out", replaces=lambda _: True) as folder:
            folders.append(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not moments
    assert not list(tmp_path.iterdir())


def test_a_folder_in_which_another_process_still_writes_is_no_leftover(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", replaces=lambda _: True) as other:
        (other / "large").touch()
        os.utime(other, (0, 0))  # that does not move while one large file is written
        os.utime(other / "large", (time.time() + 60,) * 2)
        with atomic_folder(tmp_path / "out", replaces=lambda _: True):
            pass
        assert (other / "large").exists()


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://bucket", "https://host/a/b"])
def test_results_are_not_written_to_a_folder_named_after_a_url(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="looks like a URL"):
        make_folder(Path(url))
    assert not list(tmp_path.iterdir())
    make_folder(Path("a:b/c"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_is_written_not_replaced() -> None:
    with atomic_write("/dev/null") as file:
        file.write(b"x")
    assert not Path("/dev/null").is_file()
    with pytest.raises(OutputError, match="No space left"), atomic_write("/dev/full") as file:
        file.write(b"x")
    assert not Path("/dev/full").is_file()
