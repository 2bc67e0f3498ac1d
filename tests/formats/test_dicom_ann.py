"""DICOM annotations, read back by highdicom's reader and, without its help, by pydicom."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import shapely
import tifffile

from tests.formats.conftest import AWKWARD, HOSTILE, awkward
from tests.slide import vendors
from wsiseg import Result, segment
from wsiseg.errors import GeoJSONError, OutputError
from wsiseg.formats import dicom_ann
from wsiseg.geojson import safe_polygons
from wsiseg.review import EDITED
from wsiseg.slide.dicom import first_of_series
from wsiseg.testing import FakeModel, ring, synthetic_slide


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One outline with a hole on a DICOM slide of several levels, whose patient has an umlaut in his name."""
    folder = tmp_path_factory.mktemp("dicom")
    synthetic_slide(folder / "slide.tif", {"olive": [ring(600, 400, 200, 60)]})
    scan = vendors.dicom(folder / "series", tifffile.imread(folder / "slide.tif"))
    image = pydicom.dcmread(scan.path)
    image.SpecificCharacterSet = "ISO_IR 100"
    image.PatientName = "Müller^Jürgen"
    image.PatientID = "4711"
    specimen = pydicom.Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "Präparat 7", "1.2.3"
    specimen.IssuerOfTheSpecimenIdentifierSequence = specimen.SpecimenPreparationSequence = []
    image.SpecimenDescriptionSequence = [specimen]
    image.save_as(scan.path)
    # Any file of the series names it: here that of the coarsest level.
    return segment(sorted((folder / "series").iterdir())[-1], "the olive", model=FakeModel(tile_size=128, overlap=32))


def polygons(group: pydicom.Dataset) -> list[shapely.Polygon]:
    """As PS3.3 C.37.1.2 says: floats in pairs, and for each polygon the index, from 1, of its first."""
    xy = np.frombuffer(group.PointCoordinatesData, "<f4").reshape(-1, 2)
    starts = (np.frombuffer(group.LongPrimitivePointIndexList, "<u4") - 1) // 2
    return [shapely.Polygon(corners) for corners in np.split(xy, starts[1:])]


def test_outlines_of_a_dicom_slide_refer_to_its_finest_level(found: Result, tmp_path: Path) -> None:
    found.write(tmp_path / "out.dcm")
    file = pydicom.dcmread(tmp_path / "out.dcm")
    slide = pydicom.dcmread(Path(found.run["slide"]["source"]).parent / "level0.dcm")
    assert first_of_series([Path(slide.filename), tmp_path / "out.dcm"]) == [Path(slide.filename)]  # it is no slide
    assert file.SOPClassUID.name == "Microscopy Bulk Simple Annotations Storage"
    assert (file.AnnotationCoordinateType, file.PixelOriginInterpretation) == ("2D", "VOLUME")
    assert file.ReferencedImageSequence[0].ReferencedSOPInstanceUID == slide.SOPInstanceUID
    assert file.StudyInstanceUID == slide.StudyInstanceUID
    assert (str(file.PatientName), file.PatientID) == ("Müller^Jürgen", "4711")
    assert file.SpecimenDescriptionSequence[0].SpecimenIdentifier == "Präparat 7"
    outlines, holes = file.AnnotationGroupSequence
    assert (outlines.AnnotationGroupLabel, holes.AnnotationGroupLabel) == ("the olive", "holes: the olive")
    assert outlines.AnnotationGroupGenerationType == "AUTOMATIC"
    (shell,), (hole,) = polygons(outlines), polygons(holes)
    (expected,) = safe_polygons(found.annotations)
    assert shell.difference(hole).symmetric_difference(expected).area < 1e-3 * expected.area

    bounds = [7, 5, *(size - 10 for size in found.run["slide"]["dimensions"])]
    made = {**found.run, "slide": {**found.run["slide"], "bounds": bounds}}  # where QuPath's origin is another
    long = [replace(found.annotations[0], classification=f"{'very ' * 15}olive")]
    Result(long, [], made).write(tmp_path / "long.dcm")
    outlines, _ = pydicom.dcmread(tmp_path / "long.dcm").AnnotationGroupSequence
    assert outlines.AnnotationGroupLabel == f"{'very ' * 5}very...{'very ' * 5}olive"  # as many as DICOM has room for
    np.testing.assert_allclose(np.subtract(polygons(outlines)[0].bounds, [7, 5, 7, 5]), shell.bounds, atol=1e-3)


def test_measurements_classes_and_colours_are_kept(found: Result, tmp_path: Path) -> None:
    more = [awkward(i, name, geometry) for i, (name, geometry) in enumerate(AWKWARD)]
    Result([*found.annotations, *more], [], found.run).write(tmp_path / "out.dcm")
    read = highdicom.ann.annread(tmp_path / "out.dcm")
    groups = [group for group in read.AnnotationGroupSequence if not group.label.startswith("holes")]
    cleaned = " ".join(HOSTILE.split()).replace("\\", "/")
    assert [group.label for group in groups] == ["the olive", cleaned, "Exclusion", "None", "no class"]
    assert all(group.annotated_property_type.meaning == group.label for group in groups)
    names, values, units = groups[0].get_measurements()
    measured = dict(zip((name.meaning for name in names), values[0].tolist(), strict=True))
    expected = found.annotations[0].measurements
    assert measured["Area"] == pytest.approx(expected["Area µm^2"])
    assert measured["Mean probability"] == pytest.approx(expected["Mean probability"])
    assert [unit.value for unit in units] == ["um2", "um", "1", "1"]
    _, values, _ = groups[1].get_measurements()
    assert values.shape == (2, 2)  # parts of one outline
    assert values[0].tolist() == [1.5, 7.0]
    assert np.isnan(values[1]).all()
    colors = [highdicom.color.CIELabColor.from_dicom_value(tuple(g.RecommendedDisplayCIELabValue)) for g in groups]
    members = [found.annotations[0], *more]
    assert [color.to_rgb() for color in colors] == [pytest.approx(a.color, abs=1) for a in members]
    assert {group.algorithm_type.value for group in groups[1:]} == {"MANUAL"}


def test_what_dicom_has_no_room_for_is_still_told_apart(found: Result, tmp_path: Path) -> None:
    texture = "ROI: 20x: haematoxylin: Haralick information measure of correlation"
    glands = "the malignant epithelial glands of the colon in the mucosa,"
    measurements = {f"{texture} {i}": float(i) for i in (1, 2)}
    classes = [f"{glands} {how}" for how in ("invasive", "in situ")]
    more = [replace(found.annotations[0], classification=name, measurements=measurements) for name in classes]
    Result(more, [], found.run).write(tmp_path / "out.dcm")
    groups = highdicom.ann.annread(tmp_path / "out.dcm").get_annotation_groups()
    for concepts in ([group.annotated_property_type for group in groups], groups[0].get_measurements()[0]):
        assert len({concept.value for concept in concepts}) == len({concept.meaning for concept in concepts}) == 2
    apart = {dicom_ann._own_code(f"{texture} {i} {texture}").value for i in range(9)}  # though none is seen
    assert len(apart) == 9


def test_what_a_person_moved_is_half_the_models(found: Result, tmp_path: Path) -> None:
    found.annotations[0].metadata[EDITED] = "true"
    found.write(tmp_path / "out.dcm")
    del found.annotations[0].metadata[EDITED]
    (first, _) = highdicom.ann.annread(tmp_path / "out.dcm").AnnotationGroupSequence
    assert first.algorithm_type.value == "SEMIAUTOMATIC"
    assert first.algorithm_identification.name == "fake"


def test_corners_that_single_precision_cannot_tell_apart_are_one() -> None:
    """Trap: where that made the last corner the first, highdicom refused the file."""
    ring = shapely.LinearRing([(140_000.01, 5), (140_009, 5), (140_009, 20), (140_000.02, 5)])
    assert dicom_ann._corners(ring, np.array([0, 0])).round().tolist() == [[140_000, 5], [140_009, 5], [140_009, 20]]


def test_nothing_found_is_a_file_without_groups(found: Result, tmp_path: Path) -> None:
    Result([], [], found.run).write(tmp_path / "out.dcm")
    assert len(highdicom.ann.annread(tmp_path / "out.dcm").AnnotationGroupSequence) == 0


@pytest.fixture
def copied(found: Result, tmp_path: Path) -> Result:
    """The same outlines on a copy of the slide, whose header may be changed."""
    shutil.copytree(Path(found.run["slide"]["source"]).parent, tmp_path / "series")
    slide = {**found.run["slide"], "source": str(tmp_path / "series" / "level0.dcm")}
    return Result(found.annotations, [], {**found.run, "slide": slide})


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_what_a_header_should_not_say_is_left_empty(copied: Result, tmp_path: Path) -> None:
    image = pydicom.dcmread(copied.run["slide"]["source"])
    odd = {"PatientSex": "U", "PatientBirthDate": "1900", "StudyDate": "notadate", "StudyTime": "noon"}
    for keyword, value in odd.items():
        setattr(image, keyword, value)
    del image.Modality
    image.save_as(image.filename)
    copied.write(tmp_path / "out.dcm")
    file = pydicom.dcmread(tmp_path / "out.dcm")
    assert not any(file[keyword].value for keyword in odd)
    assert file.PatientID == "4711"


def test_a_slide_without_identifiers_is_refused_before_the_model_is_asked(copied: Result) -> None:
    image = pydicom.dcmread(copied.run["slide"]["source"])
    del image.StudyInstanceUID
    image.save_as(image.filename)
    with pytest.raises(OutputError, match=r"level0\.dcm has no StudyInstanceUID, by which DICOM annotations refer"):
        dicom_ann.check_source(image.filename)


def test_what_else_highdicom_may_not_like_is_told_before_the_model_is_asked(
    found: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_ann, "_MAY_BE_EMPTY", {})
    message = r"\.dcm, whose header is unusual: .* no attribute 'FrameOfReferenceUID'"
    with pytest.raises(OutputError, match=message):
        dicom_ann.check_source(found.run["slide"]["source"])
    with pytest.raises(OutputError, match=message):
        found.write(tmp_path / "out.dcm")


def test_other_slides_are_refused(result: Result, found: Result, tmp_path: Path) -> None:
    for run, message in (
        (result.run, "is not a DICOM slide"),
        ({}, "do not say on which slide"),
        ({"slide": {**found.run["slide"], "source": "/gone.dcm"}}, "there is no slide /gone.dcm"),
        ({"slide": {**found.run["slide"], "dimensions": [10, 10]}}, "its size differs"),
    ):
        with pytest.raises((OutputError, GeoJSONError), match=message):
            Result(result.annotations, [], run).write(tmp_path / "out.dcm")
    assert not list(tmp_path.iterdir())
