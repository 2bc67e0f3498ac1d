"""QuPath annotations on a slide become samples whose layers lie where people drew."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from click.testing import CliRunner

from wsiseg.cli.main import main
from wsiseg.errors import DataError
from wsiseg.geojson import Annotation, write_geojson
from wsiseg.review import REVIEW
from wsiseg.slide import open_slide
from wsiseg.testing import MARKERS, synthetic_slide
from wsiseg.training.data.annotated import AnnotatedSlide, read_export, samples_of
from wsiseg.training.data.store import QuadrupletStore

MPP = 0.998  # two level-0 pixels of the sample slide


def drawn(kind: str, geometry: shapely.Geometry) -> Annotation:
    return Annotation(uuid.uuid4(), geometry, "", kind, (200, 0, 0))


@pytest.fixture
def export(sample_slide: Path, tmp_path: Path) -> Path:
    """What export.groovy writes: a ring and a square in one region, nothing in another."""
    folder = tmp_path / "my-project"
    folder.mkdir()
    ring = shapely.box(200, 300, 400, 500) - shapely.box(260, 360, 340, 440)
    annotations = [
        drawn("Region*", shapely.box(100, 200, 900, 800)),
        drawn("Region*", shapely.box(1000, 1000, 3000 - 800, 2400)),
        drawn("Gland", ring),
        drawn("Gland", shapely.box(600, 600, 700, 700)),
        drawn("My own structure", shapely.box(500, 240, 540, 280)),
        drawn("", shapely.box(0, 0, 50, 50)),
        drawn("Ignore*", shapely.box(300, 700, 350, 750)),
    ]
    with open(folder / "1.geojson", "wb") as file:
        write_geojson(annotations, file)
    (folder / "index.csv").write_text(f'slide,geojson,mpp,patient\n"{sample_slide}","1.geojson",0.499,"P7"\n')
    return folder


def test_layers_lie_where_they_were_drawn(export: Path, sample_slide: Path) -> None:
    samples = list(samples_of(read_export(export), MPP, "mine"))
    first, *others = samples
    assert first.image.shape == (300, 400, 3)  # the region, at half the resolution
    assert first.group == "P7"
    gland = first.layers["gland"] > 0
    truth = np.zeros((300, 400), bool)
    truth[50:150, 50:150] = True
    truth[80:120, 80:120] = False
    truth[200:250, 250:300] = True
    assert np.array_equal(gland, truth)
    assert len(np.unique(first.layers["gland"])) == 3  # two instances
    assert first.layers.keys() == {"gland", "my_own_structure"}
    with open_slide(sample_slide) as slide:
        assert np.array_equal(first.image, slide.read_at_mpp(50, 100, 400, 300, slide.mpp[0] * 2))
    # In the other region no gland was outlined, so there is none.
    assert {sample.image.shape for sample in others} == {(512, 512, 3)}
    assert all("gland" in sample.absent and not sample.layers for sample in others)
    assert {sample.split for sample in samples} in ({"train"}, {"val"})


@pytest.mark.parametrize("corner", [101, 103])  # between two pixels of the samples
def test_what_was_drawn_keeps_its_size_wherever_its_corner_lies(sample_slide: Path, corner: int) -> None:
    region = drawn("Region*", shapely.box(corner, corner, corner + 400, corner + 300))
    square = drawn("Gland", shapely.box(corner + 40, corner + 60, corner + 140, corner + 160))
    [sample] = samples_of([AnnotatedSlide(sample_slide, [region, square], None, "P7")], MPP, "mine")
    assert (sample.layers["gland"] > 0).sum() == 50 * 50
    with open_slide(sample_slide) as slide:  # no edge of it is blanked
        m_corner = (corner - 1) // 2
        assert np.array_equal(sample.image, slide.read_at_mpp(m_corner, m_corner, 200, 150, slide.mpp[0] * 2))


@pytest.mark.parametrize("origin", ["qupath", "slide"])
def test_layers_lie_where_the_origin_of_the_file_puts_them(
    tmp_path: Path, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    bounds = (768, 512)
    frame = shapely.box(450, 250, 750, 550) - shapely.box(500, 300, 600, 400)
    [truth] = synthetic_slide(tmp_path / "s.scn", {"olive": [frame]}, l0_bounds_xy=bounds)["olive"]
    shift = bounds if origin == "qupath" else (0, 0)
    outline = drawn("Gland", shapely.transform(truth, lambda l0_xy: l0_xy - shift))
    with open(tmp_path / "s.geojson", "wb") as file:
        write_geojson([outline, drawn("", shapely.box(9000, 0, 9100, 100))], file, run={"origin": origin})
    [sample] = samples_of(read_export(tmp_path), 0.5, "mine")
    painted = (sample.image == MARKERS["olive"]).all(axis=-1)
    assert painted.any()
    assert np.array_equal(sample.layers["gland"] > 0, painted)
    assert "s.scn: 1 of 2 outlines lie outside the slide" in caplog.text


def test_only_what_lies_in_a_region_is_cut_out_and_once(export: Path) -> None:
    [entry] = read_export(export)
    corner = shapely.box(0, 0, 2900, 100) | shapely.box(0, 0, 100, 2900)
    regions = [drawn("Region*", corner), drawn("Region*", shapely.box(0, 0, 500, 500))]
    entry.annotations[:] = [*regions, *entry.structures]
    names = [sample.name for sample in samples_of([entry, entry], MPP, "mine")]  # as of slide.svs in two folders
    assert len(names) == len(set(names)) == 2 * 5


def test_what_a_person_rejected_shows_no_structure(export: Path, caplog: pytest.LogCaptureFixture) -> None:
    [entry] = read_export(export)
    rejected = replace(drawn("Gland", shapely.box(100, 600, 300, 700)), metadata={REVIEW: "rejected"})
    with open(export / "1.geojson", "wb") as file:  # as `wsiseg view` keeps it
        write_geojson([*entry.annotations, rejected], file)
    [again] = read_export(export)
    assert again.annotations == entry.annotations
    assert "without 1 of 8 annotations that were rejected" in caplog.text


def test_without_a_region_the_box_around_all_counts(export: Path, caplog: pytest.LogCaptureFixture) -> None:
    [entry] = read_export(export)
    entry.annotations[:] = entry.structures
    with caplog.at_level("WARNING", "wsiseg"):
        [sample] = samples_of([entry], MPP, "mine")
    assert "Region*" in caplog.text
    assert sample.image.shape == (230, 250, 3)


def test_a_class_that_only_asks_for_a_structure_is_that_structure(
    sample_slide: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = ["Please outline the nuclei", "outline the large glands", "Cells", "Non-tissue"]
    annotations = [drawn(kind, shapely.box(100 * x, 100, 100 * x + 80, 180)) for x, kind in enumerate(kinds)]
    [sample] = samples_of([AnnotatedSlide(sample_slide, annotations, None, "P7")], MPP, "mine")
    assert sample.layers.keys() == {"nucleus", "outline_the_large_glands", "cells", "non-tissue"}
    assert "Please outline the nuclei is taken for nuclei" in caplog.text
    assert caplog.text.count("is taken for") == 1


def test_the_command_makes_a_store_with_questions(export: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.zarr"
    done = CliRunner().invoke(main, ["data", "import", "qupath", str(export), "--mpp", str(MPP), "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    store = QuadrupletStore.open(out)
    asked = {(q.concept, q.present) for q in store.quadruplets}
    assert {("gland", True), ("my_own_structure", True)} <= asked


def test_a_geojson_beside_its_slide_needs_no_index(
    export: Path, sample_slide: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [indexed] = read_export(export)
    cell = replace(drawn("Tumor", shapely.box(800, 300, 820, 320)), object_type="cell")
    with open(export / "1.geojson", "wb") as file:  # QuPath's dialog exports all objects
        write_geojson([*indexed.annotations, cell], file)
    (export / "index.csv").unlink()
    (export / "1.geojson").rename(export / f"{sample_slide.name}.geojson")
    (export / sample_slide.name).symlink_to(sample_slide)
    [entry] = read_export(export)
    assert (entry.slide.name, entry.patient) == (sample_slide.name, sample_slide.stem)
    assert entry.annotations == indexed.annotations
    assert "left out 1 of 8 objects (detections, cells, tiles)" in caplog.text
    (export / f"{sample_slide.stem}.svs.tif").symlink_to(sample_slide)
    with pytest.raises(DataError, match="there are 2"):
        read_export(export)


def test_a_slide_without_a_scale_is_told_where_it_is_set(export: Path, tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "unscaled.tif", {}, mpp=None)
    (export / "index.csv").write_text(f"slide,geojson,mpp\n{tmp_path / 'unscaled.tif'},1.geojson,\n")
    with pytest.raises(DataError, match="set the pixel size in QuPath"):
        list(samples_of(read_export(export), MPP, "mine"))


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (None, "there are 0; or run export.groovy"),
        ("name\nx\n", "columns"),
        ("slide,geojson\ngone.svs,1.geojson\n", "line 2: there is no slide 'gone.svs'"),
        ("slide,geojson,mpp\n1.geojson,1.geojson,wide\n", "line 2: mpp is 'wide'"),
        ("geojson,slide\n1.geojson\n", "line 2: there is no slide ''"),
        ("slide,geojson,patient\n1.geojson,1.geojson,Müller\n", "cannot read .*index.csv.*utf-8"),
    ],
)
def test_a_wrong_index_is_named(export: Path, index: str | None, says: str) -> None:
    (export / "index.csv").unlink()
    if index is not None:
        (export / "index.csv").write_text(index, encoding="latin-1")
    with pytest.raises(DataError, match=says):
        read_export(export)
