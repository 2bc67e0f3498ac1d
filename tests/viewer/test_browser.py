"""The page in a real browser: real clicks and keys."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import shapely

from tests.browser import needs_chromium, text
from tests.viewer.page import click_slide, colors_at, on_stage, settled
from wsiseg.geojson import read_collection, write_geojson
from wsiseg.qupath import DESCRIPTION

pytestmark = needs_chromium


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
