"""Outlines are judged, changed and saved, with real clicks and keys."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import shapely

from tests.browser import WAIT_MS, hold, needs_chromium, text
from tests.viewer.page import click_slide, colors_at, on_stage, settled
from wsiseg.geojson import read_collection, write_geojson
from wsiseg.qupath import check_dialect

pytestmark = needs_chromium


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
    for _ in range(WAIT_MS // 100):
        drafts = list(geojson.parent.glob(".olive.geojson.*.draft.geojson"))
        if drafts and b"[16,32,48]" in drafts[0].read_bytes():
            break
        page.wait_for_timeout(100)
    (draft,) = drafts
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


def test_all_is_done_without_a_mouse(slide_path, geojson, running_view, open_page) -> None:
    before, _ = read_collection(geojson)
    page = open_page(running_view(slide_path, geojson))
    press = page.keyboard.press

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
    hold(page, "a")
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
    hold(page, "Delete")
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


def test_a_key_held_down_changes_one_point(slide_path, geojson, running_view, open_page) -> None:
    page = open_page(running_view(slide_path, geojson))
    click_slide(page, 300, 300)
    page.keyboard.press("e")

    def points() -> int:
        page.keyboard.press(".")
        return int(re.fullmatch(r"Point \d+ of (\d+)", text(page, "#live"))[1])

    before = points()
    hold(page, "i")
    assert points() == before + 1
    hold(page, "Delete")
    hold(page, "Backspace")
    assert points() == before - 1
    hold(page, ".")
    assert text(page, "#live").startswith("Point 9 of")  # this one only chooses
