"""What a frame of `wsiseg view` costs while one pans and zooms, without and with 100,000 polygons.

    python -m benchmarks.speed.viewer               # needs Chromium at /usr/bin/chromium

A synthetic slide of 20,480 x 20,480 px with polygons of 24 vertices all over it, in headless Chromium without a
GPU (software drawing is the worst case), 1440 x 900 px, driven by a real mouse. CPU milliseconds per frame do not
depend on what else the machine does; frame times do.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from benchmarks.speed.make_pyramid import lay_out, tissue_images, write_pyramid
from benchmarks.speed.run import SAMPLE
from wsiseg.geojson import Annotation, write_geojson
from wsiseg.qupath import class_color

SIDE = 20_480
CLASSES = ("nuclei", "lymphocytes", "mitoses")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
RECORD = """() => {
    const times = []; let last = null;
    const tick = (now) => { if (last !== null) times.push(now - last); last = now; requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
    window.frameTimes = times;
}"""


def write_polygons(path: Path, count: int) -> None:
    """`count` polygons of 24 vertices, 18 to 44 px across, at random places."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    centre = rng.uniform(50, SIDE - 50, (count, 1, 2))
    radius = rng.uniform(9, 22, (count, 1)) * (1 + 0.15 * np.sin(3 * angle + rng.uniform(0, 6, (count, 1))))
    xy = centre + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # (count, 24, 2)
    kinds = rng.choice(CLASSES, count, p=(0.7, 0.25, 0.05)).tolist()
    annotations = [
        Annotation(
            uuid.UUID(int=i, version=4), polygon, kind, kind, class_color(kind), {"Mean probability": float(p)}
        )
        for i, (polygon, kind, p) in enumerate(
            zip(shapely.polygons(xy.round(2)), kinds, rng.uniform(0.5, 1, count), strict=True)
        )
    ]
    with open(path, "wb") as file:
        write_geojson(annotations, file)


def gestures(page: Any) -> None:
    """Pan, zoom in until single objects fill the screen, pan, zoom out, pan."""
    box = page.locator("#stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def pan() -> None:
        page.mouse.move(x, y)
        page.mouse.down()
        for i in range(60):
            page.mouse.move(x + 200 * np.sin(i / 5), y + 150 * np.cos(i / 7))
        page.mouse.up()

    pan()
    for turn in (-240,) * 10 + (240,) * 6:
        page.mouse.move(x, y)
        page.mouse.wheel(0, turn)
        page.wait_for_timeout(150)
        if turn < 0:
            pan()


def measure(arguments: list[str]) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "wsiseg.cli.main", "view", *arguments, "--no-browser"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    found = next(address for line in server.stderr if (address := re.search(r"http://\S+/", line)))
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(found[0])
            page.wait_for_selector("html[data-ready]", timeout=120_000)
            page.wait_for_timeout(5000)
            console = page.context.new_cdp_session(page)
            console.send("Performance.enable", {"timeDomain": "threadTicks"})
            before = console.send("Performance.getMetrics")["metrics"]
            page.evaluate(RECORD)
            gestures(page)
            times = np.array(page.evaluate("window.frameTimes"))
            after = console.send("Performance.getMetrics")["metrics"]
            browser.close()
    finally:
        server.terminate()
        server.wait()
    spent = {a["name"]: a["value"] - b["value"] for a, b in zip(after, before, strict=True)}
    return {
        "frames": len(times),
        "main_thread_cpu_ms_per_frame": round(1000 * spent["TaskDuration"] / len(times), 2),
        "script_cpu_ms_per_frame": round(1000 * spent["ScriptDuration"] / len(times), 2),
        "median_frame_ms": round(float(np.median(times)), 1),
        "p95_frame_ms": round(float(np.percentile(times, 95)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--polygons", type=int, default=100_000)
    count = parser.parse_args().polygons
    with tempfile.TemporaryDirectory(prefix="wsiseg-viewer-") as name:
        folder = Path(name)
        slide, geojson = folder / "slide.tif", folder / "many.geojson"
        write_pyramid(slide, lay_out(tissue_images(SAMPLE), SIDE, fill=1.5), mpp=0.5)
        write_polygons(geojson, count)
        for label, arguments in (("slide alone", [str(slide)]), (f"{count:,} polygons", [str(slide), str(geojson)])):
            print(label, json.dumps(measure(arguments)), flush=True)


if __name__ == "__main__":
    main()
