"""Ask a model every question of a data set, as a user would, and compare the answers with the truth.

An image goes the road of a slide: resampled to the model's microns per pixel, cut into overlapping tiles, the
tiles' probabilities blended with the weights of `wsiseg.mask`, thresholded; the mask is brought back to the
image and compared there. Generation is free: the model decides itself whether there is a mask (teacher-forced
figures, as LISA reports them in training, would hide that decision).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wsiseg.errors import DataError
from wsiseg.inference.devices import copies_of, in_turn
from wsiseg.inference.shots import InContext, Shot
from wsiseg.mask.canvas import Canvas
from wsiseg.slide.resample import resample_image
from wsiseg.slide.scale import m_size
from wsiseg.tiles.grid import mirror_beyond, tile_starts
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample
from wsiseg.training.figures import Case, Report, summarise
from wsiseg.training.metrics import NAN, bleu4, hd95, overlap, token_f1
from wsiseg.training.shots import ShotPool, draw_shots

if TYPE_CHECKING:
    from wsiseg.inference import Segmenter

THRESHOLD = 0.5
BATCH_TILES = 16  # tiles handed to the model at once


@dataclass(frozen=True)
class Answer:
    """What a user gets for one image: a mask (H, W) bool, empty where the model was silent, and a chain."""

    mask: np.ndarray
    reasoning: str


def answer(model: Segmenter, image: np.ndarray, mpp: float | None, query: str) -> Answer:
    """Ask `model` for `query` on an image (H, W, 3) uint8 with `mpp` µm per pixel (None: taken as it is).

    The chain is that of the tile with the largest mask; where no tile has one, of the first tile.
    """
    model_mpp = model.mpp_for(query)
    scale = model_mpp / mpp if mpp else 1.0  # image pixels per model pixel
    height, width = image.shape[:2]
    m_width, m_height = (m_size(length, scale) for length in (width, height))
    m_xy = [
        (int(m_x), int(m_y))
        for m_y in tile_starts(m_height, model.tile_size, model.overlap)
        for m_x in tile_starts(m_width, model.tile_size, model.overlap)
    ]

    size = model.tile_size
    first, largest, reasoning = True, 0, ""
    with Canvas(m_width, m_height, size, model.overlap) as canvas:
        for start in range(0, len(m_xy), BATCH_TILES):
            corners = m_xy[start : start + BATCH_TILES]
            tiles = np.stack([resample_image(image, scale, x, y, size, size) for x, y in corners])
            for tile, corner in zip(tiles, corners, strict=True):
                mirror_beyond(tile, corner, (m_width, m_height))
            for (m_x, m_y), tile in zip(corners, model.segment_tiles(tiles, query, model_mpp), strict=True):
                canvas.add(m_x, m_y, tile.probability)
                area = 0 if tile.probability is None else int((tile.probability > THRESHOLD).sum())
                if first or area > largest:
                    first, largest, reasoning = False, max(area, largest), tile.reasoning
        canvas.finish()
        probability = canvas.window(0, 0, m_width, m_height)
    if scale != 1.0:
        # Image pixel i lies at model position (i + ½)/scale; the canvas ends a fraction after the image.
        box = (0.0, 0.0, min(width / scale, m_width), min(height / scale, m_height))
        probability = np.asarray(
            Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR, box=box)
        )
    return Answer(probability > THRESHOLD * 255, reasoning)


def judge(model: Segmenter, sample: Sample, question: Quadruplet) -> Case:
    """Ask one question and compare the answer with the sample's own layer and the question's chain."""
    truth = np.zeros(sample.image.shape[:2], bool)
    if question.present:
        truth = sample.layers[question.concept] > 0
    began = time.perf_counter()
    given = answer(model, sample.image, sample.mpp, question.query)
    seconds = time.perf_counter() - began
    counts = overlap(given.mask, truth)
    return Case(
        source=sample.source,
        group=sample.group,
        image=sample.name,
        concept=question.concept,
        query=question.query,
        present=question.present,
        emitted=counts.predicted_px > 0,
        intersection_px=counts.intersection_px,
        predicted_px=counts.predicted_px,
        truth_px=counts.truth_px,
        hd95_px=hd95(given.mask, truth),
        mpp=sample.mpp,
        reasoning=given.reasoning,
        bleu4=bleu4(given.reasoning, question.reasoning) if question.reasoning else NAN,
        token_f1=token_f1(given.reasoning, question.reasoning) if question.reasoning else NAN,
        seconds=seconds,
    )


def evaluate(
    model: Segmenter,
    *stores: QuadrupletStore,
    split: str = "val",
    limit: int | None = None,
    shots: int = 0,
    examples: Sequence[Shot] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Every question of `split`, answered and compared; sets of the same name are one set, whatever store they are in.

    A model on several devices is asked whole questions in turn, so that the figures are those of one device.

    Args:
        limit: ask only so many questions of each store, spread evenly.
        shots: before each question, show this many examples of the same structure: images of other patients of
            the split, of the same source where the store has any; fewer, or none, where it holds no more.
        examples: show these before every question.
        progress: called with (questions answered, questions in all).

    Raises:
        DataError: a store holds no question of the split, or the model takes no examples; before any is asked.
    """
    if (shots or examples) and not isinstance(model, InContext):
        raise DataError(f"the model {model.name} takes no examples: leave --shots and --example out")
    questions = [(store, store.questions(split, limit)) for store in stores]
    total = sum(len(of_store) for _, of_store in questions)

    def asked() -> Iterator[tuple[Sample, Quadruplet, list[Shot]]]:
        for store, of_store in questions:
            pool = ShotPool(store, split)
            for image, of_image in itertools.groupby(of_store, key=lambda question: question.image):
                sample = store.sample(image)
                for question in of_image:
                    yield sample, question, [*examples, *draw_shots(pool, question.concept, sample, shots)]

    def ask(copy: Segmenter, item: tuple[Sample, Quadruplet, list[Shot]]) -> Case:
        sample, question, shown = item
        taught = copy.with_shots(shown) if shown and isinstance(copy, InContext) else copy
        return replace(judge(taught, sample, question), shots=len(shown))

    cases: list[Case] = []
    with closing(in_turn(ask, copies_of(model), asked())) as judged:
        for case in judged:
            cases.append(case)
            if progress:
                progress(len(cases), total)
    data, most = ", ".join(str(store.path) for store in stores), max(case.shots for case in cases)
    return Report(model.name, model.fingerprint, data, split, summarise(cases), cases, most)


def open_stores(paths: Sequence[str]) -> list[QuadrupletStore]:
    """The stores at these paths, and those directly in them, where one is a folder of stores.

    Raises:
        DataError: neither a store nor a folder of some.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = [] if (path / "zarr.json").exists() else sorted(path.glob("*.zarr"))
        found += inside or [path]
    return [QuadrupletStore.open(path) for path in dict.fromkeys(found)]
