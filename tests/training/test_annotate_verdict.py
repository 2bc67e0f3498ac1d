"""What the validator lets stand: all that the template says, nothing that the mask contradicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.training.annotate.verdict import Measured, judge, measure
from wsiseg.training.data.annotate import Findings, Look, describe, refuse
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.rl.rewards import sentences

NAMED = sorted(key for key, concept in CONCEPTS.items() if not concept.thing)
LOOK = Look(tissue_fraction=0.8, dark_fraction=0.1, rgb=(200.0, 120.0, 160.0), roughness=10.0)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A picture (96, 96, 3) with up to 30 discs or ellipses, labelled or as 0/1, darker or paler than the rest."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y, x = np.mgrid[:96, :96]
    mask = np.zeros((96, 96), np.uint16)
    for label in range(1, draw(st.integers(1, 30)) + 1):
        cy, cx, ry, rx = *rng.uniform(0, 96, 2), *rng.uniform(2, draw(st.sampled_from((5, 12, 40))), 2)
        mask[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = label
    mask[48, 48] = 1
    colours = rng.integers(40, 256, (2, 3))
    image = np.clip(np.where(mask[..., None] > 0, *colours) + rng.normal(0, 15, (96, 96, 1)), 0, 255).astype(np.uint8)
    return image, mask if draw(st.booleans()) else (mask > 0).astype(np.uint16)


@settings(max_examples=60, deadline=None)
@given(pictures(), st.sampled_from(["gland", "nucleus", "malignant", "stroma", "cartilage", "fibroblasts"]), st.data())
def test_what_the_template_says_always_stands(
    picture: tuple[np.ndarray, np.ndarray], concept: str, data: st.DataObject
) -> None:
    image, mask = picture
    mpp = data.draw(st.sampled_from([None, 0.25, 1.3]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    said = sentences(describe(image, mask, concept, mpp, rng))[:-1]
    for statement in judge(said, measure(concept, image, mask, mpp)):
        assert statement.verdict == "holds" or "is almost empty" in statement.text, statement
    absent = data.draw(st.sampled_from(NAMED).filter(lambda key: key != "tissue"))
    for statement in judge(sentences(refuse(image, absent, rng))[:-1], measure(absent, image, None, mpp)):
        assert statement.verdict in ("holds", "unmeasured"), (absent, statement)


def found(**changes: object) -> Measured:
    """Seven oval glands of 50 µm on the left, 20 % of the tile, darker than the rest."""
    cells = (0.3, 0.05, 0.0, 0.35, 0.05, 0.0, 0.25, 0.0, 0.0)
    values = {"count": 7, "diameter_px": 100.0, "elongation": 1.5, "area_fraction": 0.2, "cells": cells}
    values |= {"fullest": (1, 0), "spread": 5, "contrast": 30.0} | changes
    return Measured("gland", LOOK, Findings(**values), 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Seven glands lie on the left.", "holds"),
        ("About 8 large, crowded crypts can be counted.", "holds"),  # a quarter either way
        ("There are twelve glands.", "contradicted"),
        ("Twenty-seven glands can be counted.", "contradicted"),
        ("Between 5 and 9 glands are visible.", "holds"),
        ("More than 20 glands are visible.", "contradicted"),
        ("Several glands are seen.", "holds"),
        ("A single gland is seen.", "contradicted"),
        ("The glands measure 40–60 µm across.", "holds"),
        ("The glands are about 0.2 mm wide.", "contradicted"),
        ("The glands cover roughly a quarter of the field.", "holds"),
        ("The glands fill about 60 % of the tile.", "contradicted"),
        ("About 25 % of the tissue is glandular: the glands are dense.", "holds"),  # 0.2 of 0.8
        ("The glands cover most of the image.", "contradicted"),
        ("The glands sit in the lower-right corner.", "contradicted"),
        ("The glands lie in the upper left.", "holds"),  # a third of them
        ("Glands are found all over the tile.", "holds"),
        ("The glands are round to oval.", "holds"),
        ("The glands are round.", "holds"),
        ("The glands are paler than the surrounding stroma.", "contradicted"),
        ("No glands are seen in this field.", "contradicted"),
        ("The largest gland lies in the lower right corner.", "unmeasured"),  # of one gland nothing was measured
        ("No dysplastic glands are seen.", "unmeasured"),
        ("Neither visible glands nor crypts are seen.", "contradicted"),
        ("The glands are lined by tall columnar cells without loss of polarity.", "unmeasured"),
        ("Their nuclei lie at the bottom of the cells and are elongated.", "unmeasured"),  # of nuclei, not of glands
        ("Two layers of cells line each lumen.", "unmeasured"),
        ("The nuclei measure 9 µm.", "unfounded"),
        ("30 % of the glands are dilated.", "unfounded"),
        ("The Gleason score is 7.", "unfounded"),
        ("The green outline runs along the glands.", "drawing"),
    ],
)
def test_a_statement_is_checked_against_the_mask(text: str, verdict: str) -> None:
    (statement,) = judge([text], found())
    assert statement.verdict == verdict, statement


def test_they_are_what_was_spoken_of() -> None:
    first, second = judge(["Glands are seen on the left.", "They cover about 70 % of the tile."], found())
    assert (first.verdict, second.verdict) == ("holds", "contradicted")
    assert second.because == "says “about 70 % of the tile”, measured: 20% of the area"
    first, second = judge(["There are 30 glands.", "They are oval."], found())
    assert (first.verdict, second.verdict) == ("contradicted", "unfounded")  # they went with the thirty
    first, second = judge(["The stroma is pink.", "It covers about 70 % of the tile."], found())
    assert second.verdict == "unfounded"  # of the stroma nothing was measured


def test_what_was_not_measured_is_not_confirmed() -> None:
    without_scale = Measured("gland", LOOK, found().found, None)
    assert judge(["The glands are 50 µm wide."], without_scale)[0].verdict == "unfounded"
    run_together = found(count=1, area_fraction=0.5)
    assert judge(["12 glands are seen."], run_together)[0].verdict == "unfounded"
    nothing = Measured("cartilage", LOOK, None, 0.5)
    assert judge(["Two islands of cartilage are seen."], nothing)[0].verdict == "contradicted"
    assert judge(["Cartilage would show lacunae; there are none."], nothing)[0].verdict == "unmeasured"
