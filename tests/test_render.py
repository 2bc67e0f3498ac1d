"""`wsiseg render`: outlines lie where the file says, whatever its origin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from wsiseg.cli.main import main
from wsiseg.geojson import Annotation, annotation_id, write_geojson
from wsiseg.qupath import Color
from wsiseg.render import overlay, scale_bar_um
from wsiseg.review import REVIEW
from wsiseg.slide import open_slide
from wsiseg.testing import MARKERS, disk, synthetic_slide

GREEN: Color = (0, 255, 60)
MARKER = next(iter(MARKERS))


def annotation(geometry: shapely.Geometry, name: str = "glands", color: Color = GREEN) -> Annotation:
    return Annotation(annotation_id(geometry, name), geometry, name, name, color)


def is_color(picture: Image.Image, color: Color) -> np.ndarray:
    """(h, w) bool: nearly `color`."""
    return (np.abs(np.asarray(picture.convert("RGB"), int) - color).max(axis=-1)) < 30


def render(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["render", *map(str, arguments)])


@pytest.mark.parametrize("bounds", [None, (768, 512)])
@pytest.mark.parametrize("origin", ["qupath", "slide"])
def test_outlines_lie_on_what_they_outline(tmp_path: Path, bounds, origin) -> None:
    path = tmp_path / ("s.tif" if bounds is None else "s.scn")
    parts = [disk(600, 400, 150), disk(300, 650, 80)]  # of one outline
    truth = shapely.MultiPolygon(synthetic_slide(path, {MARKER: parts}, l0_bounds_xy=bounds)[MARKER])
    shift = bounds if bounds and origin == "qupath" else (0, 0)
    drawn = annotation(shapely.transform(truth, lambda l0_xy: l0_xy - shift))
    rejected = replace(annotation(shapely.box(300, 300, 700, 700)), metadata={REVIEW: "rejected"})
    with open(tmp_path / "a.geojson", "wb") as file:
        write_geojson([drawn, rejected], file, run={"origin": origin})
    result = render(path, tmp_path / "a.geojson", "--out", tmp_path / "o.png", "--max-px", 600)
    assert result.exit_code == 0, result.output
    assert "drew 1 annotations" in result.stderr
    assert "without 1 that were rejected" in result.stderr
    picture = Image.open(tmp_path / "o.png")
    assert max(picture.size) == 600
    with open_slide(path) as slide:
        scale = picture.width / slide.dimensions[0]
    y, x = np.nonzero(is_color(picture, GREEN))
    on_line = y > 120  # below the legend
    points = shapely.points(x[on_line] + 0.5, y[on_line] + 0.5)
    edge = shapely.transform(truth.boundary, lambda l0_xy: l0_xy * scale)
    assert shapely.hausdorff_distance(shapely.MultiPoint(points), edge) < 3


def test_every_class_is_in_the_legend(sample_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    red: Color = (255, 0, 0)
    shapes = [
        annotation(shapely.box(500, 2000, 900, 2400)),
        annotation(shapely.box(0, 2500, 9, 2600), "nuclei", red),
        annotation(shapely.box(1000, 2000, 1400, 2400)),
    ]
    with open_slide(sample_slide) as slide:
        picture = overlay(slide, shapes, max_px=800)
        empty = overlay(slide, [], max_px=800)
        monkeypatch.setattr("wsiseg.render._BATCH", 1)  # outlines at once
        assert overlay(slide, shapes, max_px=800) == picture
        long = overlay(slide, [annotation(shapely.box(0, 2900, 9, 2910), "glands " * 14)], max_px=800)
    right = (picture.width - 60, 0, picture.width, 60)
    assert long.crop(right).tobytes() == empty.crop(right).tobytes()  # a long name leaves the slide to be seen
    corner = picture.crop((0, 0, 150, 80))
    assert is_color(corner, GREEN).sum() > 50
    assert is_color(corner, red).sum() > 50
    assert picture.size == empty.size


def test_the_legend_fits_on_a_core_biopsy(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "s.tif", {}, l0_width=400, l0_height=2000)
    drawn = annotation(shapely.box(50, 900, 60, 910), "outline the malignant glands")
    with open_slide(tmp_path / "s.tif") as slide:
        pictures = [np.asarray(overlay(slide, shapes, max_px=2000))[:150, -12:] for shapes in ([], [drawn])]
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize(
    ("width", "height", "classes"), [(224, 224, 1), (4000, 400, 14), (500, 500, 14), (3000, 3000, 14)]
)
def test_legend_and_scale_bar_have_room_on_every_slide(
    tmp_path: Path, width: int, height: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_slide(tmp_path / "s.tif", {}, l0_width=width, l0_height=height)
    shapes = [annotation(shapely.box(9, 9, 20, 20), f"outline the malignant glands {k}") for k in range(classes)]
    written: list[tuple[float, float, float, float, str]] = []
    fonts: list[float] = []
    text = ImageDraw.ImageDraw.text

    def noted(draw: ImageDraw.ImageDraw, xy: tuple[float, float], words: str, **style: Any) -> None:
        written.append((*draw.textbbox(xy, words, font=style["font"], anchor=style["anchor"]), words))
        fonts.append(style["font"].size)
        text(draw, xy, words, **style)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    with open_slide(tmp_path / "s.tif") as slide:
        picture = overlay(slide, shapes, max_px=2000)
    *legend, _ = written
    bar_top = picture.height - 3.5 * fonts[-1]
    assert max(right for _, _, right, _, _ in written) < picture.width
    assert max(bottom for _, _, _, bottom, _ in legend) + fonts[0] / 2 < bar_top
    assert fonts[0] == fonts[-1] or height < 1000, "smaller than it need be"
    assert all(words.endswith(("(1)", "more classes")) for *_, words in legend)
    assert len(legend) == classes or legend[-1][-1] == f"and {classes - len(legend) + 1} more classes"


def test_the_scale_bar_is_as_long_as_it_says(sample_slide: Path) -> None:
    with open_slide(sample_slide) as slide:
        picture = overlay(slide, [], max_px=1000)
        um_per_px = slide.dimensions[0] * slide.mpp[0] / picture.width
    corner = np.asarray(picture)[-60:, : picture.width // 2]
    ink = (corner == 20).all(axis=-1).sum(axis=1).max()
    assert ink * um_per_px == pytest.approx(scale_bar_um(picture.width * um_per_px), rel=0.01)


def test_a_picture_of_three_pixels_has_a_scale_bar_too(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "core.tif", {}, l0_width=300, l0_height=1500)
    with open_slide(tmp_path / "core.tif") as slide:
        assert overlay(slide, [], max_px=16).size == (3, 16)


def test_the_scale_bar_is_of_the_scale_that_the_outlines_were_made_with(tmp_path: Path) -> None:
    """--slide-mpp was given, as the file states none or a wrong one. Nobody knows a scale: there is no bar."""
    made_at_2 = {"slide": {"dimensions": [1200, 800], "mpp": [2.0, 2.0]}}
    for stated, run, um_per_px in ((None, {}, None), (None, made_at_2, 2.0), ((0.5, 0.5), made_at_2, 2.0)):
        synthetic_slide(tmp_path / "s.tif", {}, mpp=stated)
        with open(tmp_path / "a.geojson", "wb") as file:
            write_geojson([], file, run=run)
        assert render(tmp_path / "s.tif", tmp_path / "a.geojson", "--out", tmp_path / "o.png").exit_code == 0
        corner = np.asarray(Image.open(tmp_path / "o.png"))[-60:, :600]
        ink = (corner == 20).all(axis=-1).sum(axis=1).max()
        assert ink == (0 if um_per_px is None else scale_bar_um(1200 * um_per_px) / um_per_px)


@pytest.mark.parametrize(
    ("width_um", "bar_um"), [(1100, 200), (80, 20), (79, 10), (50_000, 10_000), (3, 0.5), (2500 * 0.16, 100)]
)
def test_scale_bars_are_round(width_um: float, bar_um: float) -> None:
    assert scale_bar_um(width_um) == pytest.approx(bar_um)


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, sample_slide: Path) -> None:
    good, bad = tmp_path / "good.geojson", tmp_path / "bad.geojson"
    with open(good, "wb") as file:
        write_geojson([], file)
    bad.write_text("no json")
    out = tmp_path / "o.png"
    for arguments, said in [
        ((tmp_path / "no.svs", good, "--out", out), "no.svs"),
        ((sample_slide, tmp_path / "no.geojson", "--out", out), "no.geojson"),
        ((sample_slide, bad, "--out", out), "bad.geojson is not GeoJSON"),
        ((sample_slide, good, "--out", tmp_path / "o.txt"), "must end in .png or .jpg"),
        ((sample_slide, good, "--out", tmp_path / "nowhere" / "o.png"), "cannot write"),
    ]:
        result = render(*arguments)
        assert result.exit_code != 0
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [bad, good]
