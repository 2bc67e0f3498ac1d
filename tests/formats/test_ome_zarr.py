"""OME-Zarr, read back by ome-zarr-models, which checks it against the specification, and zarr."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import orjson
import pytest
import shapely
import zarr
from ome_zarr_models.v05 import Image

from tests.formats.conftest import HOSTILE, awkward
from wsiseg import Result
from wsiseg.errors import OutputError
from wsiseg.formats import ome_zarr
from wsiseg.geojson import Annotation, safe_polygons
from wsiseg.qupath import clean_class

MPP, L0_BOUNDS_XY = np.array([0.5, 0.4]), np.array([100, 60])


def centres(dataset, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
    """Where the centres of pixels lie, in QuPath's coordinates, by the transformations that the file states."""
    scale, move = dataset.coordinateTransformations
    y, x = (
        np.arange(size) * step + start for size, step, start in zip(shape, scale.scale, move.translation, strict=True)
    )
    x_um, y_um = np.meshgrid(x, y)
    return x_um / MPP[0] + 0.5 - L0_BOUNDS_XY[0], y_um / MPP[1] + 0.5 - L0_BOUNDS_XY[1]


def painted(annotations: list[Annotation], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = np.zeros(x.shape, int)
    for number, polygon in enumerate(safe_polygons(annotations), start=1):
        shapely.prepare(polygon)
        out[shapely.contains_xy(polygon, x, y)] = number
    return out


def edges_of(annotations: list[Annotation]) -> shapely.Geometry:
    return shapely.union_all(shapely.boundary(safe_polygons(annotations)))


def test_every_pixel_of_every_level_is_the_outline_under_its_centre(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ome_zarr, "CHUNK", 64)
    monkeypatch.setattr(ome_zarr, "BLOCK", 128)
    monkeypatch.setattr(ome_zarr, "_BATCH", 2)
    result.write(tmp_path / "out.ome.zarr")
    root = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")
    image = Image.from_zarr(root)
    names = ["the olive", "the orange", "no olive", *(clean_class(n) for n in (HOSTILE, "Exclusion", "None", ""))]
    by_class = {n: [a for a in result.annotations if clean_class(a.classification) == n] for n in names}
    assert len(image.labels.label_paths) == len(names)
    assert all(path.replace("-", "").isalnum() for path in image.labels.label_paths)
    assert root.attrs["ome"]["omero"]["channels"][0]["window"]["end"] == len(names)  # else viewers show black
    classes = root["0"][:]
    for i, (path, name) in enumerate(zip(image.labels.label_paths, names, strict=True), start=1):
        ome = image.labels.get_image_labels_group(path).ome_attributes
        (multiscale,) = ome.multiscales
        assert multiscale.name == (name or "no class")
        assert len(multiscale.datasets) == 5
        assert multiscale.datasets[0].coordinateTransformations[0].scale == [1.0, 1.0]  # the model's µm/px
        for dataset in multiscale.datasets:
            array = root["labels"][path][dataset.path]
            assert array.metadata.dimension_names == ("y", "x")
            step = np.array(dataset.coordinateTransformations[0].scale)
            width, height = result.run["slide"]["dimensions"]
            assert (np.abs(array.shape * step - (height, width) * MPP[::-1]) < step).all()  # the whole slide
            x, y = centres(dataset, array.shape)
            wrong = array[:] != painted(by_class[name], x, y)
            assert wrong.mean() < 0.01
            on_edge = shapely.distance(edges_of(by_class[name]), shapely.points(x[wrong], y[wrong])) < 1e-6
            assert on_edge.all()
        assert ((classes == i) <= (root["labels"][path]["0"][:] > 0)).all()
        assert ome.image_label.source.image == "../../"
        assert [tuple(color.rgba[:3]) for color in ome.image_label.colors or ()] == [a.color for a in by_class[name]]
    assert (np.unique(classes) == [0, 1, 2, 4, 5, 6, 7]).all()


def test_properties_tell_what_an_outline_is(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "out.ome.zarr")
    image = Image.from_zarr(zarr.open_group(tmp_path / "out.ome.zarr", mode="r"))
    features = {f["id"]: f["properties"] for f in result.to_geojson()["features"]}
    told = [
        dict(p)
        for path in image.labels.label_paths
        for p in image.labels.get_image_labels_group(path).ome_attributes.image_label.properties or ()
    ]
    assert [p["id"] for p in told] == list(features)
    for path in image.labels.label_paths:  # of which other readers than zarr take no NaN
        orjson.loads((tmp_path / "out.ome.zarr" / "labels" / path / "zarr.json").read_bytes())
    for p in told:
        feature = features[p["id"]]
        renamed = {"id": "measurement id"}
        assert p["name"] == feature["name"]
        assert p["class"] == feature.get("classification", {"name": ""})["name"]
        assert all(p[renamed.get(key, key)] == value for key, value in feature["measurements"].items())
        assert feature["metadata"].items() <= p.items()


def test_nothing_found_is_an_image_of_zeros(result: Result, tmp_path: Path) -> None:
    Result([], [], result.run).write(tmp_path / "out.zarr")
    root = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert Image.from_zarr(root).labels.label_paths == ["the-olive", "the-orange", "no-olive"]
    assert not root["0"][:].any()
    assert not root["labels/the-olive/0"][:].any()
    # The schema of labels wants at least one item in each of the two lists that are left out here.
    assert root["labels/the-olive"].attrs["ome"]["image-label"] == {"source": {"image": "../../"}}


@pytest.mark.parametrize(
    ("asked", "painted_at"),
    [({"a": 1.0}, 1.0), ({"a": 2, "b": 1}, 1), ({"nuclei": 0.35, "glands": 1.1}, 0.4), ({"a": 0.35}, 0.4), ({}, 0.4)],
)
def test_the_finest_look_decides_down_to_the_pixels_of_the_slide(
    result: Result, tmp_path: Path, asked: dict[str, float], painted_at: float
) -> None:
    """Trap: a 20x slide (0.5 um/px) asked for nuclei (at 0.35) and glands (at 1.1) was painted for the glands alone."""
    Result([], [], {**result.run, "parameters": {"mpp": asked}}).write(tmp_path / "out.zarr")
    (multiscale,) = Image.from_zarr(zarr.open_group(tmp_path / "out.zarr", mode="r")).ome_attributes.multiscales
    assert multiscale.datasets[0].coordinateTransformations[0].scale == [painted_at, painted_at]


def test_of_many_outlines_on_one_another_the_last_is_seen(result: Result, tmp_path: Path) -> None:
    expected, boxes = np.zeros((410, 768), int), []
    for number, (x, y) in enumerate(np.random.default_rng(0).integers(0, 330, (300, 2)).tolist(), start=1):
        expected[y : y + 80, x : x + 80] = number
        l0_box = shapely.box(*(np.array([x, y, x + 80, y + 80]) / np.tile(MPP, 2) - np.tile(L0_BOUNDS_XY, 2)))
        boxes.append(awkward(number, "nuclei", l0_box))
    Result(boxes, [], result.run).write(tmp_path / "out.zarr")
    assert (zarr.open_array(tmp_path / "out.zarr" / "labels" / "nuclei" / "0", mode="r")[:] == expected).all()


def test_no_two_classes_share_a_folder() -> None:
    names = ["a b 3", "a b", "a-b", "A B", "漢字", ""]
    assert list(ome_zarr._paths(names)) == ["a-b-3", "a-b", "a-b-3-3", "A-B-4", "class-5", "class-6"]


def test_only_what_wsiseg_made_is_replaced(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "zarr.json").write_text('{"attributes": {"ome": {}}}')
    with pytest.raises(OutputError, match="something else is there"):
        result.write(tmp_path / "mine.zarr")
    result.write(tmp_path / "out.zarr")
    before = (tmp_path / "out.zarr" / "zarr.json").read_bytes()
    Result([], [], {**result.run, "queries": ["x"]}).write(tmp_path / "out.zarr")
    assert (tmp_path / "out.zarr" / "zarr.json").read_bytes() != before
    before = (tmp_path / "out.zarr" / "zarr.json").read_bytes()
    monkeypatch.setattr(ome_zarr, "paint", lambda *_: os.stat("/no disk"))
    with pytest.raises(OutputError, match="cannot write"):
        result.write(tmp_path / "out.zarr")
    assert (tmp_path / "out.zarr" / "zarr.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["mine.zarr", "out.zarr"]
