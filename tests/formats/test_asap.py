"""ASAP's XML, read as ASAP itself does (its XmlRepository::loadFromRepo), and by the importer of CAMELYON16."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely

from tests.formats.conftest import HOSTILE
from wsiseg import Result
from wsiseg.formats import asap
from wsiseg.geojson import safe_polygons
from wsiseg.qupath import clean_class, clean_name
from wsiseg.training.data.published import _asap_tumour

L0_BOUNDS_XY = (100, 60)


def load(path: Path) -> tuple[dict[str, tuple[str, str]], list[tuple[str, str | None, str, shapely.Polygon]]]:
    """Groups (name -> parent, colour) and annotations (name, group, colour, polygon) as ASAP knows them."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "ASAP_Annotations"
    groups = {g.attrib["Name"]: (g.attrib["PartOfGroup"], g.attrib["Color"]) for g in root.find("AnnotationGroups")}
    assert all(parent in {"None", *groups} for parent, _ in groups.values())
    annotations = []
    for element in root.find("Annotations"):
        assert element.attrib["Type"] == "Polygon"
        group = element.attrib["PartOfGroup"]
        assert group in {"None", *groups}, "with a group that is not there ASAP drops the whole file"
        corners = element.find("Coordinates")
        xy = np.full((len(corners), 2), np.nan)
        for corner in corners:
            xy[int(corner.attrib["Order"])] = float(corner.attrib["X"]), float(corner.attrib["Y"])
        assert (xy[0] != xy[-1]).any()
        kept = None if group == "None" else group
        annotations.append((element.attrib["Name"], kept, element.attrib["Color"], shapely.Polygon(xy)))
    return groups, annotations


def test_classes_colours_names_and_holes_are_kept(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asap, "_BATCH", 2)
    result.write(tmp_path / "out.xml")
    groups, found = load(tmp_path / "out.xml")
    hostile = clean_class(HOSTILE).replace("\ufffe", "")
    assert set(groups) == {
        "the olive", "the olive Exclusion", "the orange", hostile, f"{hostile} Exclusion", "Exclusion",
        "Exclusion Exclusion", "None_",
    }  # fmt: skip
    by_group = Counter(group for _, group, _, _ in found)
    assert by_group[hostile] == 2  # of a MultiPolygon
    assert by_group[None] == 1
    for a, polygon in zip(result.annotations, safe_polygons(result.annotations), strict=True):
        group = {"None": "None_", "": None, HOSTILE: hostile}.get(a.classification, a.classification)
        name = clean_name(a.name).replace("\ufffe", "")
        color = "#{:02x}{:02x}{:02x}".format(*a.color)
        shells = [shape for *told, shape in found if told == [name, group, color]]
        holes = [shape for *told, shape in found if told == [name, f"{group} Exclusion", color]]
        cut = shapely.difference(shapely.union_all(shells), shapely.union_all(holes))
        expected = shapely.transform(polygon, lambda xy: xy + L0_BOUNDS_XY)  # ASAP counts from the slide's corner
        assert cut.intersection(expected.envelope).symmetric_difference(expected).area < 1e-6
        assert group is None or groups[group] == ("None", color)
        assert not holes or groups[f"{group} Exclusion"] == (group, color)
    assert all("Exclusion" in str(group) for _, group, _, _ in found[-3:])  # painted in order, they come last


def test_holes_of_one_class_are_excluded_as_in_camelyon16(result: Result, tmp_path: Path) -> None:
    olive = [a for a in result.annotations if a.classification == "the olive"]
    Result(olive, [], {**result.run, "origin": "slide"}).write(tmp_path / "out.xml")
    expected = shapely.union_all(safe_polygons(olive))
    assert expected.geoms[1].interiors or expected.geoms[0].interiors
    assert _asap_tumour(tmp_path / "out.xml").symmetric_difference(expected).area < 1e-6


def test_nothing_found_is_a_file_without_annotations(result: Result, tmp_path: Path) -> None:
    Result([], [], result.run).write(tmp_path / "out.xml")
    assert load(tmp_path / "out.xml") == ({}, [])
