"""The page in a real browser: real clicks and keys."""

from __future__ import annotations

import base64
import http.server
import re
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import shapely

from tests.browser import WAIT_MS, needs_chromium, text
from wsiseg.geojson import Annotation, read_collection, write_geojson
from wsiseg.qupath import DESCRIPTION, check_dialect
from wsiseg.viewer.packing import pack
from wsiseg.viewer.web import STATIC

pytestmark = needs_chromium

MODEL_WAIT_MS = 400_000


@pytest.fixture
def scripts(chromium: Any) -> Iterator[Any]:
    """A page that can import the viewer's own scripts, as /shapes.js, and shows nothing."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=STATIC)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/style.css")
        yield page
        page.close()
        server.shutdown()


def settled(page: Any) -> None:
    """Wait until the slide stands still."""
    page.evaluate(
        """async () => {
            const bar = document.querySelector("#scale-bar i");
            for (let same = 0, last = ""; same < 12; ) {
                await new Promise(requestAnimationFrame);
                const now = bar.style.width;
                same = now === last ? same + 1 : 0;
                last = now;
            }
        }"""
    )


def colors_at(page: Any, x: float, y: float) -> list[int]:
    """RGBA of the painted outlines at a point of the stage."""
    return page.evaluate(
        """([x, y]) => {
            const corner = document.getElementById("stage").getBoundingClientRect();
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            for (const tile of document.querySelectorAll("#outlines canvas")) {
                const box = tile.getBoundingClientRect();
                const side = box.width;
                context.drawImage(tile, box.left - corner.left - x, box.top - corner.top - y, side, side);
            }
            return [...context.getImageData(0, 0, 1, 1).data];
        }""",
        [x, y],
    )


def on_stage(page: Any, l0_x: float, l0_y: float) -> tuple[float, float]:
    """Where a pixel of the 1200 x 800 px slide lies on the stage, when the whole slide is shown."""
    box = page.locator("#stage").bounding_box()
    scale = min(box["width"] / 1200, box["height"] / 800)
    return box["width"] / 2 + (l0_x - 600) * scale, box["height"] / 2 + (l0_y - 400) * scale


def click_slide(page: Any, l0_x: float, l0_y: float) -> None:
    x, y = on_stage(page, l0_x, l0_y)
    page.locator("#stage").click(position={"x": x, "y": y})


def test_outlines_lie_on_what_they_outline_and_tell_their_story(slide_path, geojson, running_view, open_page) -> None:
    page = open_page(running_view(slide_path, geojson))
    assert text(page, "#classes .name") == "olive"
    assert text(page, "#classes .count") == "3"
    inside, hole, outside = ((300, 300), (800, 300), (600, 100))
    page.wait_for_selector("#outlines canvas")
    page.wait_for_timeout(1500)
    assert colors_at(page, *on_stage(page, *inside))[3] > 0
    assert colors_at(page, *on_stage(page, *hole))[3] == 0
    assert colors_at(page, *on_stage(page, *outside))[3] == 0

    x, y = on_stage(page, *inside)
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.wait_for_selector("#tip .said:not(:empty)")
    assert re.search(r"olive\n.*µm².*\nI see \d+ px of olive", text(page, "#tip"))

    click_slide(page, *inside)
    page.wait_for_selector("#chain:not(:empty)")
    assert re.fullmatch(r"I see \d+ px of olive at 1 um/px\. <SEG>", text(page, "#chain"))
    area = float(re.search(r"Area µm²\s+([\d,.]+)", text(page, "#measurements"))[1].replace(",", ""))
    assert area == pytest.approx(3.14159 * 100**2 * 0.25, rel=0.03)
    click_slide(page, *hole)
    assert page.locator("#details").is_hidden()
    page.locator("#classes [type=checkbox]").uncheck()
    page.wait_for_timeout(800)
    assert colors_at(page, x, y)[3] == 0

    page.route("**/painter.js", lambda route: route.abort())  # as if there were no memory for it
    page.reload()
    page.wait_for_selector("#banner:has-text('The outlines can no longer be drawn')")


def test_a_large_screen_shows_the_outlines_to_its_last_corner(slide_path, geojson, running_view, open_page) -> None:
    annotations, run = read_collection(geojson)
    with open(geojson, "wb") as file:
        write_geojson([replace(annotations[0], geometry=shapely.box(0, 0, 1200, 800))], file, run=run)
    page = open_page(running_view(slide_path, geojson))
    page.set_viewport_size({"width": 3840, "height": 2160})
    page.click("#zoom-home")
    settled(page)
    for _ in range(3):  # to where the tiles of outlines are nearly as small as they get
        page.click("#zoom-in")
    settled(page)
    box = page.locator("#stage").bounding_box()
    corner = (box["width"] - 5, box["height"] - 5)
    # Small ones are shown when all of them are painted.
    page.wait_for_function("() => document.querySelector('#outlines canvas')?.getBoundingClientRect().width < 300")
    assert colors_at(page, *corner)[3] > 0


def test_the_time_to_paint_does_not_grow_with_the_square_of_the_outlines(scripts) -> None:
    places = np.random.default_rng(0).uniform(0, 509, (16_000, 2))
    squares = shapely.box(*places.T, *(places + 3).T)
    block = pack([Annotation(uuid.uuid4(), square, "", "", (0, 0, 0)) for square in squares], {"": 0})
    together, apart = scripts.evaluate(
        """async (packed) => {
            const painter = new Worker("/painter.js", { type: "module" });
            const buffer = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer;
            painter.postMessage({ type: "add", buffer });
            painter.postMessage({ type: "styles", values: [{ color: [0, 0, 0], opacity: 1, visible: true }] });
            painter.postMessage({ type: "state", values: new Uint8Array(16_000) });
            const seconds = async (side) => {
                const begin = performance.now();
                for (let left = 0; left < 512; left += side) {
                    for (let top = 0; top < 512; top += side) {
                        painter.postMessage({ type: "paint", left, top, span: side, size: side });
                        await new Promise((painted) => (painter.onmessage = painted));
                    }
                }
                return performance.now() - begin;
            };
            await seconds(64);
            return [await seconds(512), await seconds(128)];
        }""",
        base64.b64encode(block).decode(),
    )
    assert together < 3 * apart


def test_a_review_is_done_undone_and_saved(slide_path, geojson, running_view, open_page, tmp_path) -> None:
    before, _ = read_collection(geojson)
    page = open_page(running_view(slide_path, geojson, "--out", tmp_path / "reviewed.geojson"))
    assert page.locator("#save").is_disabled()
    click_slide(page, 300, 300)
    page.click("#accept")
    assert text(page, "#object-state") == "accepted"
    click_slide(page, 200, 650)
    page.click("#reject")
    click_slide(page, 685, 300)  # the ring
    page.click("#delete")
    assert text(page, "#classes .count") == "2"
    page.click("#undo")
    assert text(page, "#classes .count") == "3"
    page.click("#redo")
    page.click("#save")
    page.wait_for_selector("#banner:has-text('Saved 2 objects')")
    assert check_dialect(tmp_path / "reviewed.geojson") == []
    after, _ = read_collection(tmp_path / "reviewed.geojson")
    assert {a.id: a.metadata["review"] for a in after} == {
        next(a.id for a in before if a.geometry.area == pytest.approx(3.14159 * r**2, rel=0.05)): decision
        for r, decision in ((100, "accepted"), (40, "rejected"))
    }
    # Another look at the same session, and a second thought.
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert text(page, "#classes .count") == "2"
    assert page.locator("#save").is_disabled()


def test_an_outline_is_changed_with_the_mouse(slide_path, geojson, running_view, open_page) -> None:
    square = shapely.box(400, 300, 600, 500)
    annotations, run = read_collection(geojson)
    with open(geojson, "wb") as file:
        write_geojson([replace(annotations[0], geometry=square)], file, run=run)
    page = open_page(running_view(slide_path, geojson))
    click_slide(page, 500, 400)
    page.click("#edit")
    settled(page)
    page.wait_for_timeout(800)
    box = page.locator("#stage").bounding_box()
    # 2.5 times the square is in view, the square in the middle of it.
    scale = min(box["width"], box["height"]) / (200 * 2.5)
    at = lambda x, y: (  # noqa: E731
        box["x"] + box["width"] / 2 + (x - 500) * scale, box["y"] + box["height"] / 2 + (y - 400) * scale,
    )  # fmt: skip

    def drag(start: tuple[float, float], end: tuple[float, float]) -> None:
        page.mouse.move(*at(*start))
        page.mouse.down()
        page.mouse.move(*at((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), steps=4)
        page.mouse.move(*at(*end), steps=4)
        page.mouse.up()
        page.wait_for_timeout(100)

    drag((600, 500), (640, 540))  # a corner
    drag((500, 300), (500, 260))  # the middle of an edge: a new point
    page.mouse.move(*at(400, 500))
    page.keyboard.down("Alt")
    page.mouse.click(*at(400, 500))  # and one removed
    page.keyboard.up("Alt")
    page.keyboard.press("Enter")
    page.mouse.move(*at(550, 350))
    page.wait_for_selector("#tip:has-text('olive')")
    assert "µm²" not in text(page, "#tip")  # the old outline had this area
    page.click("#save")
    page.wait_for_selector("#banner:has-text('Saved')")
    (after,), _ = read_collection(geojson)
    expected = shapely.Polygon([(400, 300), (500, 260), (600, 300), (640, 540)])
    assert shapely.hausdorff_distance(after.geometry, expected) < 2
    assert after.measurements["Area µm^2"] == pytest.approx(expected.area * 0.25, rel=0.02)
    page.keyboard.press("Control+z")
    page.click("#save")
    page.wait_for_selector("#save:disabled")
    page.wait_for_timeout(500)
    assert read_collection(geojson)[0][0].geometry.equals(square)


def test_a_query_streams_and_becomes_a_class_that_is_saved(
    slide_path, geojson, running_view, open_page, tmp_path
) -> None:
    page = open_page(running_view(slide_path, geojson, "--out", tmp_path / "both.geojson", seconds=1.5))
    page.fill("#query", "the orange")
    page.check("[name=scope][value=slide]", force=True)
    page.evaluate(  # keeps what stood there for a moment only: a wait would have to look at the right one
        """() => {
            window.written = [];
            new MutationObserver(() => {
                for (const item of document.querySelectorAll("#run-writing li")) written.push(item.textContent);
            }).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    page.click("#ask-start")
    page.wait_for_selector("#run-log li")
    assert any(re.fullmatch("I (looked|see)( [^ ]+)?", said) for said in page.evaluate("written"))  # word by word
    assert page.locator("#ask-cancel").is_visible()
    page.reload()  # it goes on, and the page that is loaded anew hears all of it
    page.wait_for_selector("#run-log .found")
    assert "px of orange" in text(page, "#run-log")
    assert re.search(r"\d+ of \d+ tiles", text(page, "#run-count"))
    page.wait_for_selector("#run-state:has-text('Found 1 outline')")
    assert page.locator("#run-writing li").count() == 0
    assert page.locator("#classes .name").all_inner_texts() == ["olive", "the orange"]
    assert text(page, "#object-class") == "the orange"
    page.click("#save")
    page.wait_for_selector("#banner:has-text('Saved 4 objects')")
    assert check_dialect(tmp_path / "both.geojson") == []
    assert {a.classification for a in read_collection(tmp_path / "both.geojson")[0]} == {"olive", "the orange"}


def test_what_is_found_while_the_file_is_still_read_comes_once(slide_path, geojson, running_view, open_page) -> None:
    page = open_page(running_view(slide_path, geojson))
    waiting: list[Any] | None = []
    page.route("**/polygons?*", lambda route: route.continue_() if waiting is None else waiting.append(route))
    page.reload()
    page.wait_for_selector("#no-classes:has-text('Reading 3 outlines')")
    page.fill("#query", "the orange")
    page.check("[name=scope][value=slide]", force=True)
    page.click("#ask-start")
    page.wait_for_selector("#run-state:has-text('Found 1 outline')")
    held, waiting = waiting, None
    for route in held:
        route.continue_()
    page.wait_for_selector("#object-class:has-text('the orange')")
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#classes .count").all_inner_texts() == ["3", "1"]


def test_the_scale_bar_and_the_pointer_are_true_to_the_slide(sample_slide, running_view, open_page) -> None:
    page = open_page(running_view(sample_slide))  # 2220 x 2967 px at 0.499 µm, 20×
    settled(page)
    box = page.locator("#stage").bounding_box()
    px = min(box["width"] / 2220, box["height"] / 2967)  # of the screen, for a pixel of the slide
    shown = float(page.evaluate("parseFloat(document.querySelector('#scale-bar i').style.width)"))
    said = text(page, "#scale-bar")
    assert said.endswith("µm")
    assert float(said.removesuffix("µm")) == pytest.approx(shown / px * 0.499, rel=0.02)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    place = page.locator("#place")
    x, y, magnification = re.findall(r"[\d.]+", place.inner_text())
    assert (float(x), float(y)) == pytest.approx((1110, 1483), abs=3)
    assert float(magnification) == pytest.approx(20 * px, rel=0.1)
    page.mouse.move(box["x"] + box["width"] + 5, box["y"] - 5)
    page.wait_for_function("document.getElementById('place').hidden")


def test_a_page_that_is_loaded_anew_shows_what_it_showed(sample_slide, running_view, open_page) -> None:
    def middle() -> list[float]:
        """x, y and magnification."""
        box = page.locator("#stage").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2 - 1, box["y"] + box["height"] / 2)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("#place:not([hidden])")
        return [float(value) for value in re.findall(r"[\d.]+", text(page, "#place"))]

    page = open_page(running_view(sample_slide))
    settled(page)
    whole = middle()
    for _ in range(4):
        page.click("#zoom-in")
    page.focus("#stage")
    page.keyboard.press("ArrowLeft")
    settled(page)
    page.wait_for_function("() => Number(location.hash.split(',')[2]) < 700")  # the width of the region
    before = middle()
    assert before[0] < whole[0]
    assert before[2] > 4 * whole[2]
    page.reload()
    page.wait_for_selector("html[data-ready]")
    settled(page)
    assert middle() == pytest.approx(before, rel=0.02)


@pytest.mark.slow  # half a minute of an idle core, most of it the model's
def test_the_bundled_model_answers_and_what_it_found_is_saved(sample_slide, running_view, open_page, tmp_path) -> None:
    out = tmp_path / "nuclei.geojson"
    page = open_page(running_view(sample_slide, "--out", out, program=[sys.executable, "-m", "wsiseg.cli.main"]))
    for _ in range(4):
        page.click("#zoom-in")
    settled(page)
    page.fill("#query", "outline the nuclei")
    page.keyboard.press("Enter")  # of what is visible
    page.wait_for_selector("#run-writing li", timeout=MODEL_WAIT_MS)  # token by token
    page.wait_for_selector("#run-log .found", timeout=MODEL_WAIT_MS)
    page.wait_for_selector("#run-state:has-text('Found')", timeout=MODEL_WAIT_MS)
    done, total = map(int, re.search(r"(\d+) of (\d+) tiles", text(page, "#run-count")).groups())
    assert done == total > 1
    said = page.locator("#run-log li").all_inner_texts()
    assert len(said) == total
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("n")
    page.wait_for_selector("#chain:not(:empty)")
    assert text(page, "#chain").strip() in [line.strip() for line in said]
    page.click("#save")
    page.wait_for_selector("#banner:has-text('Saved')")
    assert check_dialect(out) == []
    annotations, run = read_collection(out)
    assert len(annotations) > 20
    assert {a.classification for a in annotations} == {"outline the nuclei"}
    assert run["model"]["name"] == "tiny"


def test_a_find_disturbs_no_edit_and_undo_takes_back_one_point(slide_path, geojson, running_view, open_page) -> None:
    before = {a.id: a.geometry for a in read_collection(geojson)[0]}
    address = running_view(slide_path, geojson)
    page = open_page(address)
    click_slide(page, 300, 300)
    page.click("#edit")
    settled(page)
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Control+z")
    page.fill("#query", "the orange")
    page.check("[name=scope][value=slide]", force=True)
    page.click("#ask-start")
    page.wait_for_selector("#run-state:has-text('Found 1 outline')")
    page.wait_for_selector("#classes .name:has-text('the orange')")
    assert page.locator("#classes .name").all_inner_texts() == ["olive", "the orange"]
    assert (text(page, "#object-class"), text(page, "#edit")) == ("olive", "Done")
    assert open_page(address).locator("#save").is_enabled()  # a page that is loaded anew knows of the find
    page.bring_to_front()
    page.click("#edit")
    page.click("#save")
    page.wait_for_selector("#banner:has-text('Saved 4 objects')")
    (changed,) = [a for a in read_collection(geojson)[0] if "edited" in a.metadata]
    old, new = (shapely.get_coordinates(shape) for shape in (before[changed.id], changed.geometry))
    between = np.linalg.norm(old[:, None] - new[None], axis=-1)
    (left,), (moved,) = (np.unique(xy[between.min(axis) > 0.05], axis=0) for xy, axis in ((old, 1), (new, 0)))
    assert np.hypot(*(left - moved)) == pytest.approx(10, abs=0.1)
    page.keyboard.press("v")  # nobody judges what is hidden
    assert page.locator("#details").is_hidden()


def test_what_was_not_saved_outlives_the_server(slide_path, geojson, running_view, open_page) -> None:
    page = open_page(running_view(slide_path, geojson))
    click_slide(page, 300, 300)
    page.keyboard.press("a")
    page.fill("#classes [type=color]", "#102030")
    draft = geojson.with_name(".olive.geojson.draft.geojson")
    for _ in range(WAIT_MS // 100):
        if draft.exists() and b"[16,32,48]" in draft.read_bytes():
            break
        page.wait_for_timeout(100)
    page.evaluate("() => { window.fetch = () => Promise.reject(); }")  # the server is dead, which every change tells
    for key in "ra":
        page.keyboard.press(key)
        page.wait_for_selector("#banner:has-text('does not answer')")
        page.evaluate("document.getElementById('banner').hidden = true")
    again = open_page(running_view(slide_path, geojson))
    for key in ("Escape", "Escape", "n", "r", "Control+s"):  # nothing is done, let alone saved over it
        again.keyboard.press(key)
    assert again.locator("#save").is_disabled()
    again.click("#draft-take")
    again.wait_for_selector("#banner:has-text('Taken up')")
    shown = (colors_at(again, *on_stage(again, 305, 305))[2] for _ in range(WAIT_MS // 100))  # where it lies by then
    assert any(color or again.wait_for_timeout(100) for color in shown)
    again.click("#save")
    again.wait_for_selector("#banner:has-text('Saved 3 objects')")
    after, _ = read_collection(geojson)
    assert {a.color for a in after} == {(16, 32, 48)}
    assert sorted(a.metadata.get("review", "") for a in after) == ["", "", "accepted"]
    assert not draft.exists()


def test_an_outline_that_was_moved_far_is_found_again_where_it_was(scripts) -> None:
    found = scripts.evaluate(
        """async () => {
            const { Shapes } = await import("/shapes.js");
            const square = (x) => [x, 0, x + 10, 0, x + 10, 10, x, 10];
            const block = (x) => ({
                objects: 1,
                objectStart: Uint32Array.of(0, 1),
                ringStart: Uint32Array.of(0, 4),
                xy: Float32Array.from(square(x)),
            });
            const shapes = new Shapes();
            const at = (x) => shapes.at(x, 5, () => true);
            shapes.add(block(0));
            shapes.add(block(1000));
            shapes.change(0, [square(5000)]);
            shapes.add(block(2000)); // a find, while the outline lies elsewhere
            const moved = [at(5), at(5005), at(2005)];
            shapes.change(0, null);
            return [...moved, at(5), at(5005)];
        }"""
    )
    assert found == [-1, 0, 2, 0, -1]


def test_the_visible_region_is_asked_alone_and_a_query_is_cancelled(
    slide_path, geojson, running_view, open_page
) -> None:
    page = open_page(running_view(slide_path, geojson, seconds=0.4))
    page.click("#zoom-in")
    page.click("#zoom-in")
    page.click("#zoom-in")
    page.wait_for_timeout(1500)
    page.fill("#query", "the orange")
    page.keyboard.press("Enter")
    page.wait_for_selector("#run-count:not(:empty)")
    tiles = int(re.search(r"of (\d+) tiles", text(page, "#run-count"))[1])
    assert tiles < 20  # of some 30
    for _ in range(2):
        page.keyboard.press("Escape")  # out of the text, and choose nothing: what it found is not at stake
    assert text(page, "#run-state") == "Looking …"
    page.click("#ask-cancel")
    page.wait_for_selector("#run-state:has-text('Cancelled')")
    assert page.locator("#ask-start").is_visible()
    page.fill("#query", "purple")
    page.click("#ask-start")
    page.wait_for_selector("#run-state.bad:has-text('knows only olive, orange')")


def test_all_is_done_without_a_mouse(slide_path, geojson, running_view, open_page) -> None:
    before, _ = read_collection(geojson)
    page = open_page(running_view(slide_path, geojson))
    press = page.keyboard.press

    def hold(key: str) -> None:
        for _ in range(3):  # all but the first say that they are repeated
            page.keyboard.down(key)
        page.keyboard.up(key)

    # Everything that can be pressed can be reached, and has a name.
    press("Tab")
    names = []
    for _ in range(24):
        name = page.evaluate(
            "() => { const e = document.activeElement; return e === document.body ? '' : "
            "(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim()); }"
        )
        assert name is not None
        names.append(name)
        press("Tab")
    for wanted in ("Skip to the query", "What to outline", "Ask", "Show olive", "Opacity of olive", "Next ›"):
        assert wanted in names
    page.evaluate("document.activeElement.blur()")
    press("a")
    page.wait_for_selector("#banner:has-text('No object is chosen')")
    press("d")  # by doubt
    press("n")
    doubtful = min(before, key=lambda a: a.measurements["Mean probability"])
    page.wait_for_selector("#measurements:not(:empty)")
    shown = re.search(r"Mean probability\s+([\d.]+)", text(page, "#measurements"))[1]
    assert float(shown) == pytest.approx(doubtful.measurements["Mean probability"], abs=1e-3)
    assert re.search(r"olive, object 1 of 3, probability 0\.\d+, undecided", text(page, "#live"))
    press("a")
    press("Control+z")
    press("e")
    press("Control+y")  # while points are moved nothing else happens to the object
    assert text(page, "#object-state") == "undecided"
    press(".")
    press("Shift+ArrowLeft")
    for letter, code in (("ш", "KeyI"), ("я", "KeyZ"), ("I", "KeyI")):  # a Russian keyboard; Caps Lock
        page.evaluate(
            "([key, code]) => document.activeElement.dispatchEvent("
            "new KeyboardEvent('keydown', { key, code, ctrlKey: code === 'KeyZ', bubbles: true }))",
            [letter, code],
        )
        assert text(page, "#live") == ("Undone" if code == "KeyZ" else "Point added")
    press("Enter")
    hold("a")
    assert text(page, "#object-state") == "accepted"
    for _ in range(2):
        press("Delete")  # the second time nothing: the next one lies out of sight
    press("Control+z")
    assert text(page, "#classes .count") == "3"
    press("n")
    press("Escape")
    press("n")  # goes on from where it was, not from the first one
    assert "object 2 of 3" in text(page, "#live")
    press("u")  # only undecided
    hold("Delete")
    for key in "nan":
        press(key)
    page.wait_for_selector("#banner:has-text('nothing to step through')")
    press("?")
    assert page.locator("#help").is_visible()
    assert "Next object" in text(page, "#help")
    press("Escape")
    press("t")
    assert page.evaluate("document.documentElement.dataset.theme") in ("dark", "light")
    press("Control+s")
    page.wait_for_selector("#banner:has-text('Saved 2 objects')")
    after, _ = read_collection(geojson)
    (changed,) = [a for a in after if "edited" in a.metadata]
    assert changed.id == doubtful.id
    assert changed.metadata["review"] == "accepted"


def test_script_in_names_stays_text(slide_path, geojson, running_view, open_page) -> None:
    evil = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
    annotations, run = read_collection(geojson)
    hostile = [
        replace(
            a,
            name=evil,
            classification=evil,
            measurements={**a.measurements, evil: 1.0},
            metadata={**a.metadata, evil: evil, DESCRIPTION: evil},
        )
        for a in annotations
    ]
    with open(geojson, "wb") as file:
        write_geojson(hostile, file, run=run)
    page = open_page(running_view(slide_path, geojson))  # an alert would fail the test
    click_slide(page, 300, 300)
    page.wait_for_selector("#chain:not(:empty)")
    for selector in ("#classes .name", "#object-class", "#chain", "#metadata", "#measurements"):
        assert "<img src=x" in text(page, selector)
    page.wait_for_selector("#tip:not([hidden])")
    assert page.locator("main img, main script").count() == 0
