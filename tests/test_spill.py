"""Annotations on disk are those that were put there, and memory does not follow their number."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import shapely

import wsiseg.annotate
from wsiseg import spill
from wsiseg.errors import OutputError
from wsiseg.geojson import Annotation, annotation_id, write
from wsiseg.mask import front
from wsiseg.pipeline import segment
from wsiseg.qupath import DESCRIPTION
from wsiseg.spill import SpilledAnnotations
from wsiseg.testing import FakeModel, disk, synthetic_slide


def made(i: int) -> Annotation:
    shape = shapely.Point(100 * i, 7).buffer(30 + i % 3) - shapely.Point(100 * i, 7).buffer(i % 4)
    if i % 5 == 0:
        shape = shapely.MultiPolygon([shape, shapely.box(0, i, 1, i + 1)])
    return Annotation(
        id=annotation_id(shape),
        geometry=shape,
        name=f"query {i % 2}",
        classification="glands",
        color=(1, 2, i % 13),
        measurements={"Area µm^2": i / 3, "Solidity": 1 / (i + 1)} if i % 7 else {},
        metadata={DESCRIPTION: "round " * (i % 3), "tile": "0,0"},
        is_locked=i % 4 == 0,
        nucleus=shapely.box(i % 2, 0, 2, 1) if i % 11 == 0 else None,
    )


def test_what_was_added_in_any_order_is_read_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_READ", 7)
    whole = [made(i) for i in range(60)]
    shuffled = random.Random(0).sample(range(60), 60)
    spilled = SpilledAnnotations()
    for count, i in enumerate(shuffled):
        spilled.add(i // 20, whole[i], 10**11 + i % 20)
        if count == 30:  # reading in between disturbs nothing
            assert list(spilled) == [whole[j] for j in sorted(shuffled[:31])]
    assert len(spilled) == 60
    assert list(spilled) == spilled[:] == pickle.loads(pickle.dumps(spilled)) == whole
    assert spilled[-1] == whole[-1]
    assert spilled[5:50:9] == whole[5:50:9]
    with pytest.raises(IndexError):
        spilled[60]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"cannot keep the outlines in .*nowhere"):
        SpilledAnnotations(tmp_path / "nowhere")
    spilled = SpilledAnnotations(tmp_path)
    spilled.add(0, made(1), 0)

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spilled, "_file", Full())
    with pytest.raises(OutputError, match=f"cannot keep the outlines in {tmp_path}: No space left on device"):
        spilled.add(0, made(2), 1)


def test_processes_that_share_a_result_read_it_whole() -> None:
    """A pool of forked processes, each of which looks up outlines by their number."""
    whole = [made(i) for i in range(300)]
    spilled = SpilledAnnotations()
    for i, annotation in enumerate(whole):
        spilled.add(0, annotation, i)

    def wrong(times: int) -> int:
        return sum(spilled[i] != whole[i] for _ in range(times) for i in range(300))

    if child := os.fork():
        found = wrong(4)
        assert (found, os.waitpid(child, 0)[1]) == (0, 0)
    else:
        with suppress(BaseException):
            os._exit(min(wrong(4), 1))
        os._exit(2)


def test_few_outlines_are_alive_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the trace to the last byte of the GeoJSON, whose bytes are the same."""
    dots = [disk(30 * i + 25, 30 * j + 25, 6) for i in range(36) for j in range(24)]
    synthetic_slide(tmp_path / "dust.tif", {"olive": dots})
    model = FakeModel(mpp=1.0, tile_size=128, overlap=32)
    segment(tmp_path / "dust.tif", "olive", model=model).write(tmp_path / "at-once.geojson")

    alive, most = 0, 0

    class Watched(Annotation):
        def __init__(self, *values: Any, **named: Any) -> None:
            nonlocal alive, most
            super().__init__(*values, **named)
            alive += 1
            most = max(most, alive)
            weakref.finalize(self, self.gone)

        @staticmethod
        def gone() -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(wsiseg.annotate, "Annotation", Watched)
    monkeypatch.setattr(spill, "_READ", 16)
    monkeypatch.setattr(write, "_BATCH", 16)
    monkeypatch.setattr(front, "SETTLE", 4000)
    result = segment(tmp_path / "dust.tif", "olive", model=model)
    assert len(result.annotations) > 800
    result.write(tmp_path / "dust.geojson")
    assert (tmp_path / "dust.geojson").read_bytes() == (tmp_path / "at-once.geojson").read_bytes()
    assert 16 <= most < 100
    tile = max(result.reasoning, key=lambda tile: len(tile.polygons))
    by_id = {a.id: a for a in result.annotations}
    assert len(tile.polygons) > 10
    assert all(isinstance(i, uuid.UUID) for i in tile.polygons)
    assert all(by_id[i].metadata["query"] == "olive" for i in tile.polygons)
