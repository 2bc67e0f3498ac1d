"""What a record calls the same request: all that changes outlines, and no more."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from wsiseg.errors import SlideError
from wsiseg.fleet import Job, Settings, record, work
from wsiseg.fleet.record import request_fingerprint
from wsiseg.testing import FakeModel

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


def test_what_is_asked_for_reaches_the_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that did not would be told in every file, and have changed nothing."""
    reached: dict[str, Any] = {}

    def segment(source: str, queries: tuple[str, ...], **arguments: Any) -> None:
        reached.update(arguments)
        raise SlideError("enough")

    monkeypatch.setattr(work, "segment", segment)
    monkeypatch.setattr(work, "content_fingerprint", lambda *_: "f")
    settings = replace(Settings(), **CHANGES, batch_size=3, cache=False)  # type: ignore[arg-type]
    work.segment_slide(replace(JOB, slide_mpp=0.25), tmp_path, settings, FakeModel())
    of_the_model_or_the_file = {"model", "model_fingerprint", "device", "weights", "format"}
    wanted = {key: value for key, value in asdict(settings).items() if key not in of_the_model_or_the_file}
    assert wanted | {"slide_mpp": 0.25} == {key: reached[key] for key in (*wanted, "slide_mpp")}
