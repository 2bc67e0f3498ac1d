"""Whatever a run.json says, it is jobs and settings of the right types, or a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.strategies import json_like
from wsiseg.errors import FleetError
from wsiseg.fleet import Job, Settings, read_run, run
from wsiseg.testing import FakeModel, disk, synthetic_slide

ASKED = Settings(min_area_um2=1.0, mpp=0.5)


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    synthetic_slide(folder / "a.tif", {"olive": [disk(100, 100, 60)]}, l0_width=200, l0_height=200)
    job = Job(str(folder / "a.tif"), "a.tif", ("the olive",), slide_mpp=(0.5, 0.5), label="case 1")
    run([job], folder / "out", ASKED, model=FakeModel(tile_size=128, overlap=32))
    return folder / "out" / "run.json"


@pytest.fixture(scope="session")
def told(path: Path) -> bytes:
    return path.read_bytes()


def test_it_is_read_as_it_was_asked(path: Path, told: bytes) -> None:
    path.write_bytes(told)
    (job,), asked = read_run(path)
    assert (job.name, job.queries, job.slide_mpp, job.label) == ("a.tif", ("the olive",), (0.5, 0.5), "case 1")
    assert (asked.min_area_um2, asked.mpp, asked.model_fingerprint) == (1.0, 0.5, "fake-1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.pop("slides"), "no 'slides'"),
        (lambda run: run.update(version="0.0"), "only the same version"),
        (lambda run: run["parameters"].update(new=1), "unknown parameters.'new'"),
        (lambda run: run["parameters"].update(threshold="high"), "parameters.threshold must be float, not 'high'"),
        (lambda run: run["parameters"].update(threshold=2), "threshold 2.0 must be above 0 and at most 1"),
        (lambda run: run["parameters"].update(origin="moon"), "origin must be 'qupath' or 'slide', not 'moon'"),
        (lambda run: run["slides"][0].update(queries="glands"), r"slides\[0\].queries must be"),
        (lambda run: run["slides"][0].update(slide_mpp=["a", 1]), r"slides\[0\].slide_mpp"),
        (lambda run: run["slides"][0].update(output="../../x.geojson"), "outside the output folder"),
        (lambda run: run["slides"][0].update(output="/x.geojson"), "outside the output folder"),
        (lambda run: run.update(slides=[1]), "not the run.json"),
    ],
)
def test_a_malformed_one_is_a_sentence(path: Path, told: bytes, change: Callable[[Any], object], said: str) -> None:
    run_json = json.loads(told)
    change(run_json)
    path.write_text(json.dumps(run_json))
    with pytest.raises(FleetError, match=said):
        read_run(path)


@given(data=st.data(), value=json_like)
@settings(max_examples=150, deadline=None)
def test_any_value_in_any_place(path: Path, told: bytes, data: st.DataObject, value: Any) -> None:
    run_json = json.loads(told)
    places = [run_json, run_json["model"], run_json["parameters"], run_json["slides"][0]]
    holder = data.draw(st.sampled_from(places))
    holder[data.draw(st.sampled_from(sorted(holder)) | st.text(max_size=6))] = value
    path.write_text(json.dumps(run_json))
    with suppress(FleetError):
        jobs, asked = read_run(path)
        assert all(isinstance(job.source, str) and isinstance(job.queries, tuple) for job in jobs)
        assert all(isinstance(query, str) for job in jobs for query in job.queries)
        assert (path.parent / f"{jobs[0].name}.geojson").resolve().is_relative_to(path.parent) if jobs else True
        assert asked.batch_size is None or type(asked.batch_size) is int
        assert type(asked.threshold) is float


@given(data=st.binary(max_size=60))
@example(b"[" * 3000)
@settings(deadline=None)
def test_any_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(FleetError):
        read_run(path)
