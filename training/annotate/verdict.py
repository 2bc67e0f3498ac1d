"""Whether the sentences of a chain agree with what was measured on the mask. Pure: no model, no chance.

A sentence *holds* when something in it was checked and agrees; it is *contradicted* when a claim about the structure
is beyond the tolerance, *unfounded* when it states a number that no measurement covers, a *drawing* when it speaks of
the outline, which only the annotator saw. What is left (morphology in words) is *unmeasured*: it can be neither
confirmed nor refuted here, and stays.

| claim | measured as | tolerance |
|---|---|---|
| count | objects of the mask | exact to 4, then 25 %; none where objects run together |
| size | median equal-area diameter, from short to long axis | 30 % |
| share of area | pixels of the mask, of the tissue | 8 points, or 30 % of the share |
| place | shares of a 3 × 3 grid | the cells named hold a fifth of it, or the fullest one |
| shape | median elongation, 1 = round | round < 1.7, oval 1.1–2.5, elongated > 1.5 |
| darker, paler | mean grey inside and outside | 6 grey values to the side said; 18 for "about as dark" |
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsiseg.training.annotate.claims import Claim, Reading, Subject, read_sentence
from wsiseg.training.data.annotate import Findings, Look, find_in, look_at, merged
from wsiseg.training.data.chains import KEPT, Statement, Verdict

_DRAWING = re.compile(r"\b(?:outlin(?:e|es|ed|ing)|green|masks?|annotat\w+|highlight\w*|segmentation)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:no|not|none|nothing|without|absent|absence|lack\w*|never|neither|nor|cannot|rather than|instead|unlike)\b",
    re.IGNORECASE,
)
_FOLLOWS = re.compile(
    r"^(?:they|it|their|its|(?:these|those)\s+(?:are|have|lie|cover|fill|show|measure|appear))\b", re.IGNORECASE
)
_ROWS, _COLUMNS = np.divmod(np.arange(9), 3)
_CELLS = {
    "top": _ROWS == 0, "bottom": _ROWS == 2, "left": _COLUMNS == 0, "right": _COLUMNS == 2,
    "centre": np.arange(9) == 4, "upper left": np.arange(9) == 0, "upper right": np.arange(9) == 2,
    "lower left": np.arange(9) == 6, "lower right": np.arange(9) == 8,
}  # fmt: skip
_SHAPES = {"round": (1.0, 1.7), "oval": (1.1, 2.5), "elongated": (1.5, math.inf)}


@dataclass(frozen=True)
class Measured:
    """What is known of `concept` in an image: `found` None if it is not there, `mpp` None if it is not stated."""

    concept: str
    look: Look
    found: Findings | None
    mpp: float | None


def measure(concept_key: str, image: np.ndarray, mask: np.ndarray | None, mpp: float | None) -> Measured:
    """Measure `image` (H, W, 3) uint8 and `mask` (H, W), instance labels or 0/1; None: the structure is absent."""
    return Measured(concept_key, look_at(image), None if mask is None else find_in(image, mask), mpp)


def judge(sentences: Sequence[str], measured: Measured) -> list[Statement]:
    """A verdict on each sentence, in order: a "they" means what the sentence before spoke of, and goes with it."""
    statements: list[Statement] = []
    topic = None
    for text in sentences:
        if statements and statements[-1].verdict not in KEPT and _FOLLOWS.match(text):
            statements.append(Statement(text, "unfounded", "what it speaks of was taken out"))
            continue
        reading = read_sentence(text, measured.concept, topic)
        statements.append(_judged(text, reading, measured))
        topic = reading.topic
    return statements


def suffices(statements: Sequence[Statement], present: bool) -> bool:
    """Whether what is left is a chain: two sentences, and of what is there at least one that was checked."""
    kept = [statement.verdict for statement in statements if statement.verdict in KEPT]
    return len(kept) >= 2 and ("holds" in kept or not present)


def _judged(text: str, reading: Reading, measured: Measured) -> Statement:
    if _DRAWING.search(text):
        return Statement(text, "drawing", "speaks of the outline, which the model will not see")
    if reading.named and measured.found is None and not (reading.denied or _DENIAL.search(text)):
        return Statement(text, "contradicted", "the structure is not there")
    if reading.denied and measured.found is not None:
        return Statement(text, "contradicted", "the structure is there")
    checks = [(claim, check) for claim in reading.claims if (check := _check(claim, measured))]
    if any(claim.kind == "shape" and check.verdict == "holds" for claim, check in checks):
        # "round to oval" is true if either is
        checks = [(claim, check) for claim, check in checks if claim.kind != "shape" or check.verdict == "holds"]
    worst: tuple[Verdict, ...] = ("contradicted", "unfounded")
    for verdict in worst:
        if reasons := [check.because for _, check in checks if check.verdict == verdict]:
            return Statement(text, verdict, "; ".join(reasons))
    return Statement(text, "holds" if checks else "unmeasured")


def _check(claim: Claim, measured: Measured) -> Statement | None:
    """The verdict on one claim; None if it cannot be checked and states no number."""
    values = _values(claim, measured)
    if values is None:
        numeric = bool(re.search(r"\d", claim.said))
        return Statement(claim.said, "unfounded", f"“{claim.said}” was not measured") if numeric else None
    if any(ok for ok, _ in values):
        return Statement(claim.said, "holds")
    return Statement(claim.said, "contradicted", f"says “{claim.said}”, measured: {values[0][1]}")


def _values(claim: Claim, measured: Measured) -> list[tuple[bool, str]] | None:
    """Each measure that the claim may mean, as (does it agree, the measure in words); None: there is none."""
    if claim.kind == "share":
        shares = _shares(claim.about, measured)
        return [(_share_agrees(claim, share), f"{share:.0%} of the area") for share in shares] or None
    found = measured.found
    if claim.about != "target" or found is None:
        return None
    if claim.kind == "share_of_tissue":
        share = min(1.0, found.area_fraction / max(measured.look.tissue_fraction, 1e-6))
        return [(_share_agrees(claim, share), f"{share:.0%} of the tissue")]
    if claim.kind == "parts":
        return [(_count_agrees(claim, found.count), f"{found.count} parts")]
    if claim.kind == "count":
        agrees = _count_agrees(claim, found.count)
        return [(agrees, f"{found.count}")] if agrees or not merged(found) else None
    if claim.kind == "size_um":
        return None if measured.mpp is None else [_size(claim, found, measured.mpp)]
    if claim.kind == "place":
        return [_place(claim.word, found)]
    if claim.kind == "shape":
        low, high = _SHAPES[claim.word]
        return [(low <= found.elongation < high, f"long axis {found.elongation:.1f} times the short one")]
    if claim.kind == "tone":
        tones = {"darker": found.contrast > 6, "paler": found.contrast < -6, "as dark": abs(found.contrast) <= 18}
        return [(tones[claim.word], f"{found.contrast:+.0f} grey values darker than the rest")]
    return None


def _shares(about: Subject, measured: Measured) -> list[float]:
    shares = []
    if about == "target" and measured.found is not None:
        shares.append(measured.found.area_fraction)
    if about == "tissue" or (about == "target" and measured.concept == "tissue"):
        shares.append(measured.look.tissue_fraction)
    return [measured.look.dark_fraction] if about == "dark" else shares


def _share_agrees(claim: Claim, share: float) -> bool:
    slack = max(0.08, 0.3 * share)
    return claim.low - slack <= share <= claim.high + slack


def _count_agrees(claim: Claim, count: int) -> bool:
    slack = 0 if count <= 4 else math.ceil(0.25 * count)
    return claim.low - slack <= count <= claim.high + slack


def _size(claim: Claim, found: Findings, mpp: float) -> tuple[bool, str]:
    diameter, stretch = found.diameter_px * mpp, math.sqrt(found.elongation)
    agrees = claim.low <= 1.3 * diameter * stretch and claim.high >= 0.7 * diameter / stretch
    return agrees, f"about {diameter:.3g} µm wide"


def _place(word: str, found: Findings) -> tuple[bool, str]:
    row, column = found.fullest
    where = f"most in row {row + 1}, column {column + 1} of a 3 × 3 grid, {found.spread} cells hold some"
    if word == "everywhere":
        return found.spread >= 5, where
    cells = _CELLS[word]
    return bool(cells[3 * row + column] or np.asarray(found.cells)[cells].sum() >= 0.2), where
