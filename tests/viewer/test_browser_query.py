"""Queries are asked on the page, in a real browser."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from tests.browser import needs_chromium, text
from tests.viewer.page import settled
from wsiseg.geojson import read_collection
from wsiseg.qupath import check_dialect

pytestmark = needs_chromium

MODEL_WAIT_MS = 400_000


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
