"""Debian's headless Chromium for tests, driven by real clicks and keys.

    apt-get install chromium        # without it these tests are skipped
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 30_000  # a machine may be busy

needs_chromium = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"needs Chromium at {CHROMIUM}")

Open = Any  # (address) -> Page


@pytest.fixture(scope="module")  # playwright keeps an event loop running, which other tests could not stand
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=FLAGS,
            viewport={"width": 1200, "height": 800},
        )
        context.set_default_timeout(WAIT_MS)
        yield context
        context.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Open]:
    """Open an address and wait until it is drawn; whatever the page complains of fails the test."""
    complaints: list[str] = []
    pages = []

    def open_one(address: str) -> Any:
        page = chromium.new_page()
        pages.append(page)
        page.on("pageerror", lambda error: complaints.append(getattr(error, "stack", None) or str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_one
    for page in pages:
        page.close()
    assert complaints == []


def text(page: Any, selector: str) -> str:
    return page.locator(selector).inner_text()


def hold(page: Any, key: str) -> None:
    for _ in range(4):  # all but the first say that they are repeated
        page.keyboard.down(key)
    page.keyboard.up(key)
