"""Public data sets as samples, one line of a table each; no patient, organ or field is in two splits.

Labels that a set does not state are derived only where the picture itself decides (see `derived`); everything
else stays unknown. The scale is the stated one, or an estimate by the size of crypts (about 80 µm) and nuclei
(about 7 µm); `sources` says which.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import numpy as np

from wsiseg.errors import DataError
from wsiseg.slide import open_slide
from wsiseg.slide.image_backend import read_mask
from wsiseg.training.data.chance import chance
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
Row = dict[str, str]  # of index.csv
T = TypeVar("T")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


# --------------------------------------------------------------------------------------------------------
# From files to samples


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8, as wsiseg reads an image that it is asked about. Raises SlideError."""
    with open_slide(path, backend="image") as picture:
        return picture.read_region(0, 0, 0, *picture.dimensions)


def read_labels(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) uint16: instance labels as they are, masks of one value as 0/1; see `read_mask`.

    Raises:
        SlideError: the file cannot be read as a mask.
        DataError: it is not as large as its image, whose shape is given, or its values are no labels.
    """
    mask = read_mask(path)
    if mask.shape != shape[:2]:
        raise DataError(f"{path} is {mask.shape[1]} × {mask.shape[0]} px, its image {shape[1]} × {shape[0]}")
    values = np.unique(mask)
    if len(values) <= 2:
        return (mask > 0).astype(np.uint16)
    if values[0] < 0 or values[-1] > 65535 or (values % 1).any():
        raise DataError(f"{path} has values that are no labels, whole numbers from 0 to 65535")
    return mask.astype(np.uint16)


def read_index(path: Path) -> tuple[list[Row], Sequence[str]]:
    """The rows of an index.csv, short ones filled up, and its columns.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: it cannot be read, or is no CSV in UTF-8.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        return list(reader), reader.fieldnames or ()


def _rows(folder: Path, columns: Sequence[str]) -> list[Row]:
    path = folder / "index.csv"
    try:
        rows, have = read_index(path)
    except OSError as error:
        raise DataError(f"{folder} has no index.csv, so it is not one of the sets known here") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}") from error
    if missing := [column for column in columns if column not in have]:
        many = "s" if len(missing) > 1 else ""
        raise DataError(
            f"{path} lacks the column{many} {', '.join(missing)} of this set; it has: {', '.join(have) or 'none'}"
        )
    if short := [line for line, row in enumerate(rows, start=2) if not all(row[column] for column in columns)]:
        raise DataError(f"{path}, row {short[0]}: one of {', '.join(columns)} is empty")
    return rows


def find_file(folder: Path, name: str) -> Path:
    """The image `name`, with its own or any other suffix. Raises DataError: there is none."""
    stems = (name, Path(name).stem) if name.lower().endswith(SUFFIXES) else (name,)  # "a.tif" may be "a.tif.png"
    for stem in stems:
        for suffix in SUFFIXES:
            for path in (folder / f"{stem}{suffix}", folder / f"{stem}{suffix.upper()}"):
                if path.exists():
                    return path
    raise DataError(f"{folder} has no image called {name}")


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
    for row in _rows(folder, ("file", "cls", "patient", "split")):
        image = read_image(find_file(folder / "images", row["file"]))
        gland = read_labels(find_file(folder / "masks", row["file"]), image.shape)
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


@dataclass(frozen=True)
class PublicSet:
    """A set whose index.csv names images that have one mask each, or none.

    concept: what the masks show, None where there are none. label, group, split and background say it of a row
    of the index, from its columns. A group (patient, organ, field) is never in two splits.
    """

    concept: str | None
    mpp: float
    label: Callable[[Row], str]
    group: Callable[[Row], str]
    split: Callable[[Row], str]
    background: Callable[[Row], bool] = lambda row: False
    columns: tuple[str, ...] = ("file",)

    def samples(self, source: str, folder: Path) -> Iterator[Sample]:
        for row in _rows(folder, self.columns):
            image = read_image(find_file(folder / "images", row["file"]))
            layers = {}
            if self.concept is not None:
                layers[self.concept] = read_labels(find_file(folder / "masks", row["file"]), image.shape)
            yield make_sample(
                image,
                layers,
                source=source,
                label=self.label(row),
                group=self.group(row),
                split=self.split(row),
                name=row["file"],
                mpp=self.mpp,
                background=self.background(row),
            )


def _always(value: T) -> Callable[[Row], T]:
    return lambda row: value


def _validates(test: Callable[[Row], bool]) -> Callable[[Row], str]:
    return lambda row: "val" if test(row) else "train"


def _osteosarcoma_case(row: Row) -> str:
    case = "-".join(row["file"].split("___")[1].split("-")[:2])
    return "P9" if case.startswith("P9") else case


_TRAIN, _TEST = _always("train"), _always("test")
_file, _organ, _class = itemgetter("file"), itemgetter("organ"), itemgetter("cls")

# fmt: off
SETS: dict[str, PublicSet] = {
    # Nuclei of 26 human and mouse organs, 512 px; whole organs are held back for validation.
    "nuinsseg": PublicSet(
        "nucleus", 0.25, _organ, _organ, _validates(lambda row: row["organ"] in NUINSSEG_VAL_ORGANS),
        columns=("file", "organ"),
    ),
    # Nuclei of the 2018 Data Science Bowl, 320 × 256 px; organ not stated; 15 % by hash for validation.
    "dsb2018_histology": PublicSet(
        "nucleus", 0.25, _always("histology"), _file, _validates(lambda row: chance(row["file"]) < 0.15)
    ),
    # Nuclei of ovarian carcinoma, two fields of 1500 px: the nest trains, the stroma validates.
    "hgsc_histolytics": PublicSet(
        "nucleus", 0.25, _always("ovary"), _file, _validates(lambda row: row["file"] == "hgsc_stromal")
    ),
    # Lymph node with metastases, 512 px, blocky region masks.
    "camelyon_resampled": PublicSet(
        "malignant", 0.5, _always("lymph node"), _file, _validates(lambda row: row["file"] in _CAMELYON_VAL),
        _always(True),
    ),
    # Oral carcinoma, 640 px, all of one slide: training only.
    "ocdc": PublicSet("malignant", 0.5, _always("oral mucosa"), _always("1009009"), _TRAIN, _always(True)),
    # Necrosis in the lumen of a carcinoma, 500 px, crops of one field: training only.
    "necrosis_sbu": PublicSet("necrosis", 0.5, _always("carcinoma"), _always("one field"), _TRAIN),
    # Bone tumour patches with a class only: absences, and empty background; case 48 validates.
    "osteosarcoma_patches": PublicSet(
        None, 0.8, _class, _osteosarcoma_case, _validates(lambda row: _osteosarcoma_case(row) == "Case-48"),
        _always(True), columns=("file", "cls"),
    ),
    # One colorectal patch per class: what it cannot hold; the background patch is all glass.
    "nct_crc_samples": PublicSet(
        None, 0.5, _class, _file, _TRAIN, lambda row: row["cls"] == "BACK", columns=("file", "cls")
    ),
    # Colon glands, about 775 × 522 px, 0.62 µm per pixel; for tests only.
    "glas": PublicSet("gland", 0.62, _always("colon"), _file, _TEST),
    # Nuclei of seven organs, 1000 px, 0.25 µm per pixel; for tests only.
    "monuseg": PublicSet("nucleus", 0.25, _always("tcga"), _file, _TEST),
}
# fmt: on

IMPORTERS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "ebhi_seg": ebhi_seg,
    **{name: partial(public.samples, name) for name, public in SETS.items()},
}
