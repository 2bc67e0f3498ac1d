"""The commands that measure what an example is worth."""

from __future__ import annotations

from pathlib import Path

import orjson
from click.testing import CliRunner

from benchmarks.quality.one_shot import HALVES, WEIGHTS, main
from tests.model.small import small_model
from tests.training.conftest import start, store  # noqa: F401
from wsiseg.model.folder import save_model
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, write_quadruplets


def test_the_halves_are_compared_on_the_same_questions(store: Path, start: Path, tmp_path: Path) -> None:  # noqa: F811
    opened = QuadrupletStore.open(store)
    samples = [opened.sample(i) for i in opened.indices(split="val")][:2]
    questions = {s.name: [Quadruplet(0, "gland", "glands", "", True)] for s in samples}
    asked = write_quadruplets(tmp_path / "asked.zarr", samples, opened.sources, questions).path
    args = ["compare", str(asked), "--model", str(start), "--json", str(tmp_path / "o.json")]
    shown = CliRunner().invoke(main, args, catch_exceptions=False)
    for name in HALVES:
        assert f"| discs | gland | {name} | 2<br>0 |" in shown.stdout
    reports = orjson.loads((tmp_path / "o.json").read_bytes())
    assert {name: report["shots"] for name, report in reports.items()} == {
        "zero-shot": 0,
        "1-shot, mask only": 1,
        "1-shot, context only": 1,
        "1-shot, both": 1,
    }
    answers = {name: [case["reasoning"] for case in report["cases"]] for name, report in reports.items()}
    assert answers["zero-shot"] == answers["1-shot, mask only"] != answers["1-shot, both"]
    assert answers["1-shot, context only"] == answers["1-shot, both"]


def test_the_weight_is_swept_on_training_images(store: Path, tmp_path: Path) -> None:  # noqa: F811
    save_model(small_model(seed=4, stops=2.5), tmp_path / "talkative")
    args = ["calibrate", str(store), "--model", str(tmp_path / "talkative"), "--pairs", "8"]
    shown = CliRunner().invoke(main, args, catch_exceptions=False)
    assert "| discs, gland | " in shown.stdout
    assert float(shown.stdout.split()[-1]) in WEIGHTS
