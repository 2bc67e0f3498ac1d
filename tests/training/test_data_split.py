"""`wsiseg data split`, `sample` and `stats`: no patient on both sides, no wording either; the same seed, the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.cli.main import main
from wsiseg.training.data.build import questions
from wsiseg.training.data.chains import Chain
from wsiseg.training.data.concepts import CONCEPTS, known_absent
from wsiseg.training.data.queries import nouns
from wsiseg.training.data.split import assign, split_store
from wsiseg.training.data.store import QuadrupletStore, Sample, SourceInfo, write_quadruplets

HELD_BACK = next(key for key in known_absent("nuinsseg", "human brain") if CONCEPTS[key].held_back)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources; in `a` 20 patients of 1 to 4 images, of whom p0 and p1 share an image; in `b` one patient."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for source, patients in (("a", 20), ("b", 1)):
        for p in range(patients):
            for i in range(1 + p % 4):
                mask = np.zeros((32, 48), np.uint16)
                mask[4:12, 4 : 12 + p], mask[20:28, 4:12] = 1, 2
                image = rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)
                if source == "a" and p == 1 and i == 0:
                    image = samples[0].image
                concept = "gland" if p % 2 else "nucleus"
                split = "val" if p in (2, 3) else "test" if p == 4 else "train"
                absent = ("necrosis", "cartilage") if split == "train" else ("necrosis", HELD_BACK)
                mpp = 0.5 if source == "a" else None
                name = f"{source}/{p}-{i}"
                samples.append(Sample(image, {concept: mask}, (concept,), absent, mpp, source, f"p{p}", split, name))
    path = tmp_path_factory.mktemp("split") / "both.zarr"
    infos = {name: SourceInfo(name, "CC0", "us", "made", "by patient") for name in "ab"}
    chains = [Chain(s.name, "gland", True, f"Of {s.name}.", "", (), "seer", "thinker") for s in samples]
    write_quadruplets(path, samples, infos, {sample.name: questions(sample) for sample in samples}, chains)
    return path


def run(*words: str | Path) -> Result:
    done = CliRunner().invoke(main, ["data", *map(str, words)])
    assert done.exit_code == 0, done.stderr
    return done


def splits(path: Path) -> dict[str, str]:
    return {record.name: record.split for record in QuadrupletStore.open(path).records}


def test_patients_and_their_doubles_stay_together(store: Path, tmp_path: Path) -> None:
    run("split", store, "--out", tmp_path / "x.zarr", "--val", "0.25", "--test", "0.25")
    now = splits(tmp_path / "x.zarr")
    of_patient = defaultdict(set)
    for name, split in now.items():
        of_patient[name.split("-")[0]].add(split)
    assert of_patient["a/0"] == of_patient["a/1"]
    assert all(len(found) == 1 for found in of_patient.values())
    counts = Counter(split for name, split in now.items() if name.startswith("a/"))
    assert abs(counts["train"] - 25) <= 4
    assert abs(counts["val"] - 12.5) <= 4
    assert abs(counts["test"] - 12.5) <= 4
    assert now["b/0-0"] == "train"  # one patient cannot be on two sides


def test_glass_is_nobodys(tmp_path: Path) -> None:
    """Tiles beyond the tissue are alike in all patients, who would be one patient, and all of them train."""
    white = np.full((16, 16, 3), (244, 243, 240), np.uint8)  # as scanners see glass
    samples = [Sample(white, {}, (), ("yacht",), 0.5, "a", f"p{p}", "train", f"a/{p}") for p in range(4)]
    store = write_quadruplets(tmp_path / "a.zarr", samples, {"a": SourceInfo("a", "CC0", "us", "made", "by patient")})
    divided = split_store(store, tmp_path / "x.zarr", {"val": 0.25})
    assert Counter(record.split for record in divided.records) == {"train": 3, "val": 1}


def test_what_moves_is_asked_in_the_wordings_of_its_side(store: Path, tmp_path: Path) -> None:
    run("split", store, "--out", tmp_path / "x.zarr", "--seed", "3")
    old, new = QuadrupletStore.open(store), QuadrupletStore.open(tmp_path / "x.zarr")
    before, now = splits(store), splits(tmp_path / "x.zarr")
    # without --test, what was set aside stays so
    assert {name for name, split in now.items() if split == "test"} == {n for n, s in before.items() if s == "test"}
    held_back = {noun.text for concept in CONCEPTS.values() for noun in (*concept.val_names, *concept.val_descriptions)}
    kept = moved = 0
    asked = {(old.records[q.image].name, q.concept, q.query) for q in old.quadruplets}
    for i, record in enumerate(new.records):
        if i % 10 == 0:
            np.testing.assert_array_equal(new.sample(i).image, old.sample(i).image)
        if record.split == "train":
            assert not any(CONCEPTS[key].held_back for key in record.absent)
        mine = [q for q in new.quadruplets if q.image == i]
        assert mine
        for question in mine:
            assert question.concept in record.present + record.absent
            if (before[record.name] == "train") == (record.split == "train"):
                assert (record.name, question.concept, question.query) in asked
                kept += 1
            else:
                moved += 1
                if record.split == "train":
                    known = {noun.text for noun in nouns(CONCEPTS[question.concept], "train")}
                    assert not any(word in question.query for word in held_back - known if len(word) > 8)
    assert kept
    assert moved
    assert new.chains == old.chains


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=30),
    st.floats(0.05, 0.45),
    st.floats(0.05, 0.45),
    st.integers(0, 9),
)
def test_shares_are_met_as_well_as_whole_patients_allow(sizes: list[int], val: float, test: float, seed: int) -> None:
    groups = {("a", f"p{i}"): size for i, size in enumerate(sizes)}
    got = assign(groups, {"val": val, "test": test}, seed)
    assert got == assign(dict(reversed(groups.items())), {"val": val, "test": test}, seed)
    assert set(got.values()) == {"train", "val", "test"}
    for split, share in (("val", val), ("test", test), ("train", 1 - val - test)):
        have = sum(groups[group] for group, of in got.items() if of == split)
        assert have - share * sum(sizes) <= max(sizes)  # at most one patient too many


def test_another_seed_is_another_division() -> None:
    groups = {("a", f"p{i}"): 1 for i in range(40)}
    assert assign(groups, {"val": 0.2}, 0) != assign(groups, {"val": 0.2}, 1)


def test_a_sample_has_of_everything(store: Path, tmp_path: Path) -> None:
    done = run("sample", store, "--out", tmp_path / "s.zarr", "--questions", "10")
    assert "10 questions" in done.stderr
    small = QuadrupletStore.open(tmp_path / "s.zarr")
    strata = Counter((small.records[q.image].source, q.present) for q in small.quadruplets)
    assert set(strata) == {("a", True), ("a", False), ("b", True), ("b", False)}
    assert strata["b", True] == 1  # it has no more
    assert len(small) == 9  # b's two questions are about its one image
    assert all(small.reasoning(q).startswith("Of ") for q in small.quadruplets if q.concept == "gland" and q.present)
    few = run("sample", store, "--out", tmp_path / "v.zarr", "--questions", "500", "--split", "val")
    assert {record.split for record in QuadrupletStore.open(tmp_path / "v.zarr").records} == {"val"}
    assert "7 images" in few.stderr


def test_stats_show_scale_area_and_questions(store: Path) -> None:
    shown = run("stats", store).stdout
    words = [line.split() for line in shown.splitlines()]
    assert ["b", "train", "1", "1", "?", "48×32", "1", "1", "1"] in words
    (gland,) = [line for line in words if line[:2] == ["gland", "val"]]
    assert gland[2:4] == ["4", "8"]  # p3: four images of two glands
    assert gland[4:6] == ["9.9", "%"]  # (8 · 11 + 64) of 32 · 48
    assert "a: CC0; us; scale made." in shown
