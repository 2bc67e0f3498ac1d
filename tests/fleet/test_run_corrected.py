"""Outlines that a person corrected, or that no run wrote, are never replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fleet.slides import MODEL, QUERIES, SETTINGS, outlines, small_slides
from wsiseg.errors import FleetError, OutputError
from wsiseg.fleet import Job, jobs_in_folder, run
from wsiseg.testing import FakeModel


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
