"""The whole road, on slides whose truth is known, and on every real slide at hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely import Polygon

import wsiseg
from wsiseg.annotate import most_covered
from wsiseg.errors import FleetError, MissingMppError, QueryError, SlideError, StoreError
from wsiseg.fleet import Settings
from wsiseg.inference import TileMask
from wsiseg.pipeline import segment
from wsiseg.qupath import DESCRIPTION, check_dialect, clean_description
from wsiseg.result import Result
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel, disk, ring, stripe, synthetic_slide
from wsiseg.tiles import GridSpec, plan_grid, write_store

MODEL = FakeModel(mpp=1.0, tile_size=128, overlap=32)
# On a slide of 0.5 µm/px the tiles of MODEL begin every 192 px: the large shapes cross several borders.
SHAPES = {
    "olive": [
        disk(200, 180, 60),
        disk(336, 180, 60),  # 16 px from its neighbour
        ring(800, 300, 190, 110),
        disk(800, 300, 25),  # an island in the ring's hole
        stripe(0, 560, 900, 31),  # from the slide's left edge, over the glass
    ],
    "orange": [stripe(300, 640, 37, 120), ring(1000, 640, 80, 20)],
}
QUERIES = ["outline the olive", "outline the orange"]


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


def outlines(result: Result, query: str) -> list[Polygon]:
    return [a.geometry for a in result.annotations if a.metadata["query"] == query]


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


def test_a_store_of_another_resolution_is_an_error_not_a_surprise(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, store = folder / "half.tif", folder / "half.zarr"
    synthetic_slide(path, SHAPES)
    with open_slide(path) as slide:
        write_store(slide, plan_grid(slide, GridSpec(1.0, 128, 32)), store)
    with pytest.raises(StoreError, match=r"holds tiles of 1 µm/px, not 0\.5"):
        segment(store, QUERIES, model=MODEL, mpp=0.5)
    with pytest.raises(StoreError, match="slide mpp were set when it was made"):
        segment(store, QUERIES, model=MODEL, slide_mpp=0.5)
    segment(store, QUERIES, model=MODEL)
    assert not caplog.messages
    segment(store, QUERIES[0], model=FakeModel(mpp=2.0, tile_size=64))
    assert caplog.messages == [
        f'the store has 1 µm/px; for "{QUERIES[0]}" the model prefers 2',
        "the store has tiles of 128 px; the model is made for 64",
    ]


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


@pytest.mark.parametrize("query", ["", "  \n", [], ["olive", " "], "\x00"])
def test_an_empty_query_is_refused(query: str | list[str]) -> None:
    with pytest.raises(QueryError, match="the query is empty"):
        segment("never-opened.svs", query, model=MODEL)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"threshold": 0.0}, "threshold 0.0 must be above 0 and at most 1"),
        ({"threshold": 7.0}, "threshold 7.0 must be above 0 and at most 1"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"mpp": 0.0}, "mpp 0.0 must be above 0"),
        ({"min_area_um2": np.nan}, "min_area_um2 nan must be 0 or more"),
        ({"simplify_um": -1.0}, "simplify_um -1.0 must be 0 or more"),
        ({"origin": "QuPath"}, "origin 'QuPath' must be qupath or slide"),
        ({"on_bad_tile": "raise"}, "on_bad_tile 'raise' must be stop or skip"),
    ],
)
def test_parameters_out_of_their_range_are_refused_before_the_slide_is_opened(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(QueryError, match=said):
        segment("never-opened.svs", "olive", model=MODEL, **wrong)
    with pytest.raises(FleetError, match=said):
        Settings(**wrong)


def test_what_is_not_there_gives_an_empty_collection_and_a_sentence(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "olive-only.tif"
    synthetic_slide(path, {"olive": SHAPES["olive"]})
    with caplog.at_level(logging.WARNING, "wsiseg"):
        result = segment(path, QUERIES, model=MODEL)
    tiles = len(result.reasoning) // 2
    said = f'"{QUERIES[1]}": not found in {tiles} tiles; the model says: I looked for orange and there is no'
    assert result.notes == caplog.messages
    assert [note.removesuffix(" orange here.") for note in result.notes] == [said]
    assert not outlines(result, QUERIES[1])

    only_orange = segment(path, QUERIES[1], model=MODEL)
    only_orange.write(tmp_path / "empty.geojson")
    assert check_dialect(tmp_path / "empty.geojson") == []
    assert only_orange.to_geojson()["features"] == []


def test_a_slide_without_tissue_gives_an_empty_collection_and_a_sentence(folder: Path) -> None:
    path = folder / "glass.tif"
    synthetic_slide(path, {}, texture=np.full((50, 50, 3), 244, np.uint8))
    result = segment(path, "outline the olive", model=MODEL)
    assert list(result.annotations) == result.reasoning == []
    assert "no tissue was found" in result.notes[0]


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


def test_a_threshold_or_area_that_nothing_passes_is_said(folder: Path) -> None:
    path = folder / "small.tif"
    synthetic_slide(path, {"olive": [disk(400, 400, 20)]})
    result = segment(path, "olive", model=MODEL, min_area_um2=10_000)
    assert list(result.annotations) == []
    assert "nothing passes threshold and minimum area" in result.notes[0]


class Careful(FakeModel):
    def caution_for(self, query: str) -> str:
        return "" if "orange" in query else "trust no fruit"


def test_what_a_model_should_not_be_trusted_with_is_said_with_its_outlines_once_a_process(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "olives.tif"
    synthetic_slide(path, {"olive": SHAPES["olive"]})
    with caplog.at_level(logging.WARNING, "wsiseg"):
        results = [segment(path, ["olive", "outline the olive"], model=Careful(mpp=1.0)) for _ in range(2)]
    assert caplog.messages == ["trust no fruit"]
    assert [(result.notes, result.run["cautions"]) for result in results] == [(["trust no fruit"],) * 2] * 2
    nothing = segment(path, "olive", model=Careful(mpp=1.0), min_area_um2=1e6)
    assert "cautions" not in nothing.run  # not with what was not found
    assert "trust no fruit" not in nothing.notes


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


def test_a_picture_in_memory_is_told_what_to_do() -> None:
    for picture in (np.zeros((64, 64, 3), np.uint8), Image.new("RGB", (64, 64)), b"slide.tif"):
        with pytest.raises(SlideError, match=r"its path or URL, not as \w+: save a picture as PNG"):
            segment(picture, "olive", model=MODEL, slide_mpp=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((0, 0, 0, 9), "has no area"),
        ((0, 0, 9), "x, y, width and height"),
        ((5,), "x, y, width and height"),
        ((9e9, 0, 9, 9), "outside"),
        ((0, 0, np.nan, 9), "no area"),
    ],
)
def test_a_region_without_slide_is_refused(folder: Path, box: tuple[float, ...], said: str) -> None:
    path = folder / "no-region.tif"
    synthetic_slide(path, {})
    with pytest.raises(QueryError, match=said):
        segment(path, "olive", model=MODEL, region=box)  # type: ignore[arg-type]


# What is written


def test_the_file_carries_the_reasoning_where_qupath_shows_it(folder: Path, tmp_path: Path) -> None:
    path, out = folder / "written.tif", tmp_path / "out.geojson"
    synthetic_slide(path, SHAPES)
    result = wsiseg.segment(path, QUERIES, model=MODEL)
    result.write(out)
    assert check_dialect(out) == []
    collection = result.to_geojson()
    assert collection["wsiseg"] == result.run
    assert collection["wsiseg"]["model"] == {"name": "fake", "fingerprint": "fake-1"}
    assert collection["wsiseg"]["origin"] == "qupath"
    chains = {clean_description(tile.reasoning) for tile in result.reasoning if tile.segmented}
    for feature in collection["features"]:
        properties = feature["properties"]
        assert properties["metadata"][DESCRIPTION] in chains
        assert properties["name"] == properties["classification"]["name"] == properties["metadata"]["query"]
        assert 0.5 < properties["measurements"]["Mean probability"] <= 1
    derived = wsiseg.segment(path, "olive: all*", model=MODEL)  # QuPath would derive a class, and ignore it
    assert {(a.name, a.classification) for a in derived.annotations} == {("olive: all*", "olive all")}
    ring_um2 = next(a.measurements["Area µm^2"] for a in result.annotations if a.geometry.bounds[2] > 950)
    assert ring_um2 == pytest.approx(SHAPES["olive"][2].area * 0.25, rel=0.02)


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


boxes = st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(1, 60), st.integers(1, 60)).map(
    lambda v: shapely.box(v[0], v[1], v[0] + v[2], v[1] + v[3])
)


@settings(max_examples=200, deadline=None)
@given(st.lists(boxes, min_size=1, max_size=4))
def test_the_reasoning_comes_from_the_tile_that_the_outline_covers_most(parts: list[Polygon]) -> None:
    outline = shapely.union_all(parts)
    tiles = [shapely.box(x, y, x + 40, y + 40) for y in range(0, 150, 30) for x in range(0, 150, 30)]
    shared = [tile.intersection(outline).area for tile in tiles]
    assert shared[most_covered(shapely.STRtree(tiles), outline)] == pytest.approx(max(shared))


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
