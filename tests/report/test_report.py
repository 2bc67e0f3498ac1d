"""`wsiseg report`: one page that stands alone, tells the truth, and stays harmless whatever the names are."""

from __future__ import annotations

import base64
import html.parser
import io
import re
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from click.testing import CliRunner, Result
from PIL import Image

from wsiseg.cli.main import main
from wsiseg.geojson import Annotation, read_collection, write_geojson
from wsiseg.pipeline import segment
from wsiseg.qupath import DESCRIPTION, Color
from wsiseg.render import close_up
from wsiseg.report.histogram import histogram_svg
from wsiseg.report.summary import extremes, summarize
from wsiseg.review import REVIEW
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel, disk, synthetic_slide

SHAPES = {"olive": [disk(300, 300, 100), disk(800, 300, 60), disk(200, 650, 40)], "orange": [disk(700, 600, 50)]}


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "slide.tif"
    synthetic_slide(path, SHAPES)
    return path


@pytest.fixture
def geojson(slide_path: Path, tmp_path: Path) -> Path:
    segment(slide_path, ["olive", "orange"], model=FakeModel(tile_size=128, overlap=32)).write(tmp_path / "o.geojson")
    return tmp_path / "o.geojson"


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


class Reader(html.parser.HTMLParser):
    """Collects tags, what they point to, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_the_page_stands_alone_and_tells_areas_and_counts(slide_path: Path, geojson: Path, tmp_path: Path) -> None:
    shown = report(slide_path, geojson, "--out", tmp_path / "r.html")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == ""
    assert report(slide_path, geojson, "--out", "-").stdout_bytes == (tmp_path / "r.html").read_bytes()
    page = Reader((tmp_path / "r.html").read_text())
    assert "script" not in page.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(page.sources) == 1 + 4  # the slide; the two surest and the two most doubtful of four
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).load()
    row = re.search(r"olive\s+3\s+([\d.]+) mm²\s+([\d.]+) %\s+([\d,]+) µm²", page.text)
    assert row
    olive_um2 = [shape.area * 0.25 for shape in SHAPES["olive"]]
    assert float(row[1]) == pytest.approx(sum(olive_um2) / 1e6, rel=0.03)
    assert float(row[2]) == pytest.approx(100 * sum(olive_um2) / (1200 * 800 * 0.25), rel=0.03)
    assert float(row[3].replace(",", "")) == pytest.approx(np.median(olive_um2), rel=0.03)
    for wanted in ("px of olive", "px of orange", "fake-1", "outlines: parameters · threshold", "as in QuPath"):
        assert wanted in page.text


def test_areas_are_in_the_scale_that_the_outlines_were_made_with(slide_path: Path, tmp_path: Path) -> None:
    """--slide-mpp was given, as the file states none or a wrong one: the page does not contradict the GeoJSON."""
    model = FakeModel(tile_size=128, overlap=32)
    result = segment(slide_path, "olive", model=model, slide_mpp=1.0)
    result.write(tmp_path / "o.geojson")
    areas = [annotation.measurements["Area µm^2"] for annotation in result.annotations]
    for slide_mpp, factor in (((), 1.0), (("--slide-mpp", 0.5), 0.25)):
        assert report(slide_path, tmp_path / "o.geojson", "--out", tmp_path / "r.html", *slide_mpp).exit_code == 0
        page = Reader((tmp_path / "r.html").read_text())
        row = re.search(r"olive\s+3\s+([\d.]+) mm²", page.text)
        assert row
        assert float(row[1]) == pytest.approx(sum(areas) * factor / 1e6, rel=0.03)
        cards = re.findall(r"probability [\d.]+ · ([\d,]+) µm²", page.text)
        shown = [float(area.replace(",", "")) for area in cards]
        assert len(shown) == 2  # the surest and the most doubtful
        assert all(min(abs(area * factor / one - 1) for area in areas) < 0.01 for one in shown)
    result.run["slide"]["fingerprint"] = "another"  # of whose scale nothing is known here
    result.write(tmp_path / "o.geojson")
    assert report(slide_path, tmp_path / "o.geojson", "--out", tmp_path / "r.html").exit_code == 0
    assert "0.5 µm/px" in Reader((tmp_path / "r.html").read_text()).text


def test_rejected_outlines_count_only_as_rejected(slide_path: Path, geojson: Path, tmp_path: Path) -> None:
    annotations, run = read_collection(geojson)
    wrong = [a for a in annotations if a.classification == "orange" or a.geometry.area > 20_000]
    reviewed = [replace(a, metadata={**a.metadata, "review": "rejected"}) if a in wrong else a for a in annotations]
    with open(geojson, "wb") as file:
        write_geojson(reviewed, file, run=run)
    assert report(slide_path, geojson, "--out", tmp_path / "r.html").exit_code == 0
    page = Reader((tmp_path / "r.html").read_text())
    assert "2 outlines" in page.text
    assert "Rejected outlines (2)" in page.text
    row = re.search(r"olive\s+2\s+([\d.]+) mm²\s.*?\s1 rejected", page.text, re.DOTALL)
    assert row
    assert float(row[1]) == pytest.approx(sum(s.area for s in SHAPES["olive"][1:]) * 0.25 / 1e6, rel=0.03)
    assert re.search(r"orange\s+0\s+0 mm²\s+0 %\s+–\s+–\s+1 rejected", page.text)
    assert len(page.sources) == 1 + 2
    assert page.tags.count("svg") == 1


def test_shares_are_of_the_scanned_part_and_no_folder_or_signature_is_told(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "s.scn", {}, l0_bounds_xy=(334, 222))
    quarter = Annotation(uuid.uuid4(), shapely.box(0, 0, 600, 400), "a", "a", (1, 2, 3))
    with open(tmp_path / "o.geojson", "wb") as file:
        shown = [{"image": "/slides/mrs-doe/crop.png", "fingerprint": "0a"}]
        made_of = {"slide": {"source": "https://host/mrs-doe/s.scn?signature=x"}, "examples": shown}
        write_geojson([quarter], file, run=made_of)
    assert report(tmp_path / "s.scn", tmp_path / "o.geojson", "--out", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert "<td>25 %</td>" in page
    assert "examples · 1 · image</th><td>crop.png</td>" in page
    for private in (str(tmp_path), "mrs-doe", "signature"):
        assert private not in page


def test_hostile_names_stay_text(slide_path: Path, geojson: Path, tmp_path: Path) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;"
    annotations, _ = read_collection(geojson)
    hostile = [replace(a, name=evil, classification=evil, metadata={DESCRIPTION: evil}) for a in annotations]
    with open(geojson, "wb") as file:
        write_geojson(hostile, file, run={"version": evil, evil: {evil: [evil]}, "model": {"name": evil}})
    folder = tmp_path / "<b onclick=alert(3)>"
    folder.mkdir()
    slide = folder / "<img src=x>.tif"
    slide.write_bytes(slide_path.read_bytes())
    assert report(slide, geojson, "--out", tmp_path / "r.html").exit_code == 0
    page = Reader((tmp_path / "r.html").read_text())
    assert {"script", "b onclick"}.isdisjoint(page.tags)
    assert page.handlers == []
    assert page.tags.count("img") == 5
    assert all(source.startswith("data:image/jpeg") for source in page.sources)
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_an_empty_file_and_a_slide_without_scale_have_a_report(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "s.tif", {}, mpp=None)
    for name, outlines in (
        ("none", []),
        ("one", [Annotation(uuid.uuid4(), shapely.box(10, 10, 60, 60), "a", "", (1, 2, 3))]),
    ):
        with open(tmp_path / f"{name}.geojson", "wb") as file:
            write_geojson(outlines, file)
        shown = report(tmp_path / "s.tif", tmp_path / f"{name}.geojson", "--out", tmp_path / f"{name}.html")
        assert shown.exit_code == 0, shown.output
    assert "no outline" in (tmp_path / "none.html").read_text()
    assert "2,500 px²" in (tmp_path / "one.html").read_text()


def test_what_is_wrong_is_one_line_and_leaves_nothing(slide_path: Path, geojson: Path, tmp_path: Path) -> None:
    for arguments, said in [
        ((tmp_path / "no.svs", geojson, "--out", tmp_path / "r.html"), "no.svs"),
        ((slide_path, tmp_path / "no.geojson", "--out", tmp_path / "r.html"), "no.geojson"),
        ((slide_path, geojson, "--out", tmp_path / "nowhere" / "r.html"), "cannot write"),
        ((slide_path, geojson, "--out", slide_path), "this command reads that file"),
        ((slide_path, geojson, "--out", geojson), "this command reads that file"),
    ]:
        shown = report(*arguments)
        assert shown.exit_code != 0
        assert said in shown.stderr
        assert shown.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.geojson"]


@pytest.mark.parametrize("origin", ["qupath", "slide"])
def test_a_close_up_shows_the_object_in_its_middle(tmp_path: Path, origin) -> None:
    truth = synthetic_slide(tmp_path / "s.scn", {"olive": [disk(600, 400, 100)]}, l0_bounds_xy=(334, 222))["olive"][0]
    if origin == "qupath":
        truth = shapely.transform(truth, lambda l0_xy: l0_xy - (334, 222))
    drawn = Annotation(uuid.uuid4(), truth, "o", "o", (0, 0, 255))
    x, y = truth.centroid.x, truth.centroid.y
    with open_slide(tmp_path / "s.scn") as slide:
        picture = np.asarray(close_up(slide, drawn, [], (x - 150, y - 150, 300, 300), origin=origin, max_px=300), int)
    assert picture.shape == (300, 300, 3)
    olive = np.abs(picture - (130, 145, 0)).max(-1) < 30
    rows, columns = np.nonzero(olive)
    assert (rows.mean(), columns.mean()) == pytest.approx((150, 150), abs=2)
    line = np.abs(picture - (0, 0, 255)).max(-1) < 60
    radius = np.hypot(*(np.array(np.nonzero(line)) - 149.5))
    assert radius.mean() == pytest.approx(100, abs=1.5)


def test_no_object_is_both_sure_and_doubtful() -> None:
    made = [
        Annotation(uuid.uuid4(), shapely.box(0, 0, 9, 9), "a", "a", (1, 2, 3), {"Mean probability": p})
        for p in (0.6, 0.9, 0.5, 0.7, 0.8)
    ]
    sure, doubtful = extremes(made, 6)
    assert [a.measurements["Mean probability"] for a in sure] == [0.9, 0.8]
    assert [a.measurements["Mean probability"] for a in doubtful] == [0.5, 0.6]
    assert [len(part) for part in extremes(made[:1], 6)] == [1, 0]


def test_a_histogram_counts_every_value_once() -> None:
    values = np.random.default_rng(0).lognormal(3, 1, 500)
    svg = histogram_svg(values, "µm²", (1, 2, 3), "sizes")
    assert sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</title>", svg)) == 500
    assert "nan" not in histogram_svg(np.array([5.0]), "µm²", (1, 2, 3), "one").lower()


def test_small_areas_unequal_scales_and_several_queries_are_told_as_they_are(tmp_path: Path) -> None:
    synthetic_slide(tmp_path / "s.tif", {}, mpp=(0.25, 0.5))
    cell = Annotation(uuid.uuid4(), shapely.box(10, 10, 20, 20), "", "cell", (0, 0, 200))
    run = {"queries": ["outline the glands", "the tumour, if any"], "examples": [{"image": "/folder/a.png"}]}
    with open(tmp_path / "a.geojson", "wb") as file:
        write_geojson([cell], file, run=run)
    assert report(tmp_path / "s.tif", tmp_path / "a.geojson", "--out", tmp_path / "r.html").exit_code == 0
    text = Reader((tmp_path / "r.html").read_text()).text
    assert "0.25 × 0.5 µm/px" in text
    assert re.search(r"cell\s+1\s+12.5 µm²", text)
    assert re.search(r"queries · 1\s+outline the glands\s+outlines: queries · 2\s+the tumour, if any", text)
    assert "examples · 1 · image\na.png" in text


def test_outlines_of_another_slide_are_told_on_the_page(slide_path: Path, tmp_path: Path) -> None:
    far = Annotation(uuid.uuid4(), shapely.box(9000, 10, 9100, 90), "", "far", (0, 0, 200))
    with open(tmp_path / "a.geojson", "wb") as file:
        write_geojson([far], file)
    assert report(slide_path, tmp_path / "a.geojson", "--out", tmp_path / "r.html").exit_code == 0
    assert "Warning: 1 of 1 outlines lie outside the slide" in (tmp_path / "r.html").read_text()


def test_a_class_has_the_colour_of_what_is_drawn_of_it() -> None:
    def drawn(color: Color, **metadata: str) -> Annotation:
        return Annotation(uuid.uuid4(), shapely.box(0, 0, 9, 9), "", "gland", color, metadata=metadata)

    (shown,) = summarize([drawn((200, 0, 0), **{REVIEW: "rejected"}), drawn((0, 200, 0))], None)
    assert shown.color == (0, 200, 0)
