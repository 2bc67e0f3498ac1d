"""Figures of answers to a data set's questions: rows of means with their intervals, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import orjson

from wsiseg.training.metrics import Interval, Overlap, bootstrap_ratio, dice, iou

if TYPE_CHECKING:
    from rich.table import Table

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
    a model that writes none has NaN there. A mean over nothing is NaN.

    gIoU is the mean IoU, about what is absent 1 for silence and 0 for any mask, and `giou_present` and
    `giou_absent` are its halves; cIoU is Σ|P∩G| / Σ|P∪G|, in which large objects dominate (LISA's `utils/utils.py`;
    its 1e-5 on every union is left out). Sensitivity: asked for what is there, a mask. Specificity: asked for what
    is not, silence. Presence accuracy: the one or the other.
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
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def report_table(report: Report) -> Table:
    """Each figure above its 95 % interval, "–" where there is nothing to measure."""
    from rich import box
    from rich.table import Table

    digest, dash, weights = report.fingerprint.partition("-")
    title = f"{report.model} ({digest[:12]}{dash}{weights}) on {report.data}, {report.split}"
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
