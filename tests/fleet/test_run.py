"""Many slides: nothing lost, nothing twice, whatever happens on the way."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fleet.slides import MODEL, NAMES, QUERIES, SETTINGS, Report, TellingModel, outlines, small_slides
from wsiseg.errors import FleetError, ModelError, OutputError, SlideError
from wsiseg.fleet import Job, Settings, jobs_in_folder, read_manifest, read_run, run, tile_slide, work
from wsiseg.formats import asap
from wsiseg.qupath import check_dialect
from wsiseg.result import Result
from wsiseg.testing import FakeModel
from wsiseg.tiles import GridSpec


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


def test_a_carriage_return_ends_no_row_of_the_summary(jobs: list[Job], tmp_path: Path) -> None:
    run([replace(jobs[0], label="case\r1")], tmp_path, SETTINGS, model=MODEL)
    table = (tmp_path / "summary.csv").read_bytes()
    assert table.count(b"\n") == 1 + len(QUERIES)
    assert table.count(b"\r") == table.count(b'"case\r1"') == len(QUERIES)


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


def test_a_format_that_could_not_be_written_is_made_of_the_geojson_later(
    jobs: list[Job], telling: TellingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (first,) = run(jobs[:1], tmp_path, SETTINGS, model=telling)
    asked, as_asap = len(telling.pids()), replace(SETTINGS, format="asap")
    monkeypatch.setattr(asap, "write", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        run(jobs[:1], tmp_path, as_asap, model=telling)
    monkeypatch.undo()
    assert json.loads((tmp_path / "run.json").read_text())["slides"][0]["status"] == "pending"
    (second,) = run(jobs[:1], tmp_path, as_asap, model=telling)
    assert (second.status, second.polygons, second.tiles) == ("done", first.polygons, first.tiles)
    assert len(telling.pids()) == asked


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
    jobs: list[Job], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_outlines_that_a_format_cannot_take_end_no_run(
    jobs: list[Job], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Result.write

    def picky(self: Result, path: Path, name: str) -> None:
        if path == tmp_path / "a.tif.geojson":
            raise ValueError("no such outlines")
        write(self, path, name)

    monkeypatch.setattr(Result, "write", picky)
    first, *others = run(jobs, tmp_path, SETTINGS, model=MODEL)
    assert (first.status, first.reason) == ("failed", "ValueError: no such outlines")
    assert {record.status for record in others} == {"done"}
    monkeypatch.undo()
    run(jobs, tmp_path, SETTINGS, model=MODEL)
    assert outlines(tmp_path) == whole


def test_an_output_that_cannot_be_replaced_fails_its_slide_before_the_work(
    jobs: list[Job], telling: TellingModel, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "a.tif.geojson").mkdir(parents=True)
    first, *others = run(jobs, out, SETTINGS, model=telling)
    assert (first.status, first.reason) == ("failed", f"cannot write {out / 'a.tif.geojson'}: it is a folder")
    assert {record.status for record in others} == {"done"}
    asked = len(telling.pids())
    (out / "a.tif.geojson").rmdir()
    run(jobs, out, SETTINGS, model=telling)
    assert outlines(out) == whole
    assert len(telling.pids()) > asked == 2 * (len(telling.pids()) - asked)


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
