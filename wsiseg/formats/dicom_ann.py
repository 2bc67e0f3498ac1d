"""DICOM Microscopy Bulk Simple Annotations (PS3.3 A.87), written by highdicom: one group of polygons for each class.

Such a file refers to its slide by the identifiers that are in the slide's own DICOM files, so it can be made for
DICOM slides only. Its polygons have no holes: these are a group of their own, after that of their class. Measurements
stand at the first part of an outline; ids, names and what the model said have no place.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import highdicom
import numpy as np
import pydicom
import shapely
from highdicom.ann import AnnotationGroup, Measurements, MicroscopyBulkSimpleAnnotations
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import VLWholeSlideMicroscopyImageStorage
from pydicom.valuerep import DA, TM

from wsiseg import __version__
from wsiseg.belonging import place_of
from wsiseg.errors import OutputError
from wsiseg.geojson import Annotation, safe_polygons
from wsiseg.mask.shapes import rings_of
from wsiseg.qupath import clean_class, clean_text
from wsiseg.review import EDITED
from wsiseg.slide.dicom import files_of_series, series_uid
from wsiseg.tiles import TileStore, is_store

SCHEME = "99WSISEG"
"""Of codes that stand for the words of a query, or for a measurement that DICOM has no code for."""

_KNOWN = {
    "Area µm^2": (codes.SCT.Area, codes.UCUM.SquareMicrometer),
    "Perimeter µm": (codes.SCT.Perimeter, codes.UCUM.Micrometer),
}
_MAY_BE_EMPTY: dict[str, Callable[[Any], object]] = {
    "PatientID": str,
    "PatientName": str,
    "PatientBirthDate": DA,
    "PatientSex": highdicom.PatientSexValues,
    "AccessionNumber": str,
    "StudyID": str,
    "StudyDate": DA,
    "StudyTime": TM,
    "ReferringPhysicianName": str,
    "FrameOfReferenceUID": str,
}
"""What highdicom wants of a header, and what it makes of that: a ValueError of what the standard does not know."""


def write(annotations: Sequence[Annotation], run: Mapping[str, Any], file: IO[bytes]) -> None:
    """Coordinates are pixels of the total pixel matrix of the slide's finest level.

    Raises:
        GeoJSONError: `run` does not say on which slide the outlines lie.
        OutputError: that is no DICOM slide.
    """
    place = place_of(run)
    image = _finest(place.source)
    if (image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows) != (place.l0_width, place.l0_height):
        raise OutputError(f"{place.source} is not the slide of the outlines: its size differs")
    classes: dict[str, list[Annotation]] = {}
    for a in annotations:
        classes.setdefault(clean_class(a.classification), []).append(a)
    groups: list[AnnotationGroup] = []
    for name, members in classes.items():
        groups += _groups(name, members, run, np.array(place.l0_origin), first=len(groups) + 1)
    _save(place.source, image, groups, file)


def check_source(source: str | Path) -> None:
    """OutputError if `source`, a slide or a store of its tiles, is no DICOM slide that annotations can refer to."""
    slide = TileStore.open(source).grid.slide.source if is_store(source) else str(source)
    _save(slide, _finest(slide), [], io.BytesIO())  # highdicom has rules of its own for what it copies of a header


def _save(source: str, image: pydicom.Dataset, groups: Sequence[AnnotationGroup], file: IO[bytes]) -> None:
    """image: the header of `_finest`."""
    try:
        MicroscopyBulkSimpleAnnotations(
            source_images=[image],
            annotation_coordinate_type="2D",
            annotation_groups=groups,
            series_instance_uid=highdicom.UID(),
            series_number=1,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="wsiseg",
            manufacturer_model_name="wsiseg",
            software_versions=__version__,
            device_serial_number=__version__,
            series_description="wsiseg",
            specific_character_set="ISO_IR 192",
        ).save_as(file)
    except (AttributeError, TypeError, ValueError) as error:
        raise OutputError(
            f"DICOM annotations cannot refer to {source}, whose header is unusual: {error}; choose another format"
        ) from error


def _finest(source: str) -> pydicom.Dataset:
    """The header of the finest level of the series that the file `source` belongs to."""
    if not Path(source).is_file():
        raise OutputError(f"there is no slide {source}: give the one of the outlines with --slide")
    if series_uid(Path(source)) is None:
        raise OutputError(
            f"{source} is not a DICOM slide: DICOM annotations refer to a slide by its DICOM identifiers; "
            "choose another format"
        )
    levels = [pydicom.dcmread(path, stop_before_pixels=True) for path in files_of_series(Path(source))]
    levels = [
        level
        for level in levels
        if level.get("SOPClassUID") == VLWholeSlideMicroscopyImageStorage and "VOLUME" in level.get("ImageType", ())
    ]
    if not levels:
        raise OutputError(f"{source} is DICOM, but not a whole slide: choose another format")
    image = max(levels, key=lambda level: int(level.TotalPixelMatrixColumns))
    for keyword in ("StudyInstanceUID", "SOPInstanceUID"):
        if not image.get(keyword):
            raise OutputError(
                f"{source} has no {keyword}, by which DICOM annotations refer to a slide: choose another format"
            )
    image.decode()  # from the slide's character set, once and for all
    image.SOPInstanceUID = image.get("SOPInstanceUIDOfConcatenationSource", image.SOPInstanceUID)
    image.Modality = "SM"
    for keyword, kind in _MAY_BE_EMPTY.items():
        try:
            kind(image[keyword].value)
        except (KeyError, ValueError):
            setattr(image, keyword, "")
    return image


def _groups(
    name: str, members: list[Annotation], run: Mapping[str, Any], l0_origin: np.ndarray, first: int
) -> list[AnnotationGroup]:
    """The outlines of a class, numbered `first`, and their holes if there are any."""
    rings, owner, is_hole = rings_of(safe_polygons(members))
    corners = [_corners(ring, l0_origin) for ring in rings]
    label = _long_string(name) or "no class"
    shared: dict[str, Any] = {
        "annotated_property_category": codes.SCT.SpatialAndRelationalConcept,
        "annotated_property_type": _own_code(name or label),
        "graphic_type": "POLYGON",
        "display_color": highdicom.color.CIELabColor.from_rgb(*members[0].color),
        **_algorithm(members, run),
    }
    groups = [
        AnnotationGroup(
            number=first,
            uid=highdicom.UID(),
            label=label,
            graphic_data=[corners[i] for i in np.flatnonzero(~is_hole)],
            measurements=_measurements(members, owner[~is_hole]),
            **shared,
        )
    ]
    if is_hole.any():
        groups.append(
            AnnotationGroup(
                number=first + 1,
                uid=highdicom.UID(),
                label=_long_string(f"holes: {name}"),
                description=f"To be cut out of the polygons of group {first}",
                graphic_data=[corners[i] for i in np.flatnonzero(is_hole)],
                **shared,
            )
        )
    return groups


def _corners(ring: shapely.LinearRing, l0_origin: np.ndarray) -> np.ndarray:
    """(n, 2) float32, the first not repeated. Beyond 131,072 px neighbours on the 0.01-px grid may be one number."""
    xy = (shapely.get_coordinates(ring) + l0_origin).astype(np.float32)
    return xy[:-1][(xy[1:] != xy[:-1]).any(axis=1)]


def _measurements(members: list[Annotation], owner: np.ndarray) -> list[Measurements]:
    """Of polygons (P,), each the first or a further part of the outline `owner` (P,); these are told of the first."""
    first_part, found = np.flatnonzero(np.diff(owner, prepend=-1)), []
    for key in dict.fromkeys(key for a in members for key, value in a.measurements.items() if np.isfinite(value)):
        values = np.full(len(owner), np.nan)
        values[first_part] = [a.measurements.get(key, np.nan) for a in members]
        values[np.isinf(values)] = np.nan
        name, unit = _KNOWN.get(key) or (_own_code(key), codes.UCUM.NoUnits)
        found.append(Measurements(name, values, unit))
    return found


def _algorithm(members: list[Annotation], run: Mapping[str, Any]) -> dict[str, Any]:
    """Who drew: the model, a person, or both."""
    model = run.get("model")
    if not isinstance(model, Mapping) or not any("model" in a.metadata for a in members):
        return {"algorithm_type": "MANUAL"}
    identification = highdicom.AlgorithmIdentificationSequence(
        name=_long_string(str(model.get("name"))) or "unnamed",
        family=codes.DCM.ArtificialIntelligence,
        version=_long_string(str(model.get("fingerprint"))) or "unknown",
        source="wsiseg",
    )
    untouched = all("model" in a.metadata and EDITED not in a.metadata for a in members)
    kind = "AUTOMATIC" if untouched else "SEMIAUTOMATIC"
    return {"algorithm_type": kind, "algorithm_identification": identification}


def _own_code(text: str) -> Code:
    """Of the whole text, so that no two have one code, even if they are the same once they are cut."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return Code(digest[:16], SCHEME, _long_string(text) or "unnamed")


def _long_string(text: str) -> str:
    """As DICOM's LO: one line of at most 64 characters, in which a backslash would begin another value.

    What is longer loses its middle: names of measurements, and queries, often differ at their ends.
    """
    line = " ".join(clean_text(text.replace("\\", "/")).split())
    return line if len(line) <= 64 else f"{line[:30].rstrip()}...{line[-31:].lstrip()}"
