"""Public data sets as samples, one function each; no patient, organ or field is in two splits.

Labels that a set does not state are derived only where the picture itself decides (see `derived`); everything
else stays unknown. The scale is the stated one, or an estimate by the size of crypts (about 80 µm) and nuclei
(about 7 µm); `sources` says which.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from wsiseg.errors import DataError
from wsiseg.training.data.concepts import concept_of, known_absent
from wsiseg.training.data.derived import glass_of, lumen_of, stroma_of
from wsiseg.training.data.store import Sample

NUINSSEG_VAL_ORGANS = (
    "human pylorus",
    "human rectum",
    "human tonsile",
    "human testis",
    "mouse heart",
    "mouse kidney",
)
_CAMELYON_VAL = tuple(f"{number}.jpg" for number in range(10692, 10698))
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


# --------------------------------------------------------------------------------------------------------
# From files to samples


def read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) uint16: instance labels as they are; region masks (two values, or a JPEG) as 0/1."""
    try:
        with Image.open(path) as picture:
            lossy = picture.format == "JPEG"
            plain = {"LA": "L", "PA": "L", "RGBA": "RGB"}.get(picture.mode)
            mask = np.asarray(picture.convert(plain) if plain else picture)
    except OSError as error:
        raise DataError(f"cannot read the mask {path}: {error}") from error
    if mask.ndim == 3:
        mask = mask.max(axis=2)
    if mask.shape != shape[:2]:
        raise DataError(f"{path} is {mask.shape[1]} × {mask.shape[0]} px, its image {shape[1]} × {shape[0]}")
    if lossy:
        return (mask > 127).astype(np.uint16)
    if mask.dtype == bool or len(np.unique(mask)) <= 2:
        return (mask > 0).astype(np.uint16)
    if mask.max() > 65535 or mask.min() < 0:
        raise DataError(f"{path} has labels beyond 0..65535; relabel it from 1")
    return mask.astype(np.uint16)


def _rows(folder: Path) -> list[dict[str, str]]:
    try:
        with open(folder / "index.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{folder} has no index.csv, so it is not one of the sets known here") from error


def find_file(folder: Path, stem: str) -> Path:
    for suffix in SUFFIXES:
        path = folder / f"{Path(stem).stem if stem.endswith(SUFFIXES) else stem}{suffix}"
        if path.exists():
            return path
    raise DataError(f"{folder} has no image called {stem}")


def make_sample(
    image: np.ndarray,
    layers: dict[str, np.ndarray],
    *,
    source: str,
    label: str,
    group: str,
    split: str,
    name: str,
    mpp: float | None,
    background: bool = False,
) -> Sample:
    """A sample whose empty exhaustive layers become absences; `background` adds tissue and glass layers."""
    if background:
        glass = glass_of(image)
        if glass.mean() > 0.03:
            layers = {**layers, "glass": glass}
            if glass.mean() < 0.97:
                layers["tissue"] = ~glass
    present = {key: layer.astype(np.uint16) for key, layer in layers.items() if layer.any()}
    empty = {key for key, layer in layers.items() if not layer.any() and concept_of(key).exhaustive}
    absent = [key for key in known_absent(source, label, split=split) if key not in layers]
    return Sample(
        image,
        present,
        tuple(present),
        tuple(dict.fromkeys([*sorted(empty), *absent])),
        mpp,
        source,
        group,
        split,
        f"{source}/{name}",
        label,
    )


def ebhi_seg(folder: Path) -> Iterator[Sample]:
    """Colorectal biopsies, 224 px; gland and lesion epithelium, whose meaning depends on the class."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        gland = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        grade = row["cls"]
        layers = {"gland": gland, "lumen": lumen_of(image, gland)}
        if grade == "adenocarcinoma":
            layers["malignant"] = gland
        if grade in ("low_grade_in", "high_grade_in"):
            layers["dysplastic"] = gland
        if grade in ("normal", "polyp", "low_grade_in"):
            layers["stroma"] = stroma_of(image, gland)
        yield make_sample(
            image,
            layers,
            source="ebhi_seg",
            label=grade,
            group=row["patient"],
            split=row["split"],
            name=row["file"],
            mpp=1.3,
            background=True,
        )


def nuinsseg(folder: Path) -> Iterator[Sample]:
    """Nuclei of 26 human and mouse organs, 512 px; whole organs are held back for validation."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        mask = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        split = "val" if row["organ"] in NUINSSEG_VAL_ORGANS else "train"
        yield make_sample(
            image,
            {"nucleus": mask},
            source="nuinsseg",
            label=row["organ"],
            group=row["organ"],
            split=split,
            name=row["file"],
            mpp=0.25,
        )


def dsb2018_histology(folder: Path) -> Iterator[Sample]:
    """Nuclei of the 2018 Data Science Bowl, 320 × 256 px; organ not stated; 15 % by hash for validation."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        mask = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        chance = int(hashlib.sha256(row["file"].encode()).hexdigest()[:8], 16) / 16**8
        yield make_sample(
            image,
            {"nucleus": mask},
            source="dsb2018_histology",
            label="histology",
            group=row["file"],
            split="val" if chance < 0.15 else "train",
            name=row["file"],
            mpp=0.25,
        )


def hgsc_histolytics(folder: Path) -> Iterator[Sample]:
    """Nuclei of ovarian carcinoma, two fields of 1500 px: the nest trains, the stroma validates."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        mask = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        yield make_sample(
            image,
            {"nucleus": mask},
            source="hgsc_histolytics",
            label="ovary",
            group=row["file"],
            split="val" if row["file"] == "hgsc_stromal" else "train",
            name=row["file"],
            mpp=0.25,
        )


def camelyon_resampled(folder: Path) -> Iterator[Sample]:
    """Lymph node with metastases, 512 px, blocky region masks."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        mask = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        yield make_sample(
            image,
            {"malignant": mask},
            source="camelyon_resampled",
            label="lymph node",
            group=row["file"],
            split="val" if row["file"] in _CAMELYON_VAL else "train",
            name=row["file"],
            mpp=0.5,
            background=True,
        )


def ocdc(folder: Path) -> Iterator[Sample]:
    """Oral carcinoma, 640 px, all of one slide: training only."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        mask = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        yield make_sample(
            image,
            {"malignant": mask},
            source="ocdc",
            label="oral mucosa",
            group="1009009",
            split="train",
            name=row["file"],
            mpp=0.5,
            background=True,
        )


def necrosis_sbu(folder: Path) -> Iterator[Sample]:
    """Necrosis in the lumen of a carcinoma, 500 px, crops of one field: training only."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        mask = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        yield make_sample(
            image,
            {"necrosis": mask},
            source="necrosis_sbu",
            label="carcinoma",
            group="one field",
            split="train",
            name=row["file"],
            mpp=0.5,
        )


def osteosarcoma_patches(folder: Path) -> Iterator[Sample]:
    """Bone tumour patches with a class only: absences, and empty background; case 48 validates."""
    for row in _rows(folder):
        case = "-".join(row["file"].split("___")[1].split("-")[:2])
        group = "P9" if case.startswith("P9") else case
        yield make_sample(
            read_image(find_file(folder / "images", row["file"])),
            {},
            source="osteosarcoma_patches",
            label=row["cls"],
            group=group,
            split="val" if group == "Case-48" else "train",
            name=row["file"],
            mpp=0.8,
            background=True,
        )


def nct_crc_samples(folder: Path) -> Iterator[Sample]:
    """One colorectal patch per class: what it cannot hold; the background patch is all glass."""
    for row in _rows(folder):
        yield make_sample(
            read_image(find_file(folder / "images", row["file"])),
            {},
            source="nct_crc_samples",
            label=row["cls"],
            group=row["file"],
            split="train",
            name=row["file"],
            mpp=0.5,
            background=row["cls"] == "BACK",
        )


def glas(folder: Path) -> Iterator[Sample]:
    """Colon glands, about 775 × 522 px, 0.62 µm per pixel; for tests only."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        mask = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        yield make_sample(
            image,
            {"gland": mask},
            source="glas",
            label="colon",
            group=row["file"],
            split="test",
            name=row["file"],
            mpp=0.62,
        )


def monuseg(folder: Path) -> Iterator[Sample]:
    """Nuclei of seven organs, 1000 px, 0.25 µm per pixel; for tests only."""
    for row in _rows(folder):
        image = read_image(find_file(folder / "images", row["file"]))
        mask = read_mask(find_file(folder / "masks", row["file"]), image.shape)
        yield make_sample(
            image,
            {"nucleus": mask},
            source="monuseg",
            label="tcga",
            group=row["file"],
            split="test",
            name=row["file"],
            mpp=0.25,
        )


IMPORTERS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    importer.__name__: importer
    for importer in (
        ebhi_seg,
        nuinsseg,
        dsb2018_histology,
        hgsc_histolytics,
        camelyon_resampled,
        ocdc,
        necrosis_sbu,
        osteosarcoma_patches,
        nct_crc_samples,
        glas,
        monuseg,
    )
}
