"""Decisions are on the disk when they are made, say what they are about, and never touch the data."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.review.conftest import INFO, bytes_of, discs, grown
from wsiseg.errors import DataError, OutputError
from wsiseg.training.data.build import questions
from wsiseg.training.data.store import QuadrupletStore, write_quadruplets
from wsiseg.training.review.journal import load_mask, read_reviews, save_mask
from wsiseg.training.review.session import Review

Person = Callable[[str], Review]


def lines(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_decision_is_beside_the_data_with_name_and_time(person: Person, store: Path) -> None:
    before = files(store)
    review = person("  Dr.  X ")
    review.decide(0, {"mask": "accepted", "chain": "corrected"}, "Two glands, dark.")
    review.correct_mask(2, bytes_of(grown(1)))
    review.decide(1, {"mask": "rejected"})
    written = lines(store.with_suffix(".review"))
    assert [(line["part"], line["image"], line["concept"], line["verdict"]) for line in written] == [
        ("mask", "set/0", "gland", "accepted"),
        ("chain", "set/0", "gland", "corrected"),
        ("mask", "set/1", "gland", "corrected"),
        ("mask", "set/0", "cat", "rejected"),
    ]
    assert {line["name"] for line in written} == {"Dr. X"}
    assert all(line["time"].endswith("+00:00") and len(line["judged"]) == 32 for line in written)
    assert written[1]["text"] == "Two glands, dark."
    # Who sits down again finds all of it; the data are as they were.
    again = person("Dr. X")
    np.testing.assert_array_equal(again.labels(2), grown(1))
    assert again.question(0)["corrected"] == "Two glands, dark."
    assert [again.describe()["states"][i]["mask"] for i in range(3)] == ["accepted", "rejected", "corrected"]
    assert files(store) == before


def test_undo_takes_back_what_was_done_in_this_session(person: Person) -> None:
    review = person("X")
    review.correct_mask(0, bytes_of(grown()))
    review.decide(0, {"mask": "rejected", "chain": "rejected"})
    np.testing.assert_array_equal(review.labels(0), discs(0).layers["gland"])
    assert review.undo()[0] == 0
    np.testing.assert_array_equal(person("X").labels(0), grown())
    assert person("X").describe()["states"][0]["chain"] == ""
    assert review.undo()[0] == 0
    assert review.undo() == (None, [])
    assert person("X").describe()["states"][0]["mask"] == ""


def test_what_has_changed_since_is_undecided_and_says_so(person: Person, store: Path) -> None:
    review = person("X")
    review.decide(0, {"mask": "accepted", "chain": "accepted"})
    store.rename(store.with_name("old.zarr"))
    sample = discs(0)
    asked = [replace(q, reasoning="Another chain.") if q.present else q for q in questions(sample)]
    write_quadruplets(store, [sample], INFO, {sample.name: asked})
    state = person("X").describe()["states"][0]
    assert (state["mask"], state["chain"], state["changed"]) == ("accepted", "", True)
    person("X").decide(0, {"chain": "rejected"})
    assert person("X").describe()["states"][0]["changed"] is False


def test_two_questions_about_one_mask_share_its_verdict(tmp_path: Path) -> None:
    sample = discs(0)
    first = questions(sample)[0]
    asked = [first, replace(first, query="and the glands?", reasoning="Two.")]
    write_quadruplets(tmp_path / "a.zarr", [sample], INFO, {sample.name: asked})
    review = Review(QuadrupletStore.open(tmp_path / "a.zarr"), "X")
    changes = dict(review.decide(0, {"mask": "rejected", "chain": "rejected"}))
    assert (changes[1]["mask"], changes[1]["chain"]) == ("rejected", "")


def test_a_line_that_was_cut_off_costs_only_itself(
    person: Person, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    person("X").decide(0, {"mask": "accepted"})
    (path,) = store.with_suffix(".review").glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])  # killed, or the power went
    person("X").decide(2, {"mask": "rejected"})
    caplog.clear()
    states = person("X").describe()["states"]
    assert (states[0]["mask"], states[2]["mask"]) == ("accepted", "rejected")
    assert "line 2 is no decision" in caplog.text


def test_a_full_disk_leaves_no_half_line(person: Person, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    review = person("X")
    review.decide(0, {"mask": "accepted"})
    before = files(store.with_suffix(".review"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            review.decide(2, {"mask": "accepted"})
    assert files(store.with_suffix(".review")) == before
    assert review.describe()["states"][2]["mask"] == ""
    assert review.undo()[0] == 0


def test_any_name_is_a_file_in_the_folder(person: Person, store: Path) -> None:
    names = ("../../etc/passwd", "<script>alert(1)</script>", "Ärztin 李", "Ärztin 王", "a" * 500, "CON", ".")
    for count, name in enumerate(names, 1):
        person(name).decide(0, {"mask": "accepted"})
        assert len(list(store.with_suffix(".review").glob("*.jsonl"))) == count
        assert person(name).describe()["states"][0]["mask"] == "accepted"
    assert {path.name for path in store.parent.iterdir()} == {"discs.zarr", "discs.review"}


def test_names_that_differ_are_different_people(person: Person, store: Path) -> None:
    for name in ("Dr. X", "dr x"):
        person(name).decide(0, {"mask": "accepted"})
    assert read_reviews(store.with_suffix(".review")).keys() == {"Dr. X", "dr x"}
    with pytest.raises(DataError, match="--name"):
        person(" \u202e ")


@pytest.mark.parametrize(
    "line",
    [
        b"[]", b"3", b"\xff", b'{"name": "X"}', b"{}",
        b'{"part":"mask","image":"set/0","concept":"gland","verdict":"corrected","judged":"","name":"X","time":"",'
        b'"mask":"../../../etc/passwd"}',
        b'{"part":"mask","image":"set/0","concept":"gland","verdict":"great","judged":"","name":"X","time":""}',
        b'{"part":"mask","image":["set/0"],"concept":"gland","verdict":"accepted","judged":"","name":"X","time":""}',
    ],
)  # fmt: skip
def test_foreign_lines_are_left_out(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(line + b"\n")
    assert read_reviews(tmp_path) == {}


def test_what_nobody_may_say_is_refused_and_not_written(person: Person, store: Path) -> None:
    review = person("X")
    for verdicts, text in (
        ({"mask": "fine"}, ""), ({"query": "accepted"}, ""), ({"mask": "corrected"}, ""),
        ({"chain": "corrected"}, "  "), ({"chain": "corrected"}, "long " * 1000),
    ):  # fmt: skip
        with pytest.raises(DataError):
            review.decide(0, verdicts, text)
    with pytest.raises(DataError, match="bytes"):
        review.correct_mask(0, b"\1\0")
    with pytest.raises(DataError, match="nothing is left"):
        review.correct_mask(0, bytes_of(np.zeros((72, 96))))
    assert not store.with_suffix(".review").exists()


def test_masks_are_kept_to_the_last_label(tmp_path: Path) -> None:
    labels = np.array([[0, 65535], [256, 1]], np.uint16)
    name = save_mask(tmp_path / "a.review", labels)
    np.testing.assert_array_equal(load_mask(tmp_path / "a.review", name, (2, 2)), labels)
    with pytest.raises(DataError, match="not \\(3, 3\\)"):
        load_mask(tmp_path / "a.review", name, (3, 3))
    with pytest.raises(DataError, match="cannot read the corrected mask"):
        load_mask(tmp_path / "a.review", "0" * 64, (2, 2))


def test_everybody_sees_the_same_questions(store: Path) -> None:
    few = Review(QuadrupletStore.open(store), "X", split="train", limit=3)
    assert [q.image for q in few.questions] == [0, 2, 3]
    assert few.questions == Review(QuadrupletStore.open(store), "Y", split="train", limit=3).questions
    with pytest.raises(DataError, match="it has: train, val"):
        Review(QuadrupletStore.open(store), "X", split="test")


def test_others_are_heard_only_where_one_has_decided(person: Person) -> None:
    first, second = person("X"), person("Y")
    first.decide(0, {"mask": "rejected", "chain": "corrected"}, "No.")
    assert second.describe()["others"] == ["X"]
    assert second.question(0)["others"] == []
    assert second.describe()["states"][0]["disagreed"] is False
    second.decide(0, {"mask": "accepted"})
    assert [(o["name"], o["part"], o["verdict"]) for o in second.question(0)["others"]] == [("X", "mask", "rejected")]
    assert second.describe()["states"][0]["disagreed"] is True
    first.correct_mask(0, bytes_of(grown()))
    second.describe()
    np.testing.assert_array_equal(second.labels(0, "X"), grown())
    np.testing.assert_array_equal(second.labels(0), discs(0).layers["gland"])
    second.decide(0, {"mask": ""})
    for name in ("X", "Y", "nobody"):
        with pytest.raises(DataError, match="not before you have decided"):
            second.labels(0, name)
