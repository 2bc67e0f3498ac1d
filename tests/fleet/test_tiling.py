"""A folder of slides into tile stores: each as asked, none given up for another's sake."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from wsiseg.errors import OutputError
from wsiseg.fleet import Job, tile_slides, tiling
from wsiseg.fleet.claim import claimed
from wsiseg.tiles import GridSpec
from wsiseg.under_way import name_slide

SPEC = GridSpec(1.0, 128, 32)
JOBS = [Job(f"/slides/{name}", name, (), slide_mpp=0.25) for name in ("a.svs", "sub/b.svs", "c.svs")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `tile_slide` was called with, and the slide that a warning would name meanwhile."""
    calls: list[tuple[Any, ...]] = []

    def tile_slide(source: str, out: Path, spec: GridSpec, **how: Any) -> Path:
        warning = logging.makeLogRecord({})
        name_slide(warning)
        calls.append((source, out, spec, how, warning.slide))  # type: ignore[attr-defined]
        if "b" in source:
            raise MemoryError("no room for it")
        return out

    monkeypatch.setattr(tiling, "tile_slide", tile_slide)
    return calls


def test_each_slide_is_tiled_as_asked_though_another_fails(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    how: dict[str, Any] = {"backend": "tiffslide", "pixels": False, "on_bad_tile": "skip", "progress": print}
    made = list(tile_slides(JOBS, tmp_path, SPEC, **how))
    stores = [tmp_path / f"{job.name}.zarr" for job in JOBS]
    assert made == list(zip(JOBS, [stores[0], "MemoryError: no room for it", stores[2]], strict=True))
    how["slide_mpp"] = 0.25
    assert asked == [(j.source, s, SPEC, how, f"{j.name}: ") for j, s in zip(JOBS, stores, strict=True)]


def test_a_slide_that_another_process_is_at_is_left_to_it(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    with claimed(tmp_path / ".a.svs.zarr.claim"):
        told = {job.name: made for job, made in tile_slides(JOBS, tmp_path, SPEC)}
    assert str(told["a.svs"]).startswith(f"process {os.getpid()} on ")
    assert [call[0] for call in asked] == ["/slides/sub/b.svs", "/slides/c.svs"]


def test_a_folder_that_cannot_be_written_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(tiling, "tile_slide", full)
    with pytest.raises(OutputError, match="the disk is full"):
        list(tile_slides(JOBS, tmp_path, SPEC))
