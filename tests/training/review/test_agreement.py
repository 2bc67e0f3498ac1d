"""Agreement, on the examples of the papers, and of people who review one store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.training.review.conftest import bytes_of, discs, grown
from wsiseg.cli.main import main
from wsiseg.training.review.agreement import cohen_kappa, krippendorff_alpha
from wsiseg.training.review.session import Review
from wsiseg.training.review.votes import mask_dice


def test_alpha_is_that_of_krippendorffs_example() -> None:
    # Krippendorff 2011, section C: four observers, twelve units, some values missing.
    observers = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[value for value in unit if value != "."] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_kappa_is_that_of_two_readers_of_grant_proposals() -> None:
    # 20 both yes, 5 only the first, 10 only the second, 15 both no: p_o 0.7, p_e 0.5.
    first = "y" * 25 + "n" * 25
    second = "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_where_chance_explains_everything_nothing_is_claimed() -> None:
    assert cohen_kappa("aaa", "aaa") is None
    assert cohen_kappa("", "") is None
    assert krippendorff_alpha(["aa", "aaa", "b"]) is None
    assert krippendorff_alpha([]) is None


def test_the_report_of_two_and_of_three(person: Callable[[str], Review], store: Path) -> None:
    x, y = person("Dr. X"), person("Dr. Y")
    for i in range(8):
        x.decide(i, {"mask": "accepted", "chain": "accepted"})
        y.decide(i, {"mask": "rejected" if i in (1, 3) else "accepted"})
    x.correct_mask(0, bytes_of(grown()))
    said = CliRunner().invoke(main, ["data", "review", str(store), "--report", "--json"])
    assert said.exit_code == 0, said.stderr
    report = json.loads(said.stdout)
    assert [(t["name"], t["verdicts"]["mask"]) for t in report["tallies"]] == [
        ("Dr. X", {"accepted": 7, "corrected": 1, "rejected": 0}),
        ("Dr. Y", {"accepted": 6, "corrected": 0, "rejected": 2}),
    ]
    masks, chains = report["agreements"]
    assert (masks["shared"], masks["same"], masks["measure"]) == (8, 5 / 8, "Cohen's κ")
    assert masks["value"] == pytest.approx((5 / 8 - 42 / 64) / (1 - 42 / 64))
    assert (chains["shared"], chains["value"]) == (0, None)
    (pair,) = report["mask_pairs"]
    assert pair["dice"] == pytest.approx(mask_dice(grown(), discs(0).layers["gland"]))
    assert pair["dice"] < 0.97
    assert [subject["image"] for subject, _ in report["disagreements"]] == ["set/0", "set/0", "set/1"]
    z = person("<b>[bold]Z")
    for i in range(4):
        z.decide(i, {"mask": "accepted"})
    text = CliRunner().invoke(main, ["data", "review", str(store), "--report"]).stdout
    assert "masks: 3 reviewers share 8, say the same of 62%, Krippendorff's α" in text
    assert "<b>[bold]Z: accepted" in " ".join(text.split())
    assert "1 pairs" not in text
    assert "2 pairs, Dice" in text


def test_a_store_that_nobody_saw_says_so(store: Path) -> None:
    said = CliRunner().invoke(main, ["data", "review", str(store), "--report"])
    assert said.stdout == "Nobody has reviewed discs.zarr yet.\n"
