"""Importers: any folder of images and masks, and the public sets."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFilter

from wsiseg.cli.data import command
from wsiseg.errors import DataError, SlideError, WsisegError
from wsiseg.training.data.build import import_folder, import_set, questions
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.data.importers import IMPORTERS, NUINSSEG_VAL_ORGANS, SETS, find_file, read_image, read_labels
from wsiseg.training.data.sources import SOURCES
from wsiseg.training.examples import View, ask


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
    for name, there in (("mine/case0", True), ("mine/case11", False)):
        sample = store.sample(next(i for i in range(12) if store.records[i].name == name))
        layers = sample.layers or {"tubulitis": np.zeros((64, 80), np.uint16)}  # as of a view that shows none of it
        example = ask(View(sample.image, layers, ("tubulitis",), 0.5), np.random.default_rng(0), 3, "train")
        [question] = [q for q in example.questions if q.concept == "tubulitis"]
        assert (question.mask is not None) == there
        assert "tubulitis" in question.answer


def test_files_are_named_as_people_name_them(pairs: Path, tmp_path: Path) -> None:
    """Suffixes in capitals, suffixes twice, and what macOS leaves on other disks."""
    (pairs / "masks" / "case0.png").rename(pairs / "masks" / "case0.PNG")
    for part in ("images", "masks"):
        (pairs / part / "case1.png").rename(pairs / part / "case1.tif.png")
        (pairs / part / "._case2.png").touch()
    assert len(import_folder(pairs, tmp_path / "a.zarr", label="gland", mpp=1)) == 12
    Image.open(pairs / "images" / "case3.png").save(pairs / "images" / "case3.bmp")
    with pytest.raises(DataError, match="two images are called mine/case3"):
        import_folder(pairs, tmp_path / "b.zarr", label="gland", mpp=1)
    with pytest.raises(DataError, match=r"no image called case7\.5"):
        find_file(pairs / "masks", "case7.5")


SQUARE = np.zeros((64, 80), np.uint8)
SQUARE[10:40, 20:60] = 255
TWO_COLOURS = Image.fromarray(SQUARE).quantize(2)  # Pillow numbers white 0 and black 1
LABELS_ON_WHITE = Image.fromarray(SQUARE // 85)  # as QuPath's label images: 0 is white, 3 is red
LABELS_ON_WHITE.putpalette([255, 255, 255, 9, 9, 9, 0, 0, 0, 200, 0, 0])


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("bits.png", Image.fromarray(SQUARE).convert("1")),
        ("two-colours.png", TWO_COLOURS),
        ("labels-on-white.png", LABELS_ON_WHITE),
        ("opaque.png", Image.fromarray(np.dstack([SQUARE, 0 * SQUARE, 0 * SQUARE, 0 * SQUARE + 255]))),
        ("deep.png", Image.fromarray(SQUARE.astype(np.uint16) * 257)),
        ("smooth.png", Image.fromarray(SQUARE).filter(ImageFilter.GaussianBlur(2))),
        ("lossy.jpg", Image.fromarray(SQUARE)),
    ],
)
def test_a_mask_is_the_same_however_it_is_coded(name: str, mask: Image.Image, tmp_path: Path) -> None:
    mask.save(tmp_path / name)
    read = read_labels(tmp_path / name, SQUARE.shape)
    assert set(np.unique(read)) == {0, 1}
    assert np.count_nonzero((read > 0) != (SQUARE > 0)) <= 12 * (name == "smooth.png")  # a blur rounds the corners


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (SQUARE // 255 + 1, "none is 0"),  # 1 and 2
        (np.where(SQUARE[..., None], [200, 0, 0], 255).astype(np.uint8), "none is 0"),  # red on white
        ((SQUARE / 300).astype(np.float32) + np.arange(80, dtype=np.float32), "no labels"),  # probabilities
        ((SQUARE * np.arange(0, 24000, 300)).astype(np.int32), "no labels"),
    ],
)
def test_what_is_no_mask_is_refused(mask: np.ndarray, says: str, tmp_path: Path) -> None:
    Image.fromarray(mask).save(tmp_path / "m.tif")
    with pytest.raises(WsisegError, match=says):
        read_labels(tmp_path / "m.tif", SQUARE.shape)


def test_images_are_read_as_slides_are(pairs: Path, tmp_path: Path) -> None:
    clear = np.zeros((64, 80, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()  # what is transparent lies on white
    Image.fromarray(clear[..., 0].astype(np.uint16)).save(pairs / "images" / "case3.png")
    with pytest.raises(SlideError, match="16 or 32 bits"):
        import_folder(pairs, tmp_path / "a.zarr", label="gland", mpp=1)
    assert not (tmp_path / "a.zarr").exists()


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


@pytest.mark.parametrize("name", list(IMPORTERS))
def test_an_index_of_something_else_is_refused(name: str, pairs: Path, tmp_path: Path) -> None:
    """As that of a QuPath project; saved by Excel, an index of the set itself begins with a byte order mark."""
    (pairs / "index.csv").write_text("slide,geojson\na.svs,a.geojson\n")
    with pytest.raises(DataError, match=r"index\.csv lacks the columns? file\b.*it has: slide, geojson"):
        import_set(name, pairs, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    columns = SETS[name].columns if name in SETS else ("file", "cls", "patient", "split")
    row = dict.fromkeys(columns, "train") | {"file": "a___case-0.png"}  # one of the sets reads the case from it
    for part in ("images", "masks"):
        (pairs / part / "case0.png").rename(pairs / part / row["file"])
    (pairs / "index.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n", encoding="utf-8-sig")
    assert len(import_set(name, pairs, tmp_path / "a.zarr")) == 1


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("file,cls,patient,split\nb.png\n", "row 2: one of file, cls, patient, split is empty"),
        ("file,Größe\n", "no CSV in UTF-8"),
    ],
)
def test_a_damaged_index_is_told_as_that(index: str, says: str, pairs: Path, tmp_path: Path) -> None:
    (pairs / "index.csv").write_text(index, encoding="latin-1")
    with pytest.raises(DataError, match=says):
        import_set("ebhi_seg", pairs, tmp_path / "a.zarr")


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
