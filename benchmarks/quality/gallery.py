"""What the model draws on images that it never saw, beside the truth, as a picture (docs/gallery.jpg).

    python -m benchmarks.quality.gallery open.zarr --source ebhi_seg --out docs/gallery.jpg \
        --concept gland malignant dysplastic

A row for each structure: images spread evenly over those of the validation split that show it, none of them chosen by
hand, each asked with its first question in the store. The model's outline is yellow, the truth white.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from benchmarks.quality.structure import spread
from wsiseg.inference import Segmenter
from wsiseg.model import load_model
from wsiseg.qupath import Color
from wsiseg.training.data.store import Quadruplet, QuadrupletStore
from wsiseg.training.evaluate import answer
from wsiseg.training.metrics import dice, overlap

SIDE_PX, GAP_PX, TEXT_PX, LINES = 280, 12, 14, 3  # of a picture, between them, of the text below, its lines
QUALITY = 84  # of the JPEG
WHITE, YELLOW, INK = (255, 255, 255), (255, 235, 0), (20, 20, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--concept", dest="concepts", nargs="+", required=True)
    parser.add_argument("--images", type=int, default=4, help="in a row")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    store, model = QuadrupletStore.open(arguments.store), load_model(device="cpu")
    rows = [first_questions(store, arguments.source, concept, arguments.images) for concept in arguments.concepts]
    cells = [[cell(model, store, question) for question in row] for row in rows]
    laid_out(cells).save(arguments.out, quality=QUALITY, optimize=True, progressive=True)


def first_questions(store: QuadrupletStore, source: str, concept: str, count: int) -> list[Quadruplet]:
    """About a structure that is there, one for each of `count` validation images."""
    first: dict[int, Quadruplet] = {}
    for question in store.questions("val"):
        if question.present and question.concept == concept and store.records[question.image].source == source:
            first.setdefault(question.image, question)
    return [first[i] for i in spread(sorted(first), count)]


def cell(model: Segmenter, store: QuadrupletStore, question: Quadruplet) -> Image.Image:
    """The image with both outlines, and below it the question and the Dice."""
    sample = store.sample(question.image)
    truth = sample.layers[question.concept] > 0
    mask = answer(model, sample.image, sample.mpp, question.query).mask
    score = f"Dice {dice(overlap(mask, truth)):.2f}" if mask.any() else "silent"
    picture = outlined(sample.image, [(truth, WHITE, 1), (mask, YELLOW, 2)])
    text = textwrap.wrap(f"“{question.query}” {score}", width=40)[:LINES]
    whole = Image.new("RGB", (SIDE_PX, SIDE_PX + (LINES + 1) * TEXT_PX), WHITE)
    whole.paste(picture)
    font = ImageFont.load_default(TEXT_PX)
    ImageDraw.Draw(whole).multiline_text((2, SIDE_PX + 4), "\n".join(text), fill=INK, font=font, spacing=3)
    return whole


def outlined(image: np.ndarray, masks: list[tuple[np.ndarray, Color, int]]) -> Image.Image:
    """An image (H, W, 3), `SIDE_PX` square, with the edges of masks (H, W) in their colour, so many pixels wide."""
    size = (SIDE_PX, SIDE_PX)
    pixels = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    for mask, color, width_px in masks:
        large = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)) > 0.5
        pixels[large & ~ndimage.binary_erosion(large, iterations=width_px, border_value=1)] = color
    return Image.fromarray(pixels)


def laid_out(rows: list[list[Image.Image]]) -> Image.Image:
    """The cells of all rows on one sheet."""
    width, height = (length + GAP_PX for length in rows[0][0].size)
    sheet = Image.new("RGB", (max(map(len, rows)) * width - GAP_PX, len(rows) * height - GAP_PX), WHITE)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height))
    return sheet


if __name__ == "__main__":
    main()
