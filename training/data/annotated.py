"""Annotations that people made on whole slides, as samples: the folder that docs/qupath/export.groovy writes.

`index.csv` names, for every image of a QuPath project, its slide, its GeoJSON beside the index, the microns per
pixel that QuPath has for it, and, if somebody added that column, its patient. In a folder without one, every
GeoJSON lies beside the slide whose name it has. Where a slide has annotations of QuPath's class "Region*", these
say what was annotated completely; else the box around all annotations does. What is of its class "Ignore*" is no
structure.
"""

from __future__ import annotations

import csv
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsiseg.belonging import misplaced, origin_of
from wsiseg.errors import DataError, MissingMppError
from wsiseg.fleet.jobs import IMAGE_SUFFIXES, SLIDE_SUFFIXES
from wsiseg.geojson import Annotation, read_collection
from wsiseg.mask import l0_origin
from wsiseg.mask.raster import paint
from wsiseg.qupath import query_class
from wsiseg.review import is_kept
from wsiseg.slide import open_slide
from wsiseg.tiles.grid import tile_starts
from wsiseg.training.data.chance import split_of
from wsiseg.training.data.concepts import concept_named, concept_of
from wsiseg.training.data.importers import make_sample, read_index
from wsiseg.training.data.names import concept_asked
from wsiseg.training.data.store import Sample

TILE_PX = 512
INDEX = "index.csv"
_COLUMNS = {"slide", "geojson"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotatedSlide:
    """A slide with its annotations, in level-0 pixels; `slide_mpp` None: as the file says.

    run: the member `wsiseg` of their GeoJSON, which says where (0, 0) of them lies; QuPath's exports have none.
    """

    slide: Path
    annotations: list[Annotation]
    slide_mpp: float | None
    patient: str
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def structures(self) -> list[Annotation]:
        return [a for a in self.annotations if query_class(a.classification).casefold() not in ("", "region", "ignore")]


def read_export(folder: Path) -> list[AnnotatedSlide]:
    """The slides that `folder`/index.csv names, or that lie beside a GeoJSON each.

    Raises:
        DataError: neither is there, a row of the index (whose line is named) is wrong, no annotation has a class.
        GeoJSONError: a file of annotations cannot be read.
    """
    found = _indexed(folder / INDEX) if (folder / INDEX).exists() else _paired(folder)
    if not any(entry.structures for entry in found):
        raise DataError(
            f"{folder} holds no annotation with a class: give them one in QuPath, and run export.groovy on the project"
        )
    return found


def _paired(folder: Path) -> list[AnnotatedSlide]:
    """`a.geojson` or `a.svs.geojson`, beside `a.svs`."""
    suffixes = SLIDE_SUFFIXES - {".zarr"} | IMAGE_SUFFIXES
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))  # "._x" are of macOS
    slides = [path for path in files if path.suffix.lower() in suffixes]
    found = []
    for path in files:
        if path.suffix.lower() != ".geojson":
            continue
        named = [slide for slide in slides if path.stem in (slide.name, slide.stem)]
        if len(named) != 1:
            raise DataError(
                f"{path} needs the one slide of its name beside it, and there are {len(named)}; "
                f"or run export.groovy on the QuPath project, which writes {INDEX}"
            )
        annotations, run = _read_drawn(path)
        found.append(AnnotatedSlide(named[0], annotations, None, named[0].stem, run))
    return found


def _indexed(path: Path) -> list[AnnotatedSlide]:
    folder = path.parent
    try:
        rows, columns = read_index(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not rows or not _COLUMNS.issubset(columns):
        raise DataError(f"{path} must have the columns {', '.join(sorted(_COLUMNS))}, and a line for every slide")
    found = []
    for line, row in enumerate(rows, start=2):
        slide = folder / (row["slide"] or "")
        if not row["slide"] or not slide.exists():
            raise DataError(f"{path}, line {line}: there is no slide {row['slide']!r}")
        stated = row.get("mpp") or ""
        try:
            slide_mpp = float(stated) if stated else None
        except ValueError:
            raise DataError(f"{path}, line {line}: mpp is {stated!r}, not a number") from None
        annotations, run = _read_drawn(folder / (row["geojson"] or ""))
        patient = (row.get("patient") or "").strip() or slide.stem
        found.append(AnnotatedSlide(slide, annotations, slide_mpp, patient, run))
    return found


def _read_drawn(path: Path) -> tuple[list[Annotation], dict[str, Any]]:
    """The annotations of a file that nobody rejected, and its member `wsiseg`.

    Detections, cells and tiles are a program's, and the class of a cell is its own.
    """
    found, run = read_collection(path)
    drawn = [a for a in found if a.object_type == "annotation"]
    if made := len(found) - len(drawn):
        text = "%s: left out %d of %d objects (detections, cells, tiles): only annotations show a structure"
        _log.warning(text, path, made, len(found))
    kept = [a for a in drawn if is_kept(a.metadata)]
    if rejected := len(drawn) - len(kept):
        _log.warning("%s: without %d of %d annotations that were rejected", path, rejected, len(drawn))
    return kept, run


def samples_of(slides: Sequence[AnnotatedSlide], mpp: float, source: str) -> Iterator[Sample]:
    """Tiles of up to 512 px at `mpp` over what was annotated, a layer for every class that has a pixel there.

    A slide on which nothing was annotated gives none, and is not opened.

    A class that some slide has and a tile has not is known to be absent there: people who outline a structure in
    a region outline all of it. One patient in five, by a hash of the name, is for validation.

    Raises:
        DataError: neither the slide nor the index says what its scale is.
    """
    classes = sorted({_concept(a) for entry in slides for a in entry.structures})
    named = Counter(entry.slide.stem for entry in slides)
    for number, entry in enumerate(slides, start=1):
        if not any(a.classification for a in entry.annotations):
            continue
        name = entry.slide.stem if named[entry.slide.stem] == 1 else f"{entry.slide.stem} {number}"
        try:
            yield from _tiles(entry, name, classes, mpp, source)
        except MissingMppError as error:
            raise DataError(
                f"{entry.slide} does not state its microns per pixel: set the pixel size in QuPath and export again, "
                f"or write it into the column mpp of {INDEX}"
            ) from error


def _tiles(entry: AnnotatedSlide, name: str, classes: list[str], mpp: float, source: str) -> Iterator[Sample]:
    with open_slide(entry.slide, slide_mpp=entry.slide_mpp) as slide:
        origin = origin_of(entry.run)
        if warning := misplaced(entry.annotations, entry.run, slide, origin):
            _log.warning("%s: %s", entry.slide, warning)
        l0_start, l0_per_m = np.array(l0_origin(slide.l0_bounds, origin)), np.array(slide.l0_per_m(mpp))

        def to_m(annotations: Sequence[Annotation]) -> np.ndarray:
            polygons = np.array([annotation.geometry for annotation in annotations], object)
            return shapely.transform(polygons, lambda l0_xy: (l0_xy + l0_start) / l0_per_m)

        # As one, or what several cover would be cut out more than once.
        m_regions = shapely.get_parts(shapely.union_all(to_m([a for a in entry.annotations if _is_region(a)])))
        if not len(m_regions) and entry.structures:
            _log.warning("%s has no Region* annotation: taken as annotated within the box around all", entry.slide)
            m_regions = np.array([shapely.box(*shapely.total_bounds(to_m(entry.structures)))])
        structures = entry.structures
        m_polygons, of_class = to_m(structures), np.array([_concept(a) for a in structures], object)
        tree = shapely.STRtree(m_polygons)
        for m_region in m_regions:
            # Of the pixels whose centres lie in it, as `raster` has them.
            left, top, right, bottom = (math.ceil(side - 0.5) for side in m_region.bounds)
            width, height = (min(TILE_PX, max(1, length)) for length in (right - left, bottom - top))
            for m_y in _starts(top, bottom, height):
                for m_x in _starts(left, right, width):
                    inside = raster(m_region, m_x, m_y, width, height)
                    if not inside.any():  # in the region's box, but not in it
                        continue
                    image = slide.read_at_mpp(int(m_x), int(m_y), width, height, mpp).copy()
                    image[~inside] = 255
                    layers = {key: np.zeros((height, width), np.uint16) for key in classes}
                    near = np.sort(tree.query(shapely.box(m_x, m_y, m_x + width, m_y + height)))
                    for key in set(of_class[near]):
                        numbers = near[of_class[near] == key]
                        paint(m_polygons[numbers], (numbers % 65535 + 1).astype(np.uint16), layers[key], m_x, m_y)
                        layers[key][~inside] = 0
                    yield make_sample(
                        image,
                        layers,
                        source=source,
                        label="",
                        group=entry.patient,
                        split=split_of(entry.patient),
                        name=f"{name} {m_x},{m_y}",
                        mpp=mpp,
                    )


def _starts(first: int, end: int, size: int) -> np.ndarray:
    """Starts of tiles of `size` that cover first..end and do not leave it."""
    return first + tile_starts(end - first, size, 0)


def _concept(annotation: Annotation) -> str:
    return _concept_of(annotation.classification)


@cache  # thousands of objects have the same few classes
def _concept_of(classification: str) -> str:
    name = query_class(classification)
    key = concept_asked(name)  # the class of what `wsiseg segment` found is its query
    if key is None:
        return concept_named(name)
    _log.warning("%s is taken for %s: give it another name if it is not that", name, concept_of(key).name)
    return key


def _is_region(annotation: Annotation) -> bool:
    return query_class(annotation.classification).casefold() == "region"


def raster(m_geometry: shapely.Geometry, m_x: int, m_y: int, width: int, height: int) -> np.ndarray:
    """Pixels (height, width) bool whose centres lie in the geometry; m_x, m_y is the corner of the first."""
    out = np.zeros((height, width), bool)
    paint(np.array([m_geometry], object), np.array([True]), out, m_x, m_y)
    return out
