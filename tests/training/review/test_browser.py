"""The page in a real browser: real clicks and keys."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import hold, needs_chromium, text
from tests.training.review.conftest import bytes_of, discs, grown
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.review.session import Review

pytestmark = needs_chromium

NAME = 'Dr. X <img src=x onerror="alert(1)">'
Start = Callable[[], tuple[str, "subprocess.Popen[str]"]]


@pytest.fixture
def start(store: Path) -> Iterator[Start]:
    """Start `wsiseg data review` on the store, and return its address."""
    started: list[subprocess.Popen[str]] = []

    def start_one() -> tuple[str, subprocess.Popen[str]]:
        wsiseg = [sys.executable, "-m", "wsiseg.cli.main"]
        command = [*wsiseg, "data", "review", str(store), "--name", NAME, "--no-browser"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        said = process.stderr.readline() + process.stderr.readline()
        found = re.search(r"http://\S+/", said)
        assert found, said
        return found[0], process

    yield start_one
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def wait_for(page: Any, selector: str, content: str) -> None:
    page.wait_for_function(
        "([selector, content]) => document.querySelector(selector).textContent === content", arg=[selector, content]
    )


def on_screen(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the 96 x 72 px image lies, when the whole of it is shown."""
    box = page.locator("#stage").bounding_box()
    scale = min(box["width"] / 96, box["height"] / 72)
    return box["x"] + box["width"] / 2 + (x - 48) * scale, box["y"] + box["height"] / 2 + (y - 36) * scale


def test_a_store_is_reviewed_and_survives_a_kill(store: Path, start: Start, open_page: Any) -> None:
    address, process = start()
    page = open_page(address)
    press = page.keyboard.press
    assert text(page, "#reviewer") == NAME
    assert page.locator("main img, header img:not([alt=''])").count() == 0
    assert text(page, "#position") == "1 of 12"

    # Keys alone: accept, reject, one part, back, undo.
    press("a")
    wait_for(page, "#position", "2 of 12")
    press("r")
    wait_for(page, "#progress-count", "2 of 12 decided")
    press("c")
    wait_for(page, "#chain-state", "rejected")
    press("p")
    wait_for(page, "#position", "2 of 12")
    wait_for(page, "#mask-state", "rejected")
    press("Control+z")  # the chain of question 3
    wait_for(page, "#position", "3 of 12")
    wait_for(page, "#chain-state", "undecided")

    # The mouse: an object more, one extended, one erased; a chain typed.
    page.click("#mask-edit")
    page.wait_for_selector("#brush-hint:not([hidden])")

    def drag(start_xy: tuple[float, float], end_xy: tuple[float, float]) -> None:
        page.mouse.move(*on_screen(page, *start_xy))
        page.mouse.down()
        page.mouse.move(*on_screen(page, *end_xy), steps=5)
        page.mouse.up()

    drag((40, 8), (56, 8))  # outside: a third object
    drag((26, 36), (26, 60))  # from inside the first, down
    page.mouse.move(*on_screen(page, 70, 36))
    press("Delete")  # the second
    page.click("#mask-edit")
    wait_for(page, "#mask-state", "corrected")
    page.click("#chain-text")
    page.fill("#chain-text", "Two glands. <b>They</b> are outlined.")
    press("Control+Enter")
    wait_for(page, "#chain-state", "corrected")
    press("a")  # corrections stay
    wait_for(page, "#position", "4 of 12")
    press("p")
    wait_for(page, "#position", "3 of 12")
    assert (text(page, "#mask-state"), text(page, "#chain-state")) == ("corrected", "corrected")
    assert page.input_value("#chain-text") == "Two glands. <b>They</b> are outlined."

    # Keys paint, too; what is undone there was never said to the server.
    press("n")
    wait_for(page, "#position", "4 of 12")
    press("n")
    wait_for(page, "#position", "5 of 12")
    press("e")
    page.wait_for_selector("#brush-hint:not([hidden])")
    for key in ("Space", "ArrowDown", "ArrowDown", "Space", "Control+z", "Space", "ArrowUp", "Enter"):
        press(key)
    wait_for(page, "#mask-state", "corrected")
    press("u")
    press("n")
    wait_for(page, "#position", "6 of 12")
    press("?")
    assert "Correct the mask" in text(page, "#help")
    press("Escape")

    process.kill()  # no chance to tidy up
    process.wait()
    page.close()
    (path,) = store.with_suffix(".review").glob("*.jsonl")
    assert all(json.loads(line)["name"] == NAME for line in path.read_text().splitlines())
    review = Review(QuadrupletStore.open(store), NAME)
    states = review.describe()["states"]
    assert [(s["mask"], s["chain"]) for s in states[:6]] == [
        ("accepted", "accepted"), ("rejected", "rejected"), ("corrected", "corrected"), ("", ""),
        ("corrected", ""), ("", ""),
    ]  # fmt: skip
    before, after = discs(1).layers["gland"], review.labels(2)
    assert (after[8, 48], before[8, 48]) == (3, 0)
    assert (after[60, 26], before[60, 26]) == (1, 0)
    assert np.array_equal(after == 2, np.zeros_like(before, bool))
    np.testing.assert_array_equal(after[30:40, 20:30], before[30:40, 20:30])
    painted = review.labels(4) != discs(2).layers["gland"]
    assert painted[36, 48]
    assert not painted[40:].any()

    again = open_page(start()[0])
    assert text(again, "#position") == "4 of 12"  # the first that is undecided
    assert text(again, "#progress-count") == "3 of 12 decided"


def test_what_was_corrected_stays_when_its_part_is_accepted(store: Path, start: Start, open_page: Any) -> None:
    page = open_page(start()[0])
    page.fill("#chain-text", "Two glands, seen anew.")
    page.click("#chain-accept")  # leaves the box, which keeps the chain
    wait_for(page, "#live", "chain corrected")
    for key in ("e", "Space", "Space"):
        page.keyboard.press(key)
    page.click("#mask-accept")  # with the brush still at hand
    wait_for(page, "#live", "mask corrected")
    assert page.input_value("#chain-text") == "Two glands, seen anew."
    review = Review(QuadrupletStore.open(store), NAME)
    assert [review.describe()["states"][0][part] for part in ("mask", "chain")] == ["corrected", "corrected"]
    assert review.labels(0)[36, 48]


def test_strokes_too_old_to_be_undone_are_kept(store: Path, start: Start, open_page: Any) -> None:
    page = open_page(start()[0])
    page.keyboard.press("e")
    page.wait_for_selector("#brush-hint:not([hidden])")
    for _ in range(42):
        for key in ("Space", "Space", "ArrowRight"):
            page.keyboard.press(key)
    for _ in range(41):  # one more than there are steps
        page.keyboard.press("Control+z")
    page.wait_for_selector("#banner:has-text('Earlier strokes cannot be undone')")
    page.keyboard.press("Enter")
    page.wait_for_selector("#brush-hint", state="hidden")
    assert text(page, "#mask-state") == "corrected"
    assert Review(QuadrupletStore.open(store), NAME).labels(0)[36, 48]


def test_a_question_that_cannot_be_read_blocks_no_other(store: Path, start: Start, chromium: Any) -> None:
    review = Review(QuadrupletStore.open(store), NAME)
    for question in (0, 2):
        review.correct_mask(question, bytes_of(grown(question // 2)))
    for mask in (store.with_suffix(".review") / "masks").iterdir():
        mask.unlink()
    page = chromium.new_page()  # the browser says by itself what it could not load
    page.goto(start()[0])
    page.wait_for_selector("#banner:has-text('Question 1 cannot be shown: cannot read the corrected mask')")
    wait_for(page, "#position", "2 of 12")
    page.keyboard.press("n")
    wait_for(page, "#position", "4 of 12")
    page.wait_for_selector("#banner:has-text('Question 3 cannot be shown')")
    page.keyboard.press("p")
    wait_for(page, "#position", "2 of 12")
    page.keyboard.press("p")  # around
    wait_for(page, "#position", "12 of 12")
    page.close()


def test_a_key_held_down_uses_the_brush_once(start: Start, open_page: Any) -> None:
    page = open_page(start()[0])
    page.keyboard.press("e")
    page.wait_for_selector("#brush-hint:not([hidden])")
    hold(page, "x")
    assert text(page, "#live") == "Erases"
    hold(page, "Space")
    assert text(page, "#live") == "Erasing"
    page.keyboard.press("Escape")
