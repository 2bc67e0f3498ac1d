"""The page's own scripts, without the page."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import shapely

from tests.browser import needs_chromium
from wsiseg.geojson import Annotation
from wsiseg.viewer.packing import pack
from wsiseg.viewer.web import STATIC

pytestmark = needs_chromium


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


def test_a_class_may_have_any_name(scripts) -> None:
    names = ["constructor", "__proto__", "toString"]
    squares = [Annotation(uuid.uuid4(), shapely.box(0, 0, 9, 9), name, name, (1, 2, 3)) for name in names]
    block = pack(squares, {name: i for i, name in enumerate(names)})
    read, kept, again = scripts.evaluate(
        """async (packed) => {
            const { Store } = await import("/store.js");
            const opened = (colors) => {
                const store = new Store();
                store.add(Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer);
                store.restore({ deleted: [], review: {}, rings: {}, colors });
                return store;
            };
            const shown = (store) => store.classes.map(({ color }) => [...color]);
            const store = opened({});
            const read = shown(store);
            store.classes.forEach((_, i) => store.recolor(i, [i, i, i]));
            const kept = JSON.stringify(store.edits().colors);
            return [read, kept, shown(opened(JSON.parse(kept)))];
        }""",
        base64.b64encode(block).decode(),
    )
    assert read == [[1, 2, 3]] * 3
    assert json.loads(kept) == {name: [i, i, i] for i, name in enumerate(names)}
    assert again == [[i, i, i] for i in range(3)]
