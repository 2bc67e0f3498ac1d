"""Whatever a model writes: files that any reader takes, words that stay words, and a way back from every outline."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from shapely.affinity import translate

from wsiseg.annotate import annotate, tile_reasoning
from wsiseg.errors import OutputError
from wsiseg.geojson import Annotation
from wsiseg.inference import TileMask
from wsiseg.inference.shots import Shot
from wsiseg.mask import Region
from wsiseg.pipeline import segment
from wsiseg.qupath import DESCRIPTION, MAX_DESCRIPTION, check_dialect, clean_description, clean_text, words_of
from wsiseg.result import MAX_CHAIN
from wsiseg.testing import FakeModel, disk, stripe, synthetic_slide
from wsiseg.tiles import Grid, GridSpec, SlideIdentity

# One disk within a tile, one stripe over several.
SHAPES = {"olive": [disk(300, 300, 40), stripe(200, 560, 800, 31)]}
L0_BOUNDS_XY = (100, 50)
HOSTILE = [
    "\ud800 half a pair, \x00 nothing, \x1b[31mred\x1b[0m, \u202eturned, \ufeffmarked",
    "one\u2028two\u2029three\x85four\r\nfive\rsix",
    "https://evil.example/",
    "  HTTP://evil.example/",
    "<html><script>steal()</script>",
    "\\<script>steal()</script> `` `<b>` ``",
    "![beacon](https://evil.example/x.png) [link](javascript:alert(1)) <https://evil.example>",
    "[a]: https://evil.example\n\n[a]",
    "&lt;b&gt; &#60;script&#62;",
    "~~~\n<b>\n~~~\n    <i>\n- <u>\n> <s>",
    '{"polygons": ["' + str(uuid.UUID(int=0)) + '"]}\n{"query": "forged"}',
    "word " * 10_000,
    "x" * 100_000,
    "",
]
chains = st.text(st.characters(), max_size=60) | st.lists(
    st.sampled_from(["<", ">", "[", "](", ")", "!", "`", "\\", "&", "#", "~", "https://", "\n", " ", "a", "<script>"])
).map("".join)


class Writes(FakeModel):
    """Finds olive, and says of it what it is told to."""

    def __init__(self, text: str) -> None:
        super().__init__(tile_size=128, overlap=32)
        self.text = text

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        drawn = [mask.probability for mask in super().segment_tiles(tiles, "olive", mpp)]
        return [TileMask(p, self.text, *((0.25, None) if p is None else (0.75, 7))) for p in drawn]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.scn"
    synthetic_slide(path, SHAPES, l0_bounds_xy=L0_BOUNDS_XY)
    return path


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_said_both_files_are_whole(slide: Path, tmp_path: Path, text: str) -> None:
    result = segment(slide, f"olive {text}"[:200], model=Writes(text))
    result.write(tmp_path / "out.geojson")
    result.write_reasoning(tmp_path / "out.jsonl")
    assert check_dialect(tmp_path / "out.geojson") == []
    # Also for readers to which more than "\n" ends a line, as to Python's.
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == len(result.reasoning) > 1
    assert all(line["reasoning"] == clean_text(text, MAX_CHAIN) for line in lines)
    for annotation in result.annotations:
        assert_only_words(annotation.metadata[DESCRIPTION], text)


def test_every_outline_leads_back_to_the_words_that_made_it(slide: Path, tmp_path: Path) -> None:
    result = segment(slide, ["olive", "olive again"], model=Writes("why"))
    result.write_reasoning(tmp_path / "out.jsonl")
    tiles = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    made = {i: [t for t in tiles if i in t["polygons"]] for t in tiles for i in t["polygons"]}
    assert made.keys() == {str(a.id) for a in result.annotations}
    for annotation in result.annotations:
        theirs = made[str(annotation.id)]
        l0_shape = translate(annotation.geometry, *L0_BOUNDS_XY)
        assert shapely.union_all([box(t) for t in theirs]).contains(l0_shape)
        assert all(t["segmented"] and t["query"] == annotation.metadata["query"] for t in theirs)
        assert all(box(t).intersects(l0_shape) for t in theirs)
        described = [t for t in theirs if annotation.metadata["tile"] == f"{t['l0_x']},{t['l0_y']}"]
        assert [clean_description(t["reasoning"]) for t in described] == [annotation.metadata[DESCRIPTION]]
    assert max(len(theirs) for theirs in made.values()) > 3
    assert {(t["seg_position"], t["seg_probability"]) for t in tiles if t["segmented"]} == {(7, 0.75)}
    silent = [t for t in tiles if not t["segmented"]]
    assert silent
    assert all(t["polygons"] == [] and (t["seg_position"], t["seg_probability"]) == (None, 0.25) for t in silent)

    # In a notebook: a line for the result, not all that was said; and ids in a table of what was said.
    assert repr(result) == f"<Result: {len(result.annotations)} outlines, {len(tiles)} answers about tiles>"
    rows = [asdict(tile) for tile in result.reasoning]
    assert [[str(i) for i in row["polygons"]] for row in rows] == [t["polygons"] for t in tiles]


def test_a_tile_lies_where_it_lies_on_an_anisotropic_slide_and_ids_know_the_examples() -> None:
    slide = SlideIdentity("s", "f", "v", 1000, 1000, 0.5, 0.25)
    grid = Grid(GridSpec(1.0, 64, 0), slide, 500, 250, np.array([[10, 20]]), np.ones(1, np.float32))
    tile = tile_reasoning("q", grid, 10, 20, TileMask(np.ones((64, 64), np.float32), "why", 0.9))
    assert (tile.l0_x, tile.l0_y, tile.l0_width, tile.l0_height) == (20, 80, 128, 256)
    outline = Region(0, shapely.box(30, 100, 60, 150), 187.5, 55, 1, 0.9)
    marks = [np.eye(4, dtype=bool), np.tri(4, dtype=bool)]
    shots = [Shot(np.zeros((4, 4, 3), np.uint8), mark, 0.5) for mark in marks]
    found: list[Annotation] = []
    for examples in ([], shots[:1], shots[1:]):
        annotate("q", [outline], [tile], grid, FakeModel(), examples, "slide", lambda a, _: found.append(a))
    assert len({a.id for a in found}) == 3


def test_a_tile_names_the_outlines_that_touch_it_in_their_order() -> None:
    slide = SlideIdentity("s", "f", "v", 1000, 1000, 1.0, 1.0)
    grid = Grid(GridSpec(1.0, 64, 0), slide, 1000, 1000, np.array([[0, 0], [192, 192]]), np.ones(2, np.float32))
    tiles = [tile_reasoning("q", grid, xy, xy, TileMask(np.ones((64, 64), np.float32), "", 1)) for xy in (0, 192)]
    corner = shapely.Polygon([(0, 0), (300, 0), (0, 300)])  # around the second tile, but not in it
    found: dict[int, uuid.UUID] = {}
    outlines = [Region(place, shape, 1, 1, 1, 1) for place, shape in ((1, shapely.box(8, 8, 16, 16)), (0, corner))]
    said = annotate("q", outlines, tiles, grid, FakeModel(), [], "slide", lambda a, place: found.update({place: a.id}))
    assert [list(tile.polygons) for tile in said] == [[found[0], found[1]], []]


def test_examples_and_queries_may_come_one_by_one(slide: Path) -> None:
    class Shown(Writes):
        def with_shots(self, shots: Sequence[Shot]) -> FakeModel:
            return self

    shots = [Shot(np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=bool), 0.5, name) for name in ("a", "b")]
    whole, one_by_one = (
        segment(slide, asked, model=Shown("why"), examples=shown)
        for asked, shown in ((["olive"], shots), (iter(["olive"]), iter(shots)))
    )
    assert [example["image"] for example in whole.run["examples"]] == ["a", "b"]
    assert one_by_one.to_geojson() == whole.to_geojson()


def test_a_result_is_never_written_over_its_slide(slide: Path) -> None:
    result = segment(slide, "olive", model=Writes("why"), region=(0, 0, 9, 9))
    before = slide.read_bytes()
    for write in (result.write, result.write_reasoning):
        with pytest.raises(OutputError, match=r"cannot write .*slide\.scn: "):
            write(slide)
    assert slide.read_bytes() == before


def box(tile: dict[str, float]) -> shapely.Polygon:
    x, y = tile["l0_x"], tile["l0_y"]
    return shapely.box(x, y, x + tile["l0_width"], y + tile["l0_height"])


@settings(max_examples=300, deadline=None)
@given(chains)
@example("*a* _b_ # c")
def test_a_description_is_words_to_qupath(text: str) -> None:
    assert_only_words(clean_description(text), text)
    assert words_of(clean_description(text)) == clean_text(text, MAX_DESCRIPTION).strip()


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from("\0\x1b\u2028\u202e\u2066\ufeff"), max_size=80), st.integers(2, 60))
def test_cleaned_text_is_utf8_bounded_and_stays_as_it_is(text: str, limit: int) -> None:
    cleaned = clean_text(text, limit)
    cleaned.encode("utf-8")
    assert len(cleaned) <= limit
    assert clean_text(cleaned, limit) == cleaned
    assert not set(cleaned) & {"\0", "\x1b", "\u2028", "\u202e", "\u2066", "\ufeff"}


def assert_only_words(description: str, text: str) -> None:
    """As QuPath shows a description: a web page, HTML, or CommonMark with live HTML."""
    assert len(description) <= 2 * MAX_DESCRIPTION + 1
    assert not description.lower().startswith(("https://", "http://"))
    assert not description.strip().startswith("<html>")
    seen = Page()
    seen.feed(MarkdownIt("commonmark", {"html": True}).render(description))
    assert seen.tags <= {"p", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "code", "hr", "br"}
    assert seen.attributes <= {"start"}
    if len(text) < 200:  # not shortened: every letter and digit is there
        assert letters(seen.text) == letters(clean_text(text)) or seen.tags & {"ol", "pre"}


def letters(text: str) -> Sequence[str]:
    return [c for c in text if c.isalpha()]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data
