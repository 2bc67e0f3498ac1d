"""Public sets in the layout of their archives: the outlines lie where the files say, the official splits are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsiseg.errors import DataError
from wsiseg.testing import synthetic_slide
from wsiseg.training.data import published
from wsiseg.training.data.build import import_set
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.data.sources import SOURCES
from wsiseg.training.data.split import split_store
from wsiseg.training.data.store import Sample


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(90, 200, (64, 80, 3), np.uint8)


def labels(dtype: type = np.uint8) -> np.ndarray:
    mask = np.zeros((64, 80), dtype)
    mask[10:30, 10:30], mask[40:50, 50:70] = 1, 2
    return mask


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_glas(picture: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train_1", "train_2", "testA_1"):
        save(tmp_path / f"{name}.bmp", picture)
        save(tmp_path / f"{name}_anno.bmp", labels())
    (tmp_path / "Grade.csv").write_text(
        "name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)\n"
        "testA_1, 7, benign, adenomatous\rtrain_1, 3, benign, healthy\rtrain_2, 3, malignant, poor\r"
    )
    by_name = {sample.name: sample for sample in published.glas(tmp_path)}
    assert by_name["glas/testA_1"].split == "test"
    first, second = by_name["glas/train_1"], by_name["glas/train_2"]
    assert (first.group, first.split) == (second.group, second.split) == ("3", first.split)
    assert np.array_equal(first.layers["gland"], labels())
    assert not caplog.messages
    # As in the archive itself, where most test images are of patients who train; in no other set may they be.
    (tmp_path / "Grade.csv").write_text((tmp_path / "Grade.csv").read_text().replace("7", "3"))
    store = import_set("glas", tmp_path, tmp_path / "glas.zarr")
    assert store.sources["glas"].research_only
    assert {record.group for record in store.records} == {"3"}
    assert "1 of the 1 patients" in caplog.messages[0]
    assert len({record.split for record in split_store(store, tmp_path / "one.zarr", {"val": 0.2}).records}) == 1


def test_crag(picture: np.ndarray, tmp_path: Path) -> None:
    for part in ("train", "valid"):
        save(tmp_path / part / "Images" / "a_1.png", picture)
        save(tmp_path / part / "Annotation" / "a_1.png", labels())
    train, valid = published.crag(tmp_path)
    assert (train.split, valid.split) == ("train", "test")
    assert np.array_equal(train.layers["gland"], labels())


def test_monuseg(picture: np.ndarray, tmp_path: Path) -> None:
    name = "TCGA-A7-A13E-01Z-00-DX1"
    save(tmp_path / "MoNuSegTestData" / "Tissue Images" / f"{name}.tif", picture)
    square = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((10, 10), (30, 10), (30, 30), (10, 30)))
    xml = tmp_path / "MoNuSegTestData" / "Annotations" / f"{name}.xml"
    xml.parent.mkdir()
    xml.write_text(
        "<Annotations><Annotation><Regions>"
        f"<Region><Vertices>{square}</Vertices></Region><Region><Vertices><Vertex X='1' Y='1'/></Vertices></Region>"
        "</Regions></Annotation></Annotations>"
    )
    (sample,) = published.monuseg(tmp_path)
    assert (sample.group, sample.split) == ("TCGA-A7-A13E", "test")
    assert np.array_equal(sample.layers["nucleus"], np.where(labels() == 1, 1, 0))
    # That of the test images lies flat, and macOS puts files of its own into archives.
    flat, train = tmp_path / "latest" / "MoNuSegTestData", tmp_path / "latest" / "MoNuSeg 2018 Training Data"
    for folder, case in ((flat, "TCGA-2Z-A9J9-01A"), (train / "Annotations", "TCGA-A7-A13F-01Z")):
        save(folder / f"{case}.tif", picture)
        (folder / f"{case}.xml").write_text(xml.read_text())
        (folder / f"._{case}.xml").touch()
    assert [s.split == "test" for s in published.monuseg(tmp_path / "latest")] == [False, True]
    assert [s.split for s in published.monuseg(flat)] == ["test"]
    xml.write_text(xml.read_text().replace('X="10"', 'X="left"'))
    with pytest.raises(DataError, match="X='left'"):
        list(published.monuseg(tmp_path))


def test_pannuke(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        folder = tmp_path / f"Fold {number}" / "images" / f"fold{number}"
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", np.full((2, 256, 256, 3), 150.0))
        (tmp_path / f"Fold {number}" / "masks" / f"fold{number}").mkdir(parents=True)
        masks = np.zeros((2, 256, 256, 6))
        masks[0, :10, :10, 0], masks[0, 20:30, :10, 0], masks[0, 50:60, :10, 4] = 3, 9, 3
        masks[..., 5] = 1
        np.save(tmp_path / f"Fold {number}" / "masks" / f"fold{number}" / "masks.npy", masks)
    samples = list(published.pannuke(tmp_path))
    assert [sample.split for sample in samples] == ["train", "train", "val", "val", "test", "test"]
    nucleus = samples[0].layers["nucleus"]
    assert len(np.unique(nucleus)) == 4  # three instances, though two of them have the same number in their channels
    assert (nucleus > 0).sum() == 300
    assert "nucleus" in samples[1].absent


def asap(*groups: str) -> str:
    """A square of 400 level-0 pixels in the first group, and a hole in it of 100 in the second."""
    rings = (
        ((1000, 1000), (1400, 1000), (1400, 1400), (1000, 1400)),
        ((1100, 1100), (1200, 1100), (1200, 1200), (1100, 1200)),
    )
    return (
        "<ASAP_Annotations><Annotations>"
        + "".join(
            f'<Annotation PartOfGroup="{group}"><Coordinates>'
            + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(ring))
            + "</Coordinates></Annotation>"
            for group, ring in zip(groups, rings, strict=True)
        )
        + "</Annotations></ASAP_Annotations>"
    )


def malignant_area(samples: list[Sample]) -> int:
    """Of one slide, pixels that lie in two tiles counted once."""
    found = np.zeros((3000, 3000), bool)
    for sample in samples:
        if "malignant" in sample.layers:
            x, y = map(int, sample.name.split()[-1].split(","))
            found[y : y + 512, x : x + 512] |= sample.layers["malignant"] > 0
    return int(found.sum())


def test_camelyon16(tmp_path: Path) -> None:
    for name, size in (("normal_001", 1100), ("tumor_001", 1700), ("test_002", 300)):
        synthetic_slide(tmp_path / f"{name}.tif", {}, l0_width=size, l0_height=size)
    (tmp_path / "tumor_001.xml").write_text(asap("_0", "_2"))
    samples = list(published.camelyon16(tmp_path))
    groups = {sample.group for sample in samples}
    assert groups == {"normal_001", "tumor_001"}  # of the test slide nothing is known
    assert malignant_area(samples) == 200 * 200 - 50 * 50  # at 1 µm per pixel, two level-0 pixels
    assert all("malignant" in sample.absent for sample in samples if sample.group == "normal_001")


def test_camelyon17(tmp_path: Path) -> None:
    stages = {"000_node_0": "negative", "000_node_1": "macro", "001_node_0": "itc", "002_node_0": "micro"}
    stages["103_node_4"] = "negative"
    for slide, size in (("000_node_0", 600), ("000_node_1", 1600), ("103_node_4", 600)):
        synthetic_slide(tmp_path / f"patient_{slide}.tif", {}, l0_width=size, l0_height=size)
    for slide in ("001_node_0", "002_node_0", "104_node_0"):  # not opened: nobody knows where tumour is in them
        (tmp_path / f"patient_{slide}.tif").touch()
    (tmp_path / "stages.csv").write_text(
        "patient,stage\npatient_000.zip,pN2\n"
        + "".join(f"patient_{slide}.tif,{stage}\n" for slide, stage in stages.items())
    )
    (tmp_path / "lesion_annotations").mkdir()
    for slide in ("000_node_1", "001_node_0"):  # that of isolated tumour cells is not exhaustive
        (tmp_path / "lesion_annotations" / f"patient_{slide}.xml").write_text(asap("metastases", "normal"))
    samples = list(published.camelyon17(tmp_path))
    assert {sample.name.split("/")[1].split()[0] for sample in samples} == {
        "patient_000_node_0", "patient_000_node_1", "patient_103_node_4",
    }  # fmt: skip
    assert len({sample.split for sample in samples if sample.group == "patient_000"} - {"test"}) == 1
    assert {sample.split for sample in samples if sample.group == "patient_103"} == {"test"}
    assert malignant_area(samples) == 200 * 200 - 50 * 50
    assert all("malignant" in sample.absent for sample in samples if "node_0" in sample.name)
    (tmp_path / "stages.csv").write_text("patient,stage\n")
    with pytest.raises(DataError, match=r"patient_000_node_0\.tif,negative"):
        list(published.camelyon17(tmp_path))


@pytest.mark.parametrize("name", sorted(published.PUBLISHED))
def test_a_folder_without_the_set_is_refused(name: str, tmp_path: Path) -> None:
    assert name in SOURCES
    with pytest.raises(DataError, match=str(tmp_path)):
        import_set(name, tmp_path, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_nothing_is_ruled_out_where_the_organ_is_not_stated() -> None:
    from wsiseg.training.data.concepts import known_absent

    assert all(CONCEPTS[key].thing for key in known_absent("pannuke", "tissue"))
