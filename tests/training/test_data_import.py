"""Importers: any folder of images and masks, and the public sets."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.model.small import small_config
from wsiseg.cli.data import command
from wsiseg.errors import DataError
from wsiseg.training.data.build import import_folder, import_set, questions
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.data.importers import IMPORTERS, NUINSSEG_VAL_ORGANS
from wsiseg.training.data.sources import SOURCES
from wsiseg.training.examples import ExampleStream


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twelve pictures with a disk, the last one without."""
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    y, x = np.mgrid[:64, :80]
    for i in range(12):
        mask = ((y - 30) ** 2 + (x - 40) ** 2 < 200) & (i < 11)
        image = np.where(mask[..., None], (90, 40, 120), (230, 160, 190)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"case{i}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"case{i}.png")
    return folder


def test_a_folder_becomes_a_store(pairs: Path, tmp_path: Path) -> None:
    store = import_folder(pairs, tmp_path / "a.zarr", label="Nuclei", mpp=0.25)
    assert len(store) == 12
    sample = next(store.sample(i) for i in range(12) if store.records[i].name == "mine/case0")
    assert set(np.unique(sample.layers["nucleus"])) == {0, 1}
    assert sample.mpp == 0.25
    empty = next(record for record in store.records if record.name == "mine/case11")
    assert "nucleus" in empty.absent
    assert empty.present == ()
    assert {record.split for record in store.records} <= {"train", "val"}


def test_a_structure_that_no_table_names_is_asked_for_and_refused(pairs: Path, tmp_path: Path) -> None:
    store = import_folder(pairs, tmp_path / "a.zarr", label="tubulitis", mpp=0.5)
    stream = ExampleStream(store, small_config(), split="train", seed=0, questions=3, length=100)
    own = [question for i in range(100) for question in stream[i].questions if question.concept == "tubulitis"]
    assert {question.mask is not None for question in own} == {True, False}
    assert all("tubulitis" in question.answer for question in own)


def test_masks_that_do_not_fit_are_named(pairs: Path, tmp_path: Path) -> None:
    (pairs / "masks" / "case3.png").unlink()
    with pytest.raises(DataError, match="case3"):
        import_folder(pairs, tmp_path / "a.zarr", label="gland", mpp=1)
    Image.new("L", (5, 5)).save(pairs / "masks" / "case3.png")
    with pytest.raises(DataError, match="5 × 5"):
        import_folder(pairs, tmp_path / "a.zarr", label="gland", mpp=1)
    assert not (tmp_path / "a.zarr").exists()


def test_the_command_line(pairs: Path, tmp_path: Path) -> None:
    run = CliRunner()
    out = str(tmp_path / "a.zarr")
    done = run.invoke(
        command, ["import", "folder", str(pairs), "--label", "fibroblasts", "--mpp", "0.5", "--out", out]
    )
    assert done.exit_code == 0, done.output
    shown = run.invoke(command, ["stats", out])
    assert shown.exit_code == 0
    assert "fibroblasts" in shown.output
    assert "12 images" in done.output
    assert run.invoke(command, ["import", "folder", str(pairs), "--out", out]).exit_code == 2


@pytest.mark.shared
@pytest.mark.parametrize("name", list(IMPORTERS))
def test_a_public_set_reads_and_never_asks_for_both(shared_data: Path, name: str) -> None:
    """The first images of each set; the whole sets are counted from their index below."""
    place = "research_only" if SOURCES[name].research_only else "open"
    asked = Counter()
    for sample in islice(IMPORTERS[name](shared_data / place / name), 6):
        assert not set(sample.present) & set(sample.absent)
        assert (sample.split == "test") == SOURCES[name].research_only
        for question in questions(sample):
            asked[question.present] += 1
            assert (question.concept in sample.layers) == question.present
            assert question.present or question.concept in sample.absent
            if sample.split == "train":
                assert not CONCEPTS[question.concept].held_back
    assert asked[False] * 3 >= asked.total()


@pytest.mark.shared
def test_small_sets_whole(shared_data: Path, tmp_path: Path) -> None:
    store = import_set("dsb2018_histology", shared_data / "open" / "dsb2018_histology", tmp_path / "d.zarr")
    nuclei = sum(len(np.unique(store.sample(i).layers["nucleus"])) - 1 for i in store.indices())
    assert len(store) == 105
    assert nuclei == 4531
    assert 8 <= len(store.indices(split="val")) <= 24
    assert sum(not q.present for q in store.quadruplets) * 3 >= len(store.quadruplets)


@pytest.mark.shared
def test_validation_keeps_whole_organs_and_patients_back(shared_data: Path) -> None:
    import csv

    with open(shared_data / "open" / "nuinsseg" / "index.csv", newline="") as file:
        organs = {row["organ"] for row in csv.DictReader(file)}
    assert set(NUINSSEG_VAL_ORGANS) < organs
    with open(shared_data / "open" / "ebhi_seg" / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    train, val = ({row["patient"] for row in rows if row["split"] == split} for split in ("train", "val"))
    assert train
    assert val
    assert not train & val
