"""Ask a model every question of a data set, as a user would, and compare the answers with the truth.

An image goes the road of a slide: resampled to the model's microns per pixel, cut into overlapping tiles, the
tiles' probabilities blended with the weights of `wsiseg.mask`, thresholded; the mask is brought back to the
image and compared there. Generation is free: the model decides itself whether there is a mask (teacher-forced
figures, as LISA reports them in training, would hide that decision).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wsiseg.errors import DataError
from wsiseg.inference.shots import InContext, Shot
from wsiseg.mask.canvas import Canvas
from wsiseg.slide.resample import resample_region
from wsiseg.tiles.grid import m_length, tile_starts
from wsiseg.training.metrics import (
    NAN,
    Interval,
    Overlap,
    bleu4,
    bootstrap_ratio,
    dice,
    hd95,
    iou,
    overlap,
    token_f1,
)
from wsiseg.training.shots import ShotPool, draw_shots

if TYPE_CHECKING:
    from rich.table import Table

    from wsiseg.inference import Segmenter
    from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample

THRESHOLD = 0.5
BATCH_TILES = 16  # tiles handed to the model at once
ALL, ELSEWHERE = "all", "not in this set"


@dataclass(frozen=True)
class Case:
    """One question and how its answer compares. `mpp` is the image's own, None where it is not known.

    `shots` counts the examples that the model was shown before.
    """

    source: str
    group: str
    image: str
    concept: str
    query: str
    present: bool
    emitted: bool
    intersection_px: int
    predicted_px: int
    truth_px: int
    hd95_px: float
    mpp: float | None
    reasoning: str
    bleu4: float
    token_f1: float
    seconds: float
    shots: int = 0

    @property
    def counts(self) -> Overlap:
        return Overlap(self.intersection_px, self.predicted_px, self.truth_px)


@dataclass(frozen=True)
class Row:
    """The figures of one set and concept (or `ALL`, or those that the set never holds: `ELSEWHERE`).

    Dice and HD95 are means over questions whose structure is there (`n_present`), silence scoring 0 and the
    image's diagonal; gIoU and cIoU are over all questions. Chains are compared where the data set has one;
    a model that writes none has NaN there.
    """

    source: str
    concept: str
    n_present: int
    n_absent: int
    dice: Interval
    giou: Interval
    giou_present: Interval
    giou_absent: Interval
    ciou: Interval
    hd95: Interval
    hd95_unit: str
    sensitivity: Interval
    specificity: Interval
    presence_accuracy: Interval
    bleu4: Interval
    token_f1: Interval
    seconds: float  # mean per question


@dataclass(frozen=True)
class Report:
    model: str
    fingerprint: str
    data: str
    split: str
    rows: list[Row]
    cases: list[Case]
    shots: int = 0


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
    m_width, m_height = (m_length(length, 1.0, scale) for length in (width, height))
    m_xy = [
        (int(m_x), int(m_y))
        for m_y in tile_starts(m_height, model.tile_size, model.overlap)
        for m_x in tile_starts(m_width, model.tile_size, model.overlap)
    ]

    def read(x: int, y: int, w: int, h: int) -> np.ndarray:
        return image[y : y + h, x : x + w]

    size = model.tile_size
    first, largest, reasoning = True, 0, ""
    with Canvas(m_width, m_height, size, model.overlap) as canvas:
        for start in range(0, len(m_xy), BATCH_TILES):
            corners = m_xy[start : start + BATCH_TILES]
            tiles = np.stack(
                [resample_region(read, (width, height), (scale, scale), x, y, size, size) for x, y in corners]
            )
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


def evaluate(
    model: Segmenter,
    store: QuadrupletStore,
    *,
    split: str = "val",
    limit: int | None = None,
    shots: int = 0,
    examples: Sequence[Shot] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Every question of `split`, or `limit` of them spread evenly, answered and compared.

    Args:
        shots: before each question, show this many examples of the same structure: images of other patients of
            the split, of the same source where it has any; fewer, or none, where the split holds no more.
        examples: show these before every question.

    Raises:
        DataError: the split holds no question, or the model takes no examples.
    """
    if (shots or examples) and not isinstance(model, InContext):
        raise DataError(f"the model {model.name} takes no examples: leave --shots and --example out")
    questions = _questions(store, split)
    if limit is not None and limit < len(questions):
        questions = [questions[i] for i in np.linspace(0, len(questions) - 1, limit).round().astype(int)]
    cases, pool = [], ShotPool(store, split)
    for image, of_image in itertools.groupby(questions, key=lambda question: question.image):
        sample = store.sample(image)
        for question in of_image:
            shown = [*examples, *draw_shots(pool, question.concept, sample, shots)]
            asked = model.with_shots(shown) if shown and isinstance(model, InContext) else model
            cases.append(replace(judge(asked, sample, question), shots=len(shown)))
            if progress:
                progress(len(cases), len(questions))
    most = max(case.shots for case in cases)
    return Report(model.name, model.fingerprint, str(store.path), split, summarise(cases), cases, most)


def evaluate_all(
    model: Segmenter,
    stores: Sequence[QuadrupletStore],
    *,
    split: str = "val",
    limit: int | None = None,
    shots: int = 0,
    examples: Sequence[Shot] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """`evaluate` over several stores: one report; sets of the same name are one set.

    limit: of each store. progress: called store by store.

    Raises:
        DataError: a store holds no question of the split; before any is asked.
    """
    for store in stores:
        _questions(store, split)
    reports = [
        evaluate(model, store, split=split, limit=limit, shots=shots, examples=examples, progress=progress)
        for store in stores
    ]
    cases = [case for report in reports for case in report.cases]
    data = ", ".join(report.data for report in reports)
    most = max(report.shots for report in reports)
    return Report(model.name, model.fingerprint, data, split, summarise(cases), cases, most)


def open_stores(paths: Sequence[str]) -> list[QuadrupletStore]:
    """The stores at these paths, and those directly in them, where one is a folder of stores.

    Raises:
        DataError: neither a store nor a folder of some.
    """
    from wsiseg.training.data.store import QuadrupletStore

    found: list[Path] = []
    for path in map(Path, paths):
        inside = [] if (path / "zarr.json").exists() else sorted(path.glob("*.zarr"))
        found += inside or [path]
    return [QuadrupletStore.open(path) for path in dict.fromkeys(found)]


def _questions(store: QuadrupletStore, split: str) -> list[Quadruplet]:
    of_split = [q for q in store.quadruplets if store.records[q.image].split == split]
    questions = [replace(q, reasoning=store.reasoning(q)) for q in of_split]
    if not questions:
        have = ", ".join(sorted({store.records[q.image].split for q in store.quadruplets})) or "none"
        raise DataError(f"{store.path} holds no questions of the split {split!r}; it has: {have}")
    return questions


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


def summarise(cases: Sequence[Case]) -> list[Row]:
    """Per set: all questions, each structure that the set holds, and whatever else was asked in vain."""
    rows = []
    for source in sorted({case.source for case in cases}):
        of_source = [case for case in cases if case.source == source]
        held = sorted({case.concept for case in of_source if case.present})
        parts = {ALL: of_source}
        parts |= {name: [case for case in of_source if case.concept == name] for name in held}
        parts[ELSEWHERE] = [case for case in of_source if case.concept not in held]
        rows += [_row(source, name, part) for name, part in parts.items() if part]
    return rows


def _row(source: str, concept: str, cases: Sequence[Case]) -> Row:
    present = [case for case in cases if case.present]
    absent = [case for case in cases if not case.present]
    # A baseline that never writes has no chain to compare; a model that once writes is held to it always.
    writes = any(case.reasoning for case in cases)
    chained = [case for case in cases if writes and not math.isnan(case.bleu4)]
    in_um = all(case.mpp for case in present)

    def mean(of: Sequence[Case], value: Callable[[Case], float]) -> Interval:
        return bootstrap_ratio([value(case) for case in of], groups=[case.group for case in of])

    def iou_mean(of: Sequence[Case]) -> Interval:
        return mean(of, lambda case: iou(case.counts))

    return Row(
        source=source,
        concept=concept,
        n_present=len(present),
        n_absent=len(absent),
        dice=mean(present, lambda case: dice(case.counts)),
        giou=iou_mean(cases),
        giou_present=iou_mean([case for case in cases if case.truth_px]),
        giou_absent=iou_mean([case for case in cases if not case.truth_px]),
        ciou=bootstrap_ratio(
            [case.intersection_px for case in cases],
            [case.counts.union_px for case in cases],
            groups=[case.group for case in cases],
        ),
        hd95=mean(present, lambda case: case.hd95_px * (case.mpp or 1.0 if in_um else 1.0)),
        hd95_unit="µm" if in_um else "px",
        sensitivity=mean(present, lambda case: float(case.emitted)),
        specificity=mean(absent, lambda case: float(not case.emitted)),
        presence_accuracy=mean(cases, lambda case: float(case.emitted == case.present)),
        bleu4=mean(chained, lambda case: case.bleu4),
        token_f1=mean(chained, lambda case: case.token_f1),
        seconds=float(np.mean([case.seconds for case in cases])),
    )


def report_json(report: Report) -> bytes:
    """The whole report, cases included; NaN becomes null."""
    import orjson

    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def report_table(report: Report) -> Table:
    """Each figure above its 95 % interval, "–" where there is nothing to measure."""
    from rich import box
    from rich.table import Table

    title = f"{report.model} ({report.fingerprint[:12]}) on {report.data}, {report.split}"
    if report.shots:
        title += f", {report.shots}-shot ({sum(case.shots > 0 for case in report.cases)} questions with an example)"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("set, structure", no_wrap=True)
    for heading in FIGURES:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        if row.concept == ALL:
            table.add_section()
        table.add_row(row.source if row.concept == ALL else f"  {row.concept}", *figures(row).values())
    return table


FIGURES = (
    "n +/−",
    "Dice",
    "gIoU",
    "gIoU +/−",
    "cIoU",
    "HD95",
    "+ found",
    "− silent",
    "presence",
    "BLEU-4",
    "token F1",
    "s",
)


def figures(row: Row) -> dict[str, str]:
    """The cells of a row, by heading: shared by the terminal's table and docs/quality.md."""
    cells = (
        f"{row.n_present}\n{row.n_absent}",
        _cell(row.dice),
        _cell(row.giou),
        f"{_number(row.giou_present.value)}\n{_number(row.giou_absent.value)}",
        _cell(row.ciou),
        _cell(row.hd95, digits=1, unit=" " + row.hd95_unit),
        _cell(row.sensitivity),
        _cell(row.specificity),
        _number(row.presence_accuracy.value),
        _cell(row.bleu4),
        _cell(row.token_f1),
        f"{row.seconds:.2f}",
    )
    return dict(zip(FIGURES, cells, strict=True))


def _cell(interval: Interval, digits: int = 3, unit: str = "") -> str:
    if math.isnan(interval.value):
        return "–"
    value = _number(interval.value, digits) + unit
    if math.isnan(interval.low):
        return value
    low, high = (
        _number(bound, max(0, digits - 1)).removeprefix("0") for bound in (interval.low, interval.high)
    )
    return f"{value}\n{low or 0}–{high or 0}"


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
