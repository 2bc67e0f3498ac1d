"""What a killed run has paid for is not paid for again, and the outlines are the same bytes."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsiseg
from tests.fleet.slides import TellingModel
from wsiseg.inference import TileMask
from wsiseg.inference.journal import Journal, rounded
from wsiseg.inference.shots import Shot
from wsiseg.testing import FakeModel, disk, stripe, synthetic_slide

RUN_FAKE = [sys.executable, str(Path(__file__).parents[1] / "cli" / "run_fake.py")]
QUERIES = ["the olive", "the orange"]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.tif"
    synthetic_slide(path, {"olive": [disk(300, 300, 100)], "orange": [stripe(200, 600, 700, 40)]})
    return path


@pytest.fixture(scope="module")
def whole(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "out.geojson"
    wsiseg.segment(slide, QUERIES, model=FakeModel(tile_size=128, overlap=32), batch_size=4).write(out)
    return out.read_bytes()


class StopError(Exception):
    """What stops a run in these tests."""


def stopped_after(slide: Path, batches: int, work: Path) -> None:
    """A run that ends after so many batches, of four tiles each."""

    def progress(done: int, total: int) -> None:
        if done >= 4 * batches:
            raise StopError

    model = FakeModel(tile_size=128, overlap=32)
    with pytest.raises(StopError):
        wsiseg.segment(slide, QUERIES, model=model, batch_size=4, work=str(work), progress=progress)


def gone_on(slide: Path, work: Path, tmp_path: Path, **options: int) -> tuple[int, bytes]:
    """Batches that the model was asked for, over all queries, and the GeoJSON."""
    model = TellingModel(tmp_path / "log")
    model.log.unlink(missing_ok=True)
    out = tmp_path / "out.geojson"
    wsiseg.segment(slide, QUERIES, model=model, work=work, **{"batch_size": 4, **options}).write(out)
    return len(model.pids()), out.read_bytes()


def test_only_the_unfinished_tiles_are_asked_for_again(slide: Path, whole: bytes, tmp_path: Path) -> None:
    everything, _ = gone_on(slide, tmp_path / "never", tmp_path)
    stopped_after(slide, 3, tmp_path / "work")
    again, found = gone_on(slide, tmp_path / "work", tmp_path)
    assert (again, found) == (everything - 3 * len(QUERIES), whole)
    assert gone_on(slide, tmp_path / "work", tmp_path) == (0, whole)
    stopped_after(slide, 3, tmp_path / "other")
    assert gone_on(slide, tmp_path / "other", tmp_path, batch_size=7)[1] == whole


def test_a_torn_or_damaged_journal_is_used_as_far_as_it_is_sound(slide: Path, whole: bytes, tmp_path: Path) -> None:
    stopped_after(slide, 4, tmp_path / "work")
    (journal,) = (tmp_path / "work").iterdir()
    sound = journal.read_bytes()
    rng = random.Random(0)
    for _ in range(6):
        cut = sound[: rng.randrange(len(sound))]
        journal.write_bytes(cut)
        assert gone_on(slide, tmp_path / "work", tmp_path)[1] == whole
        at = rng.randrange(len(sound))
        journal.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        assert gone_on(slide, tmp_path / "work", tmp_path)[1] == whole


def test_answers_to_another_question_are_never_taken(slide: Path, whole: bytes, tmp_path: Path) -> None:
    work = tmp_path / "work"
    stopped_after(slide, 3, work)
    before = set(work.iterdir())
    wsiseg.segment(slide, QUERIES[:1], model=FakeModel(tile_size=128, overlap=32), work=work)
    assert not before & set(work.iterdir())  # nor do they pile up
    other = FakeModel(tile_size=128, overlap=32)
    other.fingerprint = "fake-2"
    stopped_after(slide, 3, work)
    before = set(work.iterdir())
    wsiseg.segment(slide, QUERIES, model=other, work=work)
    assert not before & set(work.iterdir())


def test_answers_after_another_example_are_never_taken(slide: Path, tmp_path: Path) -> None:
    class Shown(TellingModel):
        def with_shots(self, shots: Sequence[Shot]) -> TellingModel:
            return self

    model, asked = Shown(tmp_path / "log"), []
    for size in (8, 8, 9):
        shot = Shot(np.zeros((size, size, 3), np.uint8), np.eye(size), 1.0)
        wsiseg.segment(slide, QUERIES[0], model=model, examples=[shot], work=tmp_path / "work")
        asked.append(len(model.pids()))
    assert asked == [asked[0], asked[0], 2 * asked[0]]


def test_a_deterministic_run_takes_no_answers_of_another(slide: Path, whole: bytes, tmp_path: Path) -> None:
    everything, _ = gone_on(slide, tmp_path / "never", tmp_path)
    stopped_after(slide, 3, tmp_path / "work")
    assert gone_on(slide, tmp_path / "work", tmp_path, deterministic=True) == (everything, whole)


def test_what_else_lies_in_the_folder_of_a_journal_is_left_alone(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    journal = Journal(work / "a.answers", 128)
    journal.add(np.arange(1), {"q": [TileMask(None, "no", 0.0)]})
    journal._give_up(OSError(28, "No space left on device"))
    assert [path.name for path in work.iterdir()] == ["mine.txt"]


def test_masks_come_back_as_they_were_given_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    said = [TileMask(rng.random((64, 64), np.float32), "ein Wort µ", 0.1 + 0.2), TileMask(None, "", 1e-9)]
    said = [rounded(mask) for mask in said]
    for read_back in (False, True):
        with Journal(tmp_path / "a", 64) as journal:
            kept = list(journal.replay())
            assert len(kept) == read_back
            journal.add(np.array([5, 7]), {"q": said})
    ((indices, masks),) = kept
    assert indices.tolist() == [5, 7]
    for a, b in zip(masks["q"], said, strict=True):
        assert (a.reasoning, a.seg_probability) == (b.reasoning, b.seg_probability)
        np.testing.assert_array_equal(a.probability, b.probability)  # type: ignore[arg-type]
    assert said[0].probability is not None
    assert rounded(said[0]).probability == pytest.approx(said[0].probability, abs=0)


def test_what_json_cannot_hold_is_kept_too(tmp_path: Path) -> None:
    """Of a model of the user's own, which is run without a journal whatever it says."""
    with Journal(tmp_path / "a", 64) as journal:
        journal.add(np.array([0]), {"q": [TileMask(None, "half a \ud83d", math.nan)]})
    with Journal(tmp_path / "a", 64) as journal:
        ((_, masks),) = journal.replay()
    assert masks["q"][0].reasoning == "half a ?"
    assert math.isnan(masks["q"][0].seg_probability)


@pytest.mark.parametrize(
    ("batches", "sound"),
    [([[0, 1], [3, 4], [5, 6]], [[0, 1]]), ([[0, 2], [3, 4]], []), ([[1, 2]], []), ([[0, 1], [2, 4]], [[0, 1]])],
)
def test_a_run_that_leaves_no_tile_out_forgets_answers_from_the_first_gap_on(
    tmp_path: Path, batches: list[list[int]], sound: list[list[int]]
) -> None:
    said = {"q": [TileMask(None, "no", 0.0)] * 2}
    with Journal(tmp_path / "a", 8) as journal:
        for batch in batches:
            journal.add(np.array(batch), said)
    with Journal(tmp_path / "a", 8) as journal:
        assert [indices.tolist() for indices, _ in journal.replay()] == batches
    with Journal(tmp_path / "a", 8, gaps=False) as journal:
        assert [indices.tolist() for indices, _ in journal.replay()] == sound
        journal.add(np.array([7, 8]), said)  # as long as the one that was forgotten: what follows that must go, too
    with Journal(tmp_path / "a", 8) as journal:
        assert [indices.tolist() for indices, _ in journal.replay()] == [*sound, [7, 8]]


def test_a_full_disk_ends_the_keeping_and_nothing_else(
    slide: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A file that takes the first frames, and of the next one only half."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 3

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.left -= 1
            return int(self.file.write(data if self.left > 0 else data[: len(data) // 2]))

    opened = Journal._open

    def open_full(journal: Journal, path: Path) -> None:
        opened(journal, path)
        journal._file = Full(journal._file)  # type: ignore[assignment]

    monkeypatch.setattr(Journal, "_open", open_full)
    assert gone_on(slide, tmp_path / "work", tmp_path)[1] == whole
    assert not (tmp_path / "work").exists()


def test_two_at_one_output_do_not_disturb_each_other(tmp_path: Path) -> None:
    mask = [rounded(TileMask(np.zeros((8, 8), np.float32), "", 0.5))]
    with Journal(tmp_path / "a", 8) as first, Journal(tmp_path / "a", 8) as second:
        for i in range(3):
            first.add(np.array([i]), {"q": mask})
            second.add(np.array([i]), {"q": mask})
    with Journal(tmp_path / "a", 8) as journal:
        assert [indices.tolist() for indices, _ in journal.replay()] == [[0], [1], [2]]


@pytest.mark.parametrize("moments", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_the_command_killed_at_random_moments_goes_on(
    slide: Path, whole: bytes, tmp_path: Path, moments: int
) -> None:
    """One output, killed again and again: every run goes on from what the ones before have done."""
    out, rng = tmp_path / "out.geojson", random.Random(moments)
    args = [*RUN_FAKE, "segment", str(slide), *(f"--query={q}" for q in QUERIES), "--batch-size", "4"]
    environment = os.environ | {"FAKE_SECONDS": "0.05"}
    for _ in range(moments):
        process = subprocess.Popen([*args, "--out", str(out)], stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + 60
        while process.poll() is None and not any(tmp_path.glob(".out.geojson.answers/*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*args, "--out", str(out)], check=True, stderr=subprocess.DEVNULL)
    assert out.read_bytes() == whole
    assert os.listdir(tmp_path) == ["out.geojson"]


def test_an_error_keeps_what_was_answered(slide: Path, whole: bytes, tmp_path: Path) -> None:
    """A GPU that fails in one batch, for example."""

    class Failing(FakeModel):
        def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
            if len(list((tmp_path / "work").glob("*"))) and next(counted) >= 3:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return super().segment_tiles(tiles, query, mpp)

    counted = iter(range(100))
    model = Failing(tile_size=128, overlap=32)
    with pytest.raises(RuntimeError, match="CUDA error"):
        wsiseg.segment(slide, QUERIES, model=model, batch_size=4, work=tmp_path / "work")
    everything, _ = gone_on(slide, tmp_path / "never", tmp_path)
    again, found = gone_on(slide, tmp_path / "work", tmp_path)
    assert found == whole
    assert again < everything
