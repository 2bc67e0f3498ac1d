"""Public sets in the layout in which they are downloaded: GlaS, CRAG, MoNuSeg, PanNuke, CAMELYON16 and 17.

Each function takes the unpacked folder and says in one line what of it is missing. Official splits are kept;
patients, or slides where no patients are stated, are never in two splits, but for GlaS, whose own split does that.
"""

from __future__ import annotations

import logging
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import shapely

from wsiseg.errors import DataError
from wsiseg.slide import open_slide
from wsiseg.tiles.grid import GridSpec, plan_grid
from wsiseg.training.data.annotated import raster
from wsiseg.training.data.chance import rng_of, split_of
from wsiseg.training.data.importers import make_sample, read_image, read_labels
from wsiseg.training.data.store import Sample

_CAMELYON_MPP, _CAMELYON_PX, _CAMELYON_TILES = 1.0, 512, 24  # tiles of each kind from a slide
_FARTHEST = 1e9  # pixels: no slide is as wide, and sums of such coordinates lose nothing
_log = logging.getLogger(__name__)
_EXCLUDED = ("_2", "Exclusion", "normal")  # ASAP groups of CAMELYON16 and 17 that are cut out of the tumour


def glas(folder: Path) -> Iterator[Sample]:
    """The Warwick-QU archive: train_1.bmp, train_1_anno.bmp, testA_…, testB_… and Grade.csv, 0.62 µm per pixel.

    The patient of every image stands in Grade.csv; four training patients in five train, the others validate. Most of
    the official test images are of patients who are in training, too: a warning says so.
    """
    patients = dict(_grade_rows(folder))
    trained, tested = (
        {patient for name, patient in patients.items() if name.startswith(part)} for part in ("train", "test")
    )
    if both := trained & tested:
        _log.warning(
            "GlaS: %d of the %d patients of its official test images are in its training images, too; "
            "`wsiseg data split --test 0.2` divides them by patient",
            len(both),
            len(tested),
        )
    for path in _some(folder, "*_anno.bmp", "the Warwick-QU archive"):
        name = path.stem.removesuffix("_anno")
        image = read_image(path.with_name(f"{name}.bmp"))
        patient = patients.get(name, name)
        yield make_sample(
            image,
            {"gland": read_labels(path, image.shape)},
            source="glas",
            label="colon",
            group=patient,
            split=split_of(patient) if name.startswith("train") else "test",
            name=name,
            mpp=0.62,
        )


def _grade_rows(folder: Path) -> Iterator[tuple[str, str]]:
    path = folder / "Grade.csv"
    if not path.exists():
        raise DataError(f"{folder} has no Grade.csv, which says whose the images are: is it the Warwick-QU archive?")
    header, *rows = [
        [cell.strip() for cell in line.split(",")] for line in path.read_text(errors="replace").splitlines() if line
    ]
    columns = {re.sub(r"\W+", " ", name).strip().casefold(): i for i, name in enumerate(header)}
    if not {"name", "patient id"} <= columns.keys():
        raise DataError(f"{path} has no columns `name` and `patient ID`")
    for row in rows:
        if len(row) == len(header):
            yield row[columns["name"]], row[columns["patient id"]]


def crag(folder: Path) -> Iterator[Sample]:
    """CRAG: train/ and valid/ with Images/ and Annotation/ (instance labels), about 1,512 px, 0.55 µm per pixel."""
    for part, split in (("train", "train"), ("valid", "test")):
        for path in _some(folder / part / "Annotation", "*.png", "CRAG's archive"):
            image = read_image(folder / part / "Images" / path.name)
            yield make_sample(
                image,
                {"gland": read_labels(path, image.shape)},
                source="crag",
                label="colon",
                group=path.stem,
                split=split,
                name=path.stem,
                mpp=0.55,
            )


def monuseg(folder: Path) -> Iterator[Sample]:
    """MoNuSeg: images (*.tif) and outlines (*.xml, Aperio) of equal names, which begin with the case; 1,000 px at 40×.

    The training archive has them in "Tissue Images" and "Annotations", that of the test images in one folder. What lies
    in a folder whose name holds "Test", or a word that begins with "test", is for tests.
    """
    for path in _some(folder, "**/*.xml", "MoNuSeg's archive"):
        beside = [*path.parent.glob(f"{path.stem}.*"), *path.parent.parent.glob(f"*/{path.stem}.*")]
        pictures = [p for p in beside if p.suffix.lower() in (".tif", ".png")]
        if not pictures:
            raise DataError(f"{path} has no image {path.stem}.tif beside it, or in a folder beside its own")
        image = read_image(pictures[0])
        height, width = image.shape[:2]
        nucleus = np.zeros((height, width), np.uint16)
        for number, polygon in enumerate(_aperio_polygons(path), start=1):
            nucleus[raster(polygon, 0, 0, width, height)] = number
        case = "-".join(path.stem.split("-")[:3])
        within = (folder.resolve().name, *path.relative_to(folder).parts[:-1])
        test = any(re.search(r"Test|TEST|(?<![A-Za-z])test", name) for name in within)  # "latest" is no test
        yield make_sample(
            image,
            {"nucleus": nucleus},
            source="monuseg",
            label="tcga",
            group=case,
            split="test" if test else split_of(case),
            name=path.stem,
            mpp=0.25,
        )


def pannuke(folder: Path) -> Iterator[Sample]:
    """PanNuke: fold1, fold2, fold3 with images.npy, masks.npy (N, 256, 256, 6) and types.npy, 0.25 µm per pixel.

    The channels 0 to 4 hold instances of five kinds of nuclei; fold 1 trains, 2 validates, 3 tests.
    """
    for number, split in ((1, "train"), (2, "val"), (3, "test")):
        pictures = _some(folder, f"**/[Ff]old*{number}/**/images.npy", f"fold {number} of PanNuke")[0]
        masks = _some(folder, f"**/[Ff]old*{number}/**/masks.npy", f"fold {number} of PanNuke")[0]
        try:
            images, labels = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (pictures, masks))
        except ValueError as error:
            raise DataError(f"{pictures.parent}: {error}") from error
        if images.shape[:3] != labels.shape[:3] or labels.shape[3:] != (6,):
            raise DataError(f"{masks} has the shape {labels.shape}; (N, 256, 256, 6) was expected")
        for i in range(len(images)):
            yield make_sample(
                np.asarray(images[i]).clip(0, 255).astype(np.uint8),
                {"nucleus": _renumbered(np.asarray(labels[i, ..., :5]))},
                source="pannuke",
                label="tissue",
                group=f"fold {number}",
                split=split,
                name=f"{number}-{i}",
                mpp=0.25,
            )


def _renumbered(labels: np.ndarray) -> np.ndarray:
    """Instances of several channels (H, W, C), each numbered on its own, as one label image (H, W) uint16."""
    out = np.zeros(labels.shape[:2], np.uint16)
    for channel in np.moveaxis(labels, -1, 0):
        values, inverse = np.unique(channel, return_inverse=True)
        numbers = np.where(values > 0, np.cumsum(values > 0) + out.max(), 0)
        shaped = numbers[inverse].reshape(channel.shape)
        out = np.where(shaped > 0, shaped, out).astype(np.uint16)
    return out


def camelyon16(folder: Path) -> Iterator[Sample]:
    """CAMELYON16: slides normal_*.tif, tumor_*.tif, test_*.tif, and ASAP's XML of the same names, at any depth.

    From every slide up to 24 tissue tiles of 512 px at 1 µm per pixel that tumour touches, and as many that it
    does not. Slides without an XML are free of tumour, as the set states of its normal ones; of test slides only
    those with one are taken. One training slide in five validates. The set's README lists tumour slides whose
    outlines are not exhaustive: leave these out of the folder, as what they do not outline counts as free.
    """
    outlines = {path.stem.casefold(): path for path in folder.rglob("*.xml")}
    for path in _some(folder, "**/*.tif", "CAMELYON16's images"):
        name = path.stem.casefold()
        kind = name.partition("_")[0]
        if kind not in ("normal", "tumor", "test") or "mask" in name or (kind != "normal" and name not in outlines):
            continue
        split = "test" if kind == "test" else split_of(name)
        yield from _camelyon_tiles(path, outlines.get(name), "camelyon16", path.stem, split)


def camelyon17(folder: Path) -> Iterator[Sample]:
    """CAMELYON17: patient_NNN_node_N.tif, ASAP's XML of the same names, and stages.csv, at any depth.

    Tiles as of CAMELYON16. Taken are slides that stages.csv calls negative, and those of micro- and
    macrometastases that have an XML: other slides are not outlined, and those of isolated tumour cells not
    exhaustively. Patients 000 to 099 train, one in five of them validates; 100 to 199 are the test patients.
    """
    stages = _stages(_some(folder, "**/stage*.csv", "CAMELYON17, with its stages.csv")[0])
    outlines = {path.stem: path for path in folder.rglob("patient_*_node_*.xml")}
    for path in _some(folder, "**/patient_*_node_*.tif", "CAMELYON17's images"):
        stage = stages.get(path.name, "")
        if stage == "negative" or (stage in ("micro", "macro") and path.stem in outlines):
            patient = path.stem.partition("_node_")[0]
            split = "test" if patient >= "patient_100" else split_of(patient)
            yield from _camelyon_tiles(path, outlines.get(path.stem), "camelyon17", patient, split)


def _stages(path: Path) -> dict[str, str]:
    """name of a slide -> negative, itc, micro or macro; the rows of patients are there, too."""
    rows = [line.split(",") for line in path.read_text(errors="replace").splitlines()]
    found = {row[0].strip(): row[1].strip().casefold() for row in rows if len(row) == 2}
    if not any(name.endswith(".tif") for name in found):
        raise DataError(f"{path} has no lines such as patient_000_node_0.tif,negative: is it CAMELYON17's?")
    return found


def _camelyon_tiles(path: Path, xml: Path | None, source: str, group: str, split: str) -> Iterator[Sample]:
    rng = rng_of(path.stem)
    with open_slide(path) as slide:
        grid = plan_grid(slide, GridSpec(_CAMELYON_MPP, _CAMELYON_PX, 0))
        l0_tumour = shapely.MultiPolygon() if xml is None else _asap_tumour(xml)
        l0_per_m = np.array(slide.l0_per_m(_CAMELYON_MPP))
        tumour = shapely.transform(l0_tumour, lambda l0_xy: l0_xy / l0_per_m)
        shapely.prepare(tumour)
        m_xy = np.asarray(grid.m_xy)
        boxes = shapely.box(*m_xy.T, *(m_xy + _CAMELYON_PX).T)
        touched = shapely.intersects(tumour, boxes)
        for kind in (touched, ~touched):
            chosen = np.flatnonzero(kind)
            chosen = np.sort(rng.permutation(chosen)[:_CAMELYON_TILES])
            for m_x, m_y in m_xy[chosen].tolist():
                image = slide.read_at_mpp(m_x, m_y, _CAMELYON_PX, _CAMELYON_PX, _CAMELYON_MPP)
                yield make_sample(
                    image,
                    {"malignant": raster(tumour, m_x, m_y, _CAMELYON_PX, _CAMELYON_PX).astype(np.uint16)},
                    source=source,
                    label="lymph node",
                    group=group,
                    split=split,
                    name=f"{path.stem} {m_x},{m_y}",
                    mpp=_CAMELYON_MPP,
                    background=True,
                )


# Annotations as XML


def _aperio_polygons(path: Path) -> list[shapely.Geometry]:
    """Regions of Aperio ImageScope's XML, in level-0 pixels."""
    rings = [
        [(_number(v, "X", path), _number(v, "Y", path)) for v in region.iter("Vertex")]
        for region in _xml(path).iter("Region")
    ]
    return [_area_within(ring) for ring in rings if len(ring) >= 3]


def _asap_tumour(path: Path) -> shapely.Geometry:
    """Tumour of an ASAP file less what its groups exclude, in level-0 pixels."""
    inside: list[shapely.Geometry] = []
    outside: list[shapely.Geometry] = []
    for annotation in _xml(path).iter("Annotation"):
        points = sorted(annotation.iter("Coordinate"), key=lambda point: _number(point, "Order", path))
        ring = [(_number(point, "X", path), _number(point, "Y", path)) for point in points]
        if len(ring) >= 3:
            excluded = annotation.get("PartOfGroup") in _EXCLUDED
            (outside if excluded else inside).append(_area_within(ring))
    return shapely.difference(shapely.union_all(inside), shapely.union_all(outside))


def _area_within(ring: list[tuple[float, float]]) -> shapely.Geometry:
    """What a ring drawn by hand encloses, though it may cross itself; not the strokes that enclose nothing."""
    parts = shapely.get_parts(shapely.make_valid(shapely.Polygon(ring)))
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def _xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} is not a readable XML file: {error}") from error


def _number(element: ElementTree.Element, key: str, path: Path) -> float:
    try:
        value = float(element.get(key, ""))
    except ValueError:
        value = np.nan
    if not abs(value) < _FARTHEST:
        raise DataError(f"{path}: {element.tag} has {key}={element.get(key)!r}, which is no number of pixels")
    return value


# Folders


def _some(folder: Path, pattern: str, what: str) -> list[Path]:
    found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))  # "._x" are of macOS
    if not found:
        raise DataError(f"{folder} holds no {pattern}: is it {what}, unpacked?")
    return found


PUBLISHED: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "glas": glas,
    "crag": crag,
    "monuseg": monuseg,
    "pannuke": pannuke,
    "camelyon16": camelyon16,
    "camelyon17": camelyon17,
}
