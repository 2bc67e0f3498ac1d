"""What a record calls the same request: all that changes outlines, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wsiseg.fleet import Job, Settings, record
from wsiseg.fleet.record import request_fingerprint

JOB = Job("/slides/a.svs", "a.svs", ("the olive",))
CHANGES = {
    "backend": "tiffslide", "mpp": 1.0, "threshold": 0.6, "min_area_um2": 11.0, "simplify_um": 0.5, "separate": True,
    "origin": "slide", "on_bad_tile": "skip", "weights": "8bit", "first_pass": True, "deterministic": True,
    "format": "asap",
}  # fmt: skip


def test_a_request_is_all_that_changes_outlines(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [JOB, replace(JOB, queries=("the orange",)), replace(JOB, slide_mpp=0.25)]
    settings = [replace(Settings(), **{name: value}) for name, value in CHANGES.items()]  # type: ignore[arg-type]
    requests = [request_fingerprint(job, Settings()) for job in jobs]
    requests += [request_fingerprint(JOB, changed) for changed in settings]
    monkeypatch.setattr(record, "__version__", "0.0.0")
    requests.append(request_fingerprint(JOB, Settings()))
    assert len(set(requests)) == len(requests) == 4 + len(CHANGES)


def test_a_request_is_not_where_the_slide_lies_or_how_fast_it_is_done() -> None:
    elsewhere = replace(JOB, source="/moved/a.svs", name="b", label="case 1")
    quick = replace(Settings(), batch_size=3, device="cuda", cache=False, model="folder", model_fingerprint="f")
    assert request_fingerprint(elsewhere, quick) == request_fingerprint(JOB, Settings())
