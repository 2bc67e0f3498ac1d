"""The whole road, on slides whose truth is known, and on every real slide at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from shapely import Polygon

import wsiseg
from tests.scene import MODEL, QUERIES, SHAPES, outlines
from wsiseg.errors import MissingMppError, QueryError
from wsiseg.inference import TileMask
from wsiseg.pipeline import segment
from wsiseg.qupath import check_dialect
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel, disk, synthetic_slide
from wsiseg.tiles import GridSpec, plan_grid, write_store


@pytest.fixture(scope="session")
def texture(sample_slide: Path) -> np.ndarray:
    """Real tissue: dermis and epidermis of the sample slide."""
    with open_slide(sample_slide) as slide:
        return slide.read_region(870, 1500, 0, 450, 700)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


def to_um(polygon: Polygon, slide_mpp: tuple[float, float]) -> Polygon:
    return shapely.transform(polygon, lambda l0_xy: l0_xy * slide_mpp)


def assert_same_outlines(
    found: Sequence[Polygon], truth: Sequence[Polygon], slide_mpp: tuple[float, float], within_um: float
) -> None:
    """One found outline for each true one; Hausdorff distance of all rings, and number of holes."""
    assert len(found) == len(truth)
    left = [to_um(polygon, slide_mpp) for polygon in found]
    for polygon in truth:
        true = to_um(polygon, slide_mpp)
        nearest = min(left, key=lambda p: shapely.hausdorff_distance(p.boundary, true.boundary))
        left.remove(nearest)
        assert shapely.hausdorff_distance(nearest.boundary, true.boundary, densify=0.05) <= within_um
        assert len(nearest.interiors) == len(true.interiors)


# The truth


@pytest.mark.parametrize("backend", ["openslide", "tiffslide"])
@pytest.mark.parametrize(
    ("name", "slide_mpp", "l0_bounds_xy", "jpeg_quality"),
    [
        pytest.param("isotropic.tif", (0.5, 0.5), None, None, id="isotropic"),
        pytest.param("anisotropic.tif", (0.5, 0.4), None, None, id="anisotropic"),
        pytest.param("jpeg.tif", (0.45, 0.5), None, 90, id="jpeg"),
        pytest.param("bounds.scn", (0.5, 0.5), (334, 222), None, id="bounds"),
        pytest.param("anisotropic.scn", (0.5, 0.4), (300, 206), None, id="bounds-anisotropic"),
    ],
)
def test_polygons_match_the_truth_within_one_model_pixel(
    folder: Path,
    texture: np.ndarray,
    backend: str,
    name: str,
    slide_mpp: tuple[float, float],
    l0_bounds_xy: tuple[int, int] | None,
    jpeg_quality: int | None,
) -> None:
    path = folder / name
    truth = synthetic_slide(
        path, SHAPES, mpp=slide_mpp, texture=texture, l0_bounds_xy=l0_bounds_xy, jpeg_quality=jpeg_quality
    )
    # JPEG stores colour at half the resolution, and the fake model sees colour only: half a pixel more.
    within_um = MODEL.mpp if jpeg_quality is None else 1.5 * MODEL.mpp
    result = segment(path, QUERIES, model=MODEL, backend=backend, origin="slide")
    for query, marker in zip(QUERIES, truth, strict=True):
        assert_same_outlines(outlines(result, query), truth[marker], slide_mpp, within_um)

    # As QuPath shows the slide: less the OpenSlide bounds, so that the painted area begins at (0, 0).
    as_qupath = segment(path, QUERIES, model=MODEL, backend=backend)
    for query, marker in zip(QUERIES, truth, strict=True):
        assert_same_outlines(outlines(as_qupath, query), SHAPES[marker], slide_mpp, within_um)


def test_a_store_gives_the_same_outlines_as_its_slide(folder: Path) -> None:
    path, store = folder / "stored.scn", folder / "stored.zarr"
    synthetic_slide(path, SHAPES, l0_bounds_xy=(100, 50))
    with open_slide(path) as slide:
        write_store(slide, plan_grid(slide, GridSpec(MODEL.mpp, MODEL.tile_size, MODEL.overlap)), store)
    from_slide = segment(path, QUERIES, model=MODEL)
    path.unlink()  # a second query reads no pixel of the slide
    from_store = segment(store, QUERIES, model=MODEL)
    assert from_store.to_geojson() == from_slide.to_geojson()
    assert from_store.reasoning == from_slide.reasoning


def test_a_plain_image_is_a_slide_with_a_stated_scale(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "patch.png"
    synthetic_slide(folder / "plain.tif", SHAPES)
    with open_slide(folder / "plain.tif") as slide:
        Image.fromarray(slide.read_region(0, 0, 0, 1200, 800)).save(path)
    with pytest.raises(MissingMppError, match="--slide-mpp"):
        segment(path, QUERIES, model=MODEL)
    result = segment(path, QUERIES, model=MODEL, slide_mpp=(0.5, 0.5))
    assert_same_outlines(outlines(result, QUERIES[0]), SHAPES["olive"], (0.5, 0.5), within_um=MODEL.mpp)


def test_a_picture_smaller_than_a_tile_is_shown_in_its_middle_mirrored_around(folder: Path, tmp_path: Path) -> None:
    class Seeing(FakeModel):
        def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
            self.tiles = tiles
            return super().segment_tiles(tiles, query, mpp)

    model = Seeing(mpp=0.5)
    synthetic_slide(folder / "around.tif", {"olive": [disk(150, 100, 30)]}, l0_width=300, l0_height=200)
    for width, height in ((100, 80), (100, 180), (181, 80)):
        x, y = 150 - width // 2, 100 - height // 2
        with open_slide(folder / "around.tif") as slide:
            picture = slide.read_region(x, y, 0, width, height)
        Image.fromarray(picture).save(tmp_path / "patch.png")
        result = segment(tmp_path / "patch.png", "the olive", model=model, slide_mpp=0.5)
        truth = disk(width // 2, height // 2, 30)
        assert_same_outlines(outlines(result, "the olive"), [truth], (0.5, 0.5), within_um=0.5)
        left, top = max(128 - width, 0), max(128 - height, 0)
        around = np.pad(picture, (((top + 1) // 2, top // 2), ((left + 1) // 2, left // 2), (0, 0)), mode="symmetric")
        assert np.array_equal(model.tiles[0], around[:128, :128])


# Queries


class Attentive(FakeModel):
    """Looks at orange closer than at olive, and remembers which tiles it was shown."""

    def __init__(self) -> None:
        super().__init__(tile_size=128, overlap=32)
        self.shown: list[tuple[str, float, int]] = []

    def mpp_for(self, query: str) -> float:
        return 0.7 if "orange" in query else 1.0

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        self.shown.append((query, mpp, id(tiles)))
        return super().segment_tiles(tiles, query, mpp)


def test_each_query_is_asked_at_its_own_resolution(folder: Path) -> None:
    path, model = folder / "two.tif", Attentive()
    synthetic_slide(path, SHAPES)
    result = segment(path, [*QUERIES, "the olive again"], model=model, batch_size=4)
    assert_same_outlines(outlines(result, QUERIES[0]), SHAPES["olive"], (0.5, 0.5), within_um=1.0)
    assert_same_outlines(outlines(result, QUERIES[1]), SHAPES["orange"], (0.5, 0.5), within_um=0.7)
    assert result.run["parameters"]["mpp"] == {QUERIES[0]: 1.0, QUERIES[1]: 0.7, "the olive again": 1.0}
    names = [annotation.name for annotation in result.annotations]
    assert names == sorted(names, key=[*QUERIES, "the olive again"].index)  # in the order in which they were asked
    # Queries of one resolution are asked over the very same pixels, read once.
    olive = [(q, tiles) for q, mpp, tiles in model.shown if mpp == 1.0]
    assert [tiles for q, tiles in olive if q == QUERIES[0]] == [tiles for q, tiles in olive if q != QUERIES[0]]


class Doubtful(FakeModel):
    """Is sure of nothing: 0.6 of the probability."""

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        masks = super().segment_tiles(tiles, query, mpp)
        return [m if m.probability is None else replace(m, probability=0.6 * m.probability) for m in masks]


def test_threshold_and_tolerance_are_those_that_were_asked_for(folder: Path) -> None:
    path, model = folder / "doubtful.tif", Doubtful(mpp=1.0, tile_size=128, overlap=32)
    synthetic_slide(path, {"olive": [disk(240, 180, 60)]}, l0_width=480, l0_height=360)
    for threshold, count in ((0.55, 1), (0.65, 0)):
        result = segment(path, "olive", model=model, threshold=threshold)
        assert (len(result.annotations), result.run["parameters"]["threshold"]) == (count, threshold)
    fine, coarse = (segment(path, "olive", model=MODEL, simplify_um=um) for um in (0.1, 5.0))
    fine_points, coarse_points = (shapely.get_num_coordinates(r.annotations[0].geometry) for r in (fine, coarse))
    assert coarse_points < fine_points / 3
    assert coarse.run["parameters"]["simplify_um"] == 5.0


# A region


@pytest.mark.parametrize("origin", ["qupath", "slide"])
def test_a_region_gives_the_outlines_of_the_whole_slide_from_few_tiles(folder: Path, origin) -> None:
    path = folder / f"region-{origin}.scn"
    synthetic_slide(path, SHAPES, l0_bounds_xy=(334, 222))
    whole = segment(path, QUERIES, model=MODEL, origin=origin)
    left, top = (0, 0) if origin == "qupath" else (334, 222)
    box = (left + 120, top + 100, 300.0, 160.0)  # round the two disks
    heard: list[wsiseg.pipeline.TileReasoning] = []
    part = segment(path, QUERIES, model=MODEL, origin=origin, region=box, hear=heard.append)
    inside = [a for a in whole.annotations if a.geometry.within(shapely.box(*box[:2], box[0] + 300, box[1] + 160))]
    assert len(inside) == 2
    assert list(part.annotations) == inside
    assert 0 < len(part.reasoning) < len(whole.reasoning) / 3
    told = [replace(tile, polygons=()) for tile in part.reasoning]  # outlines are not known yet when a tile is heard
    assert sorted(heard, key=repr) == sorted(told, key=repr)
    assert part.run["parameters"]["region"] == list(box)
    beside = segment(path, QUERIES[0], model=MODEL, origin=origin, region=(left + 190, top + 20, 9, 9))
    assert beside.notes == [
        f'"{QUERIES[0]}": seen in 1 of 1 tiles, but nothing in the region passes threshold and minimum area'
    ]


# What is written


def test_the_same_run_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    path = folder / "again.tif"
    synthetic_slide(path, SHAPES)
    for name, batch_size in (("a", 8), ("b", 3)):
        segment(path, QUERIES, model=MODEL, batch_size=batch_size).write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_name_that_is_no_unicode_can_be_a_slide(tmp_path: Path) -> None:
    path = tmp_path / "sl\udcffide é.tif"
    synthetic_slide(path, SHAPES)
    segment(path, QUERIES, model=MODEL).write(tmp_path / "out.geojson")
    assert check_dialect(tmp_path / "out.geojson") == []


class CellModel(FakeModel):
    """Takes olives for cells, and oranges for tissue."""

    def asks_for_cells(self, query: str) -> bool:
        return "olive" in query


def test_cells_that_touch_are_outlined_one_by_one(folder: Path) -> None:
    path = folder / "cells.tif"
    pair = [disk(400, 300, 60), disk(510, 300, 60)]
    synthetic_slide(path, {"olive": pair, "orange": [shapely.affinity.translate(cell, 0, 250) for cell in pair]})
    model = CellModel(mpp=1.0, tile_size=128, overlap=32)

    def found(**options: Any) -> dict[str, list[Polygon]]:
        result = segment(path, QUERIES, **options)
        assert result.run["parameters"].get("separated", []) == [q for q in QUERIES if len(outlines(result, q)) == 2]
        ids = [annotation.id for annotation in result.annotations]
        assert sorted({i for tile in result.reasoning for i in tile.polygons}) == sorted(ids)
        return {q: outlines(result, q) for q in QUERIES}

    olives, oranges = found(model=model).values()
    assert len(oranges) == 1
    one, other = sorted(olives, key=lambda cell: cell.bounds)
    assert one.area == pytest.approx(other.area, rel=0.02)
    assert one.intersection(other).area < 1e-3
    assert shapely.union(one, other).area == pytest.approx(oranges[0].area, rel=0.01)  # of the same size
    assert [len(polygons) for polygons in found(model=model, separate=False).values()] == [1, 1]
    assert [len(polygons) for polygons in found(model=MODEL).values()] == [1, 1]
    assert [len(polygons) for polygons in found(model=MODEL, separate=True).values()] == [2, 2]


def test_progress_counts_every_tile_once(folder: Path) -> None:
    path, seen = folder / "progress.tif", []
    synthetic_slide(path, SHAPES)
    result = segment(path, QUERIES, model=MODEL, progress=lambda done, total: seen.append((done, total)))
    tiles = len(result.reasoning) // 2
    assert seen[-1] == (tiles, tiles)
    assert all(done <= total == tiles for done, total in seen)
    first, second = sorted({tile.l0_x for tile in result.reasoning})[:2]
    assert second - first == 192  # tiles overlap as the model wants it


def test_a_model_that_fails_closes_the_slide_and_says_what_failed(folder: Path) -> None:
    path = folder / "fails.tif"
    synthetic_slide(path, SHAPES)
    with pytest.raises(QueryError, match="knows only olive, orange"):
        segment(path, "purple", model=MODEL)


# Real slides


class Dark(FakeModel):
    """Outlines what is dark, on any slide."""

    def mpp_for(self, query: str) -> float:
        return self.mpp

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        return [TileMask(1 - tile.mean(axis=-1, dtype=np.float32) / 255, "dark", 1.0) for tile in tiles]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "mpp", "stained"),
    [
        ("CMU-1-Small-Region.svs", 2.0, True),
        ("hamamatsu_fluor_TRITC.ndpi", 8.0, False),  # fluorescence: black, so no stained tissue
        ("camelyon_overview_jpeg.dcm", 30.0, True),
        ("camelyon_overview_j2k.dcm", 30.0, True),
        ("highdicom_sm_image_50px.dcm", 1.0, True),
    ],
)
def test_every_backend_that_reads_a_slide_finds_the_same(
    shared_data: Path, tmp_path: Path, name: str, mpp: float, stained: bool
) -> None:
    path = shared_data / "slides" / "dev" / name
    model = Dark(mpp=mpp, tile_size=256, overlap=16)
    results = {}
    for backend in ("openslide", "tiffslide"):
        try:
            open_slide(path, backend=backend).close()
        except wsiseg.WsisegError:
            continue
        results[backend] = segment(path, "dark", model=model, backend=backend)
        results[backend].write(tmp_path / f"{backend}.geojson")
        assert check_dialect(tmp_path / f"{backend}.geojson") == []
    assert results
    if len(results) == 2:
        by_openslide, by_tiffslide = (outlines(result, "dark") for result in results.values())
        assert len(by_openslide) == len(by_tiffslide)
        assert bool(by_openslide) == stained
        apart = shapely.hausdorff_distance(shapely.boundary(by_openslide), shapely.boundary(by_tiffslide))
        assert max(apart, default=0.0) <= 1.0  # level-0 px
