"""Many slides: nothing lost, nothing twice, whatever happens on the way."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fleet.slides import NAMES, TellingModel, outlines, small_slides
from wsiseg import spill
from wsiseg.errors import FleetError, ModelError, OutputError, SlideError
from wsiseg.fleet import (
    Job,
    Record,
    Settings,
    jobs_in_folder,
    read_manifest,
    read_run,
    run,
    runner,
    tile_slide,
    work,
)
from wsiseg.fleet.claim import claimed
from wsiseg.fleet.work import segment_slide
from wsiseg.inference import TileMask
from wsiseg.qupath import check_dialect
from wsiseg.testing import FakeModel
from wsiseg.tiles import GridSpec

MODEL = FakeModel(tile_size=128, overlap=32)
QUERIES = ("the olive", "the orange")
SETTINGS = Settings(min_area_um2=1.0)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_slides(tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="module")
def jobs(slides: Path) -> list[Job]:
    return jobs_in_folder(slides, QUERIES, recursive=True)


@pytest.fixture(scope="module")
def whole(jobs: list[Job], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outlines of a run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole")
    assert all(record.status == "done" for record in run(jobs, out, SETTINGS, model=MODEL))
    return outlines(out)


@pytest.fixture
def telling(tmp_path: Path) -> TellingModel:
    return TellingModel(tmp_path / "log")


def test_every_slide_has_its_geojson_and_the_run_its_two_files(
    jobs: list[Job], whole: dict[str, bytes], tmp_path: Path
) -> None:
    labelled = [replace(job, label=f"case {i}") for i, job in enumerate(jobs)]
    run(labelled, tmp_path, SETTINGS, model=MODEL)
    assert outlines(tmp_path) == whole
    assert set(whole) == {f"{name}.geojson" for name in NAMES}
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["model"] == {"source": None, "name": "fake", "fingerprint": "fake-1"}
    for slide in told["slides"]:
        assert check_dialect(tmp_path / slide["output"]) == []
        collection = json.loads((tmp_path / slide["output"]).read_text())
        made_by = collection["wsiseg"]
        assert made_by["slide"]["fingerprint"] == slide["slide_fingerprint"]
        assert made_by["slide"]["mpp"] == pytest.approx([0.5, 0.5])
        assert made_by["model"] == {"name": "fake", "fingerprint": told["model"]["fingerprint"]}
        assert made_by["queries"] == slide["queries"] == list(QUERIES)
        assert (made_by["version"], made_by["parameters"]["min_area_um2"]) == (told["version"], 1.0)
        assert slide["polygons"] == dict.fromkeys(QUERIES, 1)
        areas = [feature["properties"]["measurements"]["Area µm^2"] for feature in collection["features"]]
        assert list(slide["area_um2"].values()) == pytest.approx(areas, abs=0.01)
        assert slide["tiles"] > 0
        assert slide["seconds"] > 0
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [(row["label"], row["query"]) for row in rows] == [(f"case {i}", q) for i in range(3) for q in QUERIES]
    assert {row["status"] for row in rows} == {"done"}


def test_what_was_not_found_is_told_with_the_slide(jobs: list[Job], tmp_path: Path) -> None:
    strict = replace(SETTINGS, min_area_um2=1e9)
    for settings in (strict, replace(strict, format="asap")):  # the second one is made of the first
        (record,) = run(jobs[:1], tmp_path, settings, model=MODEL)
        assert record.polygons == dict.fromkeys(QUERIES, 0)
        assert [note.split(": ")[0] for note in record.notes] == [f'"{query}"' for query in QUERIES]
        assert json.loads((tmp_path / "run.json").read_text())["slides"][0]["notes"] == record.notes


def test_only_what_is_missing_or_changed_is_done_again(
    jobs: list[Job], whole: dict[str, bytes], telling: TellingModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def batches(jobs: list[Job], settings: Settings = SETTINGS) -> int:
        before = len(telling.pids())
        run(jobs, out, settings, model=telling)
        return len(telling.pids()) - before

    everything = batches(jobs)
    assert batches(jobs) == 0
    (out / "a.tif.geojson").unlink()
    assert 0 < batches(jobs) < everything
    assert outlines(out) == whole
    assert batches([jobs[0], replace(jobs[1], queries=QUERIES[:1]), jobs[2]]) > 0
    assert batches(jobs, replace(SETTINGS, threshold=0.6)) == everything
    assert batches(jobs, replace(SETTINGS, batch_size=4)) > everything  # back to the first threshold
    telling.fingerprint = "fake-2"
    assert batches(jobs) == everything
    assert batches(jobs, replace(SETTINGS, batch_size=1, device="cpu")) == 0


def test_another_format_is_made_of_the_geojson_that_is_there(
    jobs: list[Job], telling: TellingModel, tmp_path: Path
) -> None:
    asap = replace(SETTINGS, format="asap")
    run(jobs, tmp_path / "asked", asap, model=MODEL)
    first = run(jobs, tmp_path / "out", SETTINGS, model=telling)
    asked = len(telling.pids())
    run(jobs, tmp_path / "out", replace(SETTINGS, format="ome-zarr"), model=telling)
    second = run(jobs, tmp_path / "out", asap, model=telling)
    before_back = outlines(tmp_path / "out")
    run(jobs, tmp_path / "out", SETTINGS, model=telling)
    assert outlines(tmp_path / "out") == before_back
    assert len(telling.pids()) == asked
    for name in NAMES:
        assert (tmp_path / "out" / f"{name}.xml").read_bytes() == (tmp_path / "asked" / f"{name}.xml").read_bytes()
    for before, after in zip(first, second, strict=True):
        assert (after.polygons, after.area_um2, after.tiles) == (before.polygons, before.area_um2, before.tiles)
    run(jobs, tmp_path / "out", replace(asap, threshold=0.6), model=telling)
    assert len(telling.pids()) > asked


@pytest.mark.parametrize("change", ["query", "parameter", "model"])
def test_outlines_that_a_person_corrected_are_not_replaced(jobs: list[Job], change: str, tmp_path: Path) -> None:
    run(jobs, tmp_path, SETTINGS, model=MODEL)
    (tmp_path / "a.tif.geojson").write_bytes(b"corrected")
    run(jobs, tmp_path, SETTINGS, model=MODEL)
    before = outlines(tmp_path)
    assert before["a.tif.geojson"] == b"corrected"
    others = [replace(job, queries=("olive",)) for job in jobs] if change == "query" else jobs
    settings = replace(SETTINGS, threshold=0.6) if change == "parameter" else SETTINGS
    model = FakeModel(tile_size=128, overlap=32)
    model.fingerprint = "fake-2" if change == "model" else model.fingerprint
    with pytest.raises(FleetError, match=r"a\.tif\.geojson was changed after wsiseg wrote it"):
        run(others, tmp_path, settings, model=model)
    assert outlines(tmp_path) == before
    (tmp_path / "a.tif.geojson").rename(tmp_path / "mine.geojson")
    assert {record.status for record in run(others, tmp_path, settings, model=model)} == {"done"}


def test_outlines_that_no_run_wrote_are_not_replaced(jobs: list[Job], tmp_path: Path) -> None:
    """Drawn in QuPath, or those of a run whose hidden folder was not copied along."""
    (tmp_path / "a.tif.geojson").write_bytes(b"drawn")
    with pytest.raises(FleetError, match=r"a\.tif\.geojson is of no run in this folder, and this run would replace it"):
        run(jobs, tmp_path, SETTINGS, model=MODEL)
    assert outlines(tmp_path) == {"a.tif.geojson": b"drawn"}


def test_a_record_that_cannot_be_read_is_not_taken_for_none(jobs: list[Job], tmp_path: Path) -> None:
    run(jobs[:1], tmp_path, SETTINGS, model=MODEL)
    record, before = tmp_path / ".wsiseg" / "a.tif.json", outlines(tmp_path)
    record.unlink()
    record.mkdir()  # as good as one of another user
    with pytest.raises(OutputError, match=r"cannot read .*a\.tif\.json"):
        run(jobs[:1], tmp_path, SETTINGS, model=MODEL)
    assert outlines(tmp_path) == before


def test_corrected_outlines_of_a_slide_that_changed_are_not_replaced(tmp_path: Path) -> None:
    folder, out = small_slides(tmp_path / "slides"), tmp_path / "out"
    jobs = jobs_in_folder(folder, QUERIES)
    run(jobs, out, SETTINGS, model=MODEL)
    (out / "a.tif.geojson").write_bytes(b"corrected")
    (folder / "a.tif").write_bytes((folder / "b.tif").read_bytes())
    for _ in range(2):
        corrected, other = run(jobs, out, SETTINGS, model=MODEL)
        assert "a.tif.geojson was changed after wsiseg wrote it" in corrected.reason
        assert other.status == "done"
    assert outlines(out)["a.tif.geojson"] == b"corrected"
    (out / "a.tif.geojson").unlink()
    assert [record.status for record in run(jobs, out, SETTINGS, model=MODEL)] == ["done", "done"]


def test_a_store_of_other_tiles_is_another_slide(jobs: list[Job], telling: TellingModel, tmp_path: Path) -> None:
    store = tmp_path / "stores" / "a.zarr"
    store.parent.mkdir()
    for overlap in (32, 48):
        shutil.rmtree(store, ignore_errors=True)
        tile_slide(jobs[0].source, store, GridSpec(1.0, 128, overlap))
        before = telling.pids()
        for _ in range(2):
            (record,) = run(jobs_in_folder(store.parent, QUERIES), tmp_path / "out", SETTINGS, model=telling)
            assert record.status == "done"
        assert len(telling.pids()) == len(before) + len(QUERIES)  # one batch each


def test_queries_that_will_be_lost_are_told_before(
    jobs: list[Job], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("wsiseg"), "propagate", True)
    run([replace(job, queries=QUERIES[:1]) for job in jobs], tmp_path, SETTINGS, model=MODEL)
    run(jobs, tmp_path, SETTINGS, model=MODEL)
    assert "are replaced" not in caplog.text
    run([replace(job, queries=QUERIES[1:]) for job in jobs], tmp_path, SETTINGS, model=MODEL)
    assert f'the outlines of "{QUERIES[0]}" in {tmp_path} are replaced' in caplog.text


def test_a_broken_slide_is_told_and_the_others_are_done(slides: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = small_slides(tmp_path / "slides")
    (folder / "bad.svs").write_text("no slide")
    jobs = jobs_in_folder(folder, QUERIES, recursive=True)
    vanishes = Report(lambda: (folder / "b.tif").unlink(missing_ok=True))
    records = {Path(r.source).name: r for r in run(jobs, tmp_path / "out", SETTINGS, model=MODEL, report=vanishes)}
    assert "is no slide or image in a known format" in records["bad.svs"].reason
    assert "does not exist" in records["b.tif"].reason
    assert set(outlines(tmp_path / "out")) == {"a.tif.geojson", "sub/a.tif.geojson"}
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert [row["status"] for row in rows] == ["done"] * 2 + ["failed"] * 4 + ["done"] * 2
    small_slides(folder)  # it is back: only the failed are tried again
    (folder / "bad.svs").unlink()
    records = {r.source: r for r in run(jobs, tmp_path / "out", SETTINGS, model=MODEL)}
    assert [r.status for r in records.values()] == ["done", "done", "failed", "done"]


def test_slides_that_were_moved_are_kept(telling: TellingModel, tmp_path: Path) -> None:
    folder, out = small_slides(tmp_path / "slides"), tmp_path / "out"
    run(jobs_in_folder(folder, QUERIES), out, SETTINGS, model=telling)
    asked, before = len(telling.pids()), outlines(out)
    jobs = jobs_in_folder(folder.rename(tmp_path / "elsewhere"), QUERIES)
    assert [record.source for record in run(jobs, out, SETTINGS, model=telling)] == [job.source for job in jobs]
    assert outlines(out) == before
    run(jobs, out, replace(SETTINGS, format="asap"), model=telling)
    assert len(telling.pids()) == asked


def test_a_slide_that_was_broken_by_a_move_keeps_no_other_from_being_done(tmp_path: Path) -> None:
    folder, out = small_slides(tmp_path / "slides"), tmp_path / "out"
    run(jobs_in_folder(folder, QUERIES), out, SETTINGS, model=MODEL)
    before = outlines(out)
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / "a.tif").write_text("half of a copy")
    (moved / "b.tif").write_bytes((moved / "sub" / "a.tif").read_bytes())  # another one, whose outlines nobody wants
    (out / "b.tif.geojson").unlink()
    broken, other = run(jobs_in_folder(moved, QUERIES), out, SETTINGS, model=MODEL)
    assert (broken.status, other.status) == ("failed", "done")
    assert "elsewhere/a.tif is no slide or image" in broken.reason
    assert outlines(out)["a.tif.geojson"] == before["a.tif.geojson"]


def test_outlines_are_kept_through_a_time_when_slides_cannot_be_read(
    jobs: list[Job], telling: TellingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is not mounted one morning must not cost a week's work, nor what a person corrected."""
    out = tmp_path / "out"
    first = run(jobs, out, SETTINGS, model=telling)
    (out / "a.tif.geojson").write_bytes(b"corrected")
    asked, before = len(telling.pids()), outlines(out)

    def unmounted(job: Job, settings: Settings) -> str:
        raise SlideError(f"{job.source} does not exist")

    with monkeypatch.context() as morning:
        morning.setattr(work, "content_fingerprint", unmounted)
        for _ in range(2):
            assert {record.status for record in run(jobs, out, SETTINGS, model=telling)} == {"failed"}
    assert '"earlier"' not in (out / "run.json").read_text()
    assert run(jobs, out, SETTINGS, model=telling) == first
    assert len(telling.pids()) == asked
    assert outlines(out) == before


def test_a_slide_at_a_url_is_one_of_many(slides: Path, tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/hospital/a.tif", (slides / "a.tif").read_bytes())
    (tmp_path / "m.csv").write_text(f"slide\nmemory://hospital/a.tif\n{slides}/a.tif\n")
    remote, local = read_manifest(tmp_path / "m.csv", QUERIES)
    assert remote.name == "memory/hospital/a.tif"
    records = run([remote, local], tmp_path / "out", replace(SETTINGS, backend="tiffslide"), model=MODEL)
    assert [record.reason for record in records] == ["", ""]
    there, here = (
        json.loads((tmp_path / "out" / f"{job.name}.geojson").read_text())["features"] for job in (remote, local)
    )
    assert [f["geometry"] for f in there] == [f["geometry"] for f in here]
    assert len(there) == 2


def test_a_slide_that_kills_its_process_keeps_no_other_from_being_done(
    jobs: list[Job], whole: dict[str, bytes], tmp_path: Path
) -> None:
    class Deadly(FakeModel):
        def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
            claim = tmp_path / ".wsiseg" / "b.tif.claim"
            if claim.exists() and json.loads(claim.read_text())["pid"] == os.getpid():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().segment_tiles(tiles, query, mpp)

    deadly = Deadly(tile_size=128, overlap=32)
    for done in ({"a.tif.geojson"}, set(whole) - {"b.tif.geojson"}):
        assert killed(lambda: run(jobs, tmp_path, SETTINGS, model=deadly) and None, lambda pid: None) == -signal.SIGKILL
        assert set(outlines(tmp_path)) == done


class Report:
    """Calls a function when the first slide is finished."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def running(self, job: Job, done: int, total: int) -> None: ...

    def held(self, job: Job, by: str) -> None: ...

    def finished(self, job: Job, record: Record, kept: bool) -> None:
        self.then()


def test_a_slide_that_another_process_is_at_is_waited_for_and_told(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.01)
    told: list[str] = []
    with ExitStack() as another:
        another.enter_context(claimed(tmp_path / ".wsiseg" / "a.tif.claim"))

        class Waiting(Report):
            def held(self, job: Job, by: str) -> None:
                told.append(f"{job.name}: {by}")
                another.close()

        waiting = Waiting(lambda: told.append(json.loads((tmp_path / "run.json").read_text())["slides"][0]["status"]))
        assert [r.status for r in run(jobs[:2], tmp_path, SETTINGS, model=MODEL, report=waiting)] == ["done", "done"]
    # The other slide first; what is going on stands in run.json from the beginning.
    assert told == ["pending", f"a.tif: process {os.getpid()} on {socket.gethostname()}", "pending"]


def test_two_runs_at_once_share_the_work_and_do_nothing_twice(
    jobs: list[Job], whole: dict[str, bytes], telling: TellingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.01)
    run(jobs, tmp_path / "alone", SETTINGS, model=telling)
    alone, done = len(telling.pids()), []
    telling.seconds = 0.05

    def work() -> None:
        done.append(run(jobs, tmp_path / "out", SETTINGS, model=telling))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(telling.pids()) == 2 * alone
    assert outlines(tmp_path / "out") == whole
    assert len(done) == 3
    assert all(record.status == "done" for records in done for record in records)


def test_shards_add_up_to_one_run(jobs: list[Job], whole: dict[str, bytes], tmp_path: Path) -> None:
    run(jobs, tmp_path, SETTINGS, model=MODEL, shard=(2, 2))
    told = json.loads((tmp_path / "run.json").read_text())
    assert [slide["status"] for slide in told["slides"]] == ["pending", "done", "pending"]
    run(jobs, tmp_path, SETTINGS, model=MODEL, shard=(1, 2))
    told = json.loads((tmp_path / "run.json").read_text())
    assert [slide["status"] for slide in told["slides"]] == ["done"] * 3
    assert outlines(tmp_path) == whole


def test_another_folders_slide_of_the_same_name_is_refused(slides: Path, tmp_path: Path) -> None:
    run(jobs_in_folder(slides, QUERIES), tmp_path / "out", SETTINGS, model=MODEL)
    before = outlines(tmp_path / "out")
    for shard in ((1, 2), (2, 2)):  # all parts of it: each writes the run.json of all
        with pytest.raises(FleetError, match=r"holds the outlines of .*: choose another --out"):
            run(jobs_in_folder(slides / "sub", QUERIES), tmp_path / "out", SETTINGS, model=MODEL, shard=shard)
    assert outlines(tmp_path / "out") == before


def test_slides_of_one_name_from_two_folders_are_refused(slides: Path, jobs: list[Job], tmp_path: Path) -> None:
    (other,) = jobs_in_folder(slides / "sub", QUERIES)
    with pytest.raises(FleetError, match=r"a\.tif and .*sub/a\.tif would both write a\.tif"):
        run([jobs[0], other], tmp_path / "out", SETTINGS, model=MODEL)
    assert not (tmp_path / "out").exists()
    assert len(run([other, other], tmp_path / "out", SETTINGS, model=MODEL)) == 1


def test_a_run_json_repeats_its_run(jobs: list[Job], whole: dict[str, bytes], tmp_path: Path) -> None:
    run(jobs, tmp_path / "first", SETTINGS, model=MODEL)
    again, settings = read_run(tmp_path / "first" / "run.json")
    assert all(job.slide_fingerprint for job in again)
    run(again, tmp_path / "second", settings, model=MODEL)
    assert outlines(tmp_path / "second") == whole
    told = json.loads((tmp_path / "first" / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**told, "version": "0.0.1"}))
    with pytest.raises(FleetError, match=r"made by wsiseg 0\.0\.1 .* only the same version"):
        read_run(tmp_path / "run.json")
    other = FakeModel(tile_size=128, overlap=32)
    other.fingerprint = "fake-2"
    with pytest.raises(ModelError, match="fake-2 here, and the run was made with fake-1"):
        run(again, tmp_path / "third", settings, model=other)
    changed = [replace(job, slide_fingerprint="other") for job in again[:1]]
    for out in ("second", "third"):  # also where there are outlines of what the slide is now
        (record,) = run(changed, tmp_path / out, settings, model=MODEL)
        assert "is not the slide of the run" in record.reason


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "wsiseg-test", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_with_room_it_goes_on(
    jobs: list[Job], whole: dict[str, bytes], small_disk: Path
) -> None:
    """At every writer in turn: claim, outlines, record, run.json, summary.csv."""
    ballast = small_disk / ".ballast"
    stopped = 0
    for room in range(0, 13, 2):  # pages of 4 KiB
        with open(ballast, "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(ballast, max(0, ballast.stat().st_size - room * 4096))
        said = ""
        try:
            run(jobs, small_disk / "out", SETTINGS, model=MODEL)
        except OutputError as error:
            said = str(error)
            stopped += 1
        assert not said or "No space left on device" in said
        assert not list(small_disk.rglob("*.tmp"))
        assert not list(small_disk.rglob("*.claim"))
        there = outlines(small_disk / "out") if (small_disk / "out").exists() else {}
        assert there.items() <= whole.items()
        ballast.unlink()
    assert stopped >= 3
    run(jobs, small_disk / "out", SETTINGS, model=MODEL)
    assert outlines(small_disk / "out") == whole


def test_a_full_temporary_folder_costs_no_answer(
    jobs: list[Job], whole: dict[str, bytes], telling: TellingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as morning:
        morning.setattr(spill, "write_all", full)
        for record in run(jobs, tmp_path / "out", SETTINGS, model=telling):
            assert record.status == "failed"
            assert record.reason.endswith("No space left on device; point TMPDIR at a disk with room")
    asked = len(telling.pids())
    assert {record.status for record in run(jobs, tmp_path / "out", SETTINGS, model=telling)} == {"done"}
    assert len(telling.pids()) == asked
    assert outlines(tmp_path / "out") == whole


def killed(work: Callable[[], None], kill: Callable[[int], None]) -> int:
    """Do `work` in a child that `kill` is told the process id of; its exit status, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    kill(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(step: int) -> None:
    """Kill this process just before its `step`-th change of what other processes see."""
    left = step

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def change(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return change

    for name in ("replace", "unlink", "fsync"):
        setattr(os, name, dying(getattr(os, name)))


def test_killed_before_every_step_it_goes_on(jobs: list[Job], whole: dict[str, bytes], tmp_path: Path) -> None:
    def work(step: int) -> None:
        die_at(step)
        run(jobs[:1], tmp_path / str(step), SETTINGS, model=MODEL)

    wanted = {"a.tif.geojson": whole["a.tif.geojson"]}
    step, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        out = tmp_path / str(step)
        status = killed(lambda step=step: work(step), lambda pid: None)  # type: ignore[misc]
        there = {name: data for name, data in outlines(out).items() if not name.endswith(".tmp")}
        assert there.items() <= wanted.items()
        run(jobs[:1], out, SETTINGS, model=MODEL)
        assert {name: d for name, d in outlines(out).items() if not name.endswith(".tmp")} == wanted
        assert not list(out.rglob("*.claim"))
        assert len(json.loads((out / "run.json").read_text())["slides"]) == 1
        step += 1
    assert status == 0
    assert step > 12


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_killed_at_a_random_moment_it_goes_on(
    jobs: list[Job], whole: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    begin = time.monotonic()
    run(jobs, tmp_path / "timed", SETTINGS, model=MODEL)
    moment = random.Random(seed).uniform(0, time.monotonic() - begin)

    def kill(pid: int) -> None:
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)

    killed(lambda: run(jobs, tmp_path / "out", SETTINGS, model=MODEL) and None, kill)
    run(jobs, tmp_path / "out", SETTINGS, model=MODEL)
    assert outlines(tmp_path / "out") == whole


def test_an_old_output_is_never_taken_for_a_new_one(jobs: list[Job], tmp_path: Path) -> None:
    """Killed between outlines and record, with outlines of another question before and asked for again."""
    job, other = jobs[0], replace(jobs[0], queries=QUERIES[:1])
    segment_slide(job, tmp_path, SETTINGS, MODEL)
    first = outlines(tmp_path)

    def work() -> None:
        replaced = os.replace

        def after_the_outlines(source: str, target: str) -> None:
            replaced(source, target)
            if str(target).endswith(".geojson"):
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = after_the_outlines  # type: ignore[assignment]
        segment_slide(other, tmp_path, SETTINGS, MODEL)

    assert killed(work, lambda pid: None) == -signal.SIGKILL
    assert outlines(tmp_path) != first
    segment_slide(replace(job, slide_fingerprint="other"), tmp_path, SETTINGS, MODEL)  # it fails once
    segment_slide(job, tmp_path, SETTINGS, MODEL)
    assert outlines(tmp_path) == first
