"""What is on the page, and where, when the whole slide is shown."""

from __future__ import annotations

from typing import Any


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
