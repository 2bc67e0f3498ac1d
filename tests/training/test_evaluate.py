"""`wsiseg evaluate`: images go a slide's road and come back, figures fall where they should."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.model.small import small_model
from wsiseg.cli.evaluate import command
from wsiseg.errors import DataError
from wsiseg.inference import TileMask
from wsiseg.inference.devices import SeveralDevices
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.shots import Shot
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample, SourceInfo, write_quadruplets
from wsiseg.training.evaluate import answer, evaluate, open_stores
from wsiseg.training.figures import ALL, ELSEWHERE, figures, report_json, summarise

DARK = 100


class Darkness:
    """Outlines what is dark; silent where nothing is, or when asked for necrosis."""

    name, fingerprint, tile_size, overlap = "darkness", "d1", 64, 16

    def __init__(self, mpp: float = 0.5) -> None:
        self.mpp = mpp
        self.asked: list[tuple[str, float]] = []

    def mpp_for(self, query: str) -> float:
        return self.mpp

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        assert tiles.shape[1:] == (64, 64, 3)
        assert tiles.dtype == np.uint8
        self.asked.append((query, mpp))
        dark = np.clip((255 - tiles.mean(axis=3)) / (255 - DARK), 0, 1).astype(np.float32)
        if "necrosis" in query:
            return [TileMask(None, "there is no necrosis", 0.0) for _ in tiles]
        return [
            TileMask(d, f"{round(d.sum())} px are dark", 1.0)
            if (d > 0.5).any()
            else TileMask(None, "nothing", 0.0)
            for d in dark
        ]


def disk(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    return (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2


def picture(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, DARK, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize("size", [(64, 64), (40, 50), (150, 131)])
def test_at_the_models_own_scale_a_mask_comes_back_pixel_for_pixel(size: tuple[int, int]) -> None:
    mask = disk(*size, 0.4 * size[0], 0.6 * size[1], 0.3 * min(size))
    assert np.array_equal(answer(Darkness(), picture(mask), 0.5, "dark").mask, mask)
    # Without a scale the image is taken as it is.
    assert np.array_equal(answer(Darkness(mpp=3.0), picture(mask), None, "dark").mask, mask)


@pytest.mark.parametrize("model_mpp", [0.2, 0.31, 0.9, 1.3])
def test_at_another_scale_the_outline_stays_within_a_model_pixel(model_mpp: float) -> None:
    from scipy.ndimage import binary_dilation, binary_erosion

    mask = disk(301, 257, 160, 120, 90)
    found = answer(Darkness(model_mpp), picture(mask), 0.5, "dark").mask
    assert found.shape == mask.shape
    reach = math.ceil(max(1.0, model_mpp / 0.5))
    assert not (found & ~binary_dilation(mask, iterations=reach)).any()
    assert not (binary_erosion(mask, iterations=reach) & ~found).any()
    y, x = np.nonzero(found)
    assert (y.mean(), x.mean()) == pytest.approx((159.5, 119.5), abs=0.1)  # no half-pixel shift


def test_the_chain_is_that_of_the_tile_with_the_largest_mask() -> None:
    mask = np.zeros((64, 160), bool)
    mask[10:14, 10:14] = mask[20:40, 120:140] = True
    assert answer(Darkness(), picture(mask), 0.5, "dark").reasoning == "400 px are dark"
    empty = answer(Darkness(), picture(mask), 0.5, "necrosis")
    assert not empty.mask.any()
    assert empty.reasoning == "there is no necrosis"


@pytest.fixture
def data(tmp_path: Path) -> QuadrupletStore:
    """Two patients for validation, each with dark glands; one image for training."""
    samples, questions = [], {}
    for name, group, split in (("a", "p1", "val"), ("b", "p2", "val"), ("c", "p3", "train")):
        mask = disk(64, 96, 30, 40, 12 if name == "a" else 20)
        samples.append(
            Sample(
                image=picture(mask),
                layers={"gland": mask.astype(np.uint16)},
                present=("gland",),
                absent=("necrosis", "bone"),
                mpp=0.5,
                source="disks",
                group=group,
                split=split,
                name=name,
            )
        )
        questions[name] = [
            Quadruplet(0, "gland", "outline the glands", f"{int(mask.sum())} px are dark", True),
            Quadruplet(0, "necrosis", "is there necrosis?", "there is no necrosis", False),
            Quadruplet(0, "bone", "outline the bone", "no bone", False),
        ]
    info = SourceInfo("disks", "CC0", "made here", "stated 0.5", "by patient")
    return write_quadruplets(tmp_path / "disks.zarr", samples, {"disks": info}, questions)


def test_a_report_has_a_row_per_structure_and_one_for_what_was_asked_in_vain(data: QuadrupletStore) -> None:
    model, steps = Darkness(), []
    report = evaluate(model, data, progress=lambda done, total: steps.append((done, total)))
    assert {query for query, _ in model.asked} == {
        "outline the glands",
        "is there necrosis?",
        "outline the bone",
    }
    assert {mpp for _, mpp in model.asked} == {0.5}
    assert steps[-1] == (6, 6)
    rows = {row.concept: row for row in report.rows}
    assert list(rows) == [ALL, "gland", ELSEWHERE]
    gland = rows["gland"]
    assert (gland.n_present, gland.n_absent) == (2, 0)
    assert gland.dice.value == gland.ciou.value == gland.sensitivity.value == gland.bleu4.value == 1
    assert gland.hd95.value == 0
    assert gland.hd95_unit == "µm"
    assert math.isnan(gland.specificity.value)
    # Silent on necrosis, right; a mask for bone, wrong.
    assert rows[ELSEWHERE].specificity.value == rows[ELSEWHERE].giou.value == 0.5
    assert rows[ALL].presence_accuracy.value == pytest.approx(4 / 6)
    assert (rows[ALL].giou_present.value, rows[ALL].giou_absent.value) == (1, 0.5)


def test_figures_by_hand_from_cases(data: QuadrupletStore) -> None:
    first, second = (c for c in evaluate(Darkness(), data).cases if c.concept == "gland")
    # One gland half found (I 50, P 50, G 100), the other missed: silence costs Dice 0 and the diagonal.
    half = replace(first, intersection_px=50, predicted_px=50, truth_px=100, hd95_px=8.0)
    missed = replace(second, intersection_px=0, predicted_px=0, truth_px=100, emitted=False, hd95_px=100.0)
    _, row = summarise([half, missed])
    assert row.dice.value == pytest.approx((100 / 150 + 0) / 2)
    assert row.giou.value == pytest.approx(0.25)
    assert row.ciou.value == pytest.approx(50 / 200)
    assert row.hd95.value == pytest.approx(0.5 * (8 + 100) / 2)
    assert row.sensitivity.value == 0.5
    assert (row.dice.low, row.dice.high) == pytest.approx((0, 2 / 3))
    assert figures(row)["HD95"] == "27.0 µm\n4–50"
    unknown_scale = [replace(case, mpp=None) for case in (half, missed)]
    assert figures(summarise(unknown_scale)[1])["HD95"].startswith("54.0 px")


def test_a_method_without_words_has_no_text_figures(data: QuadrupletStore) -> None:
    cases = [
        replace(case, reasoning="", bleu4=0.0, token_f1=0.0) for case in evaluate(Darkness(), data).cases
    ]
    row = summarise(cases)[0]
    assert figures(row)["BLEU-4"] == figures(row)["token F1"] == "–"


def test_json_holds_every_case_and_no_nan(data: QuadrupletStore) -> None:
    report = evaluate(Darkness(), data, limit=3)
    said = json.loads(report_json(report))
    assert len(said["cases"]) == 3
    assert {case["image"] for case in said["cases"]} == {"a", "b"}  # spread over the split
    assert (said["model"], said["fingerprint"], said["split"]) == ("darkness", "d1", "val")
    assert said["rows"][0]["dice"]["n"] == said["rows"][0]["n_present"]


def test_an_empty_split_is_an_error_that_names_those_there_are(data: QuadrupletStore) -> None:
    with pytest.raises(DataError, match="'test'; it has: train, val"):
        evaluate(Darkness(), data, split="test")


def test_the_command_prints_a_table_and_writes_json(
    data: QuadrupletStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(name: str, *, device: str | None, weights: str) -> Darkness:
        loaded.append((name, device, weights))
        return Darkness()

    monkeypatch.setattr("wsiseg.model.load_model", load)
    out = tmp_path / "out.json"
    asked = ["tiny", str(data.path), "--split", "val", "--json", str(out), "--devices", "0,1", "--weights", "4bit"]
    result = CliRunner().invoke(command, asked)
    assert result.exit_code == 0, result.output
    assert loaded == [("tiny", "0,1", "4bit")]
    assert "gland" in result.stdout
    assert "Dice" in result.stdout
    assert len(json.loads(out.read_bytes())["cases"]) == 6


def test_several_devices_are_asked_at_once_and_give_the_figures_of_one(data: QuadrupletStore) -> None:
    met = threading.Barrier(2, timeout=10)

    class Met(PathChatSegmenter):
        def with_shots(self, shots: Sequence[Shot]) -> PathChatSegmenter:
            met.wait()  # broken, and the test fails, unless two questions are asked at once
            return super().with_shots(shots)

    example = Shot(data.sample(2).image, data.sample(2).layers["gland"] > 0, 0.5)
    models = [kind(small_model(seed=3, stops=1.5), name="small", fingerprint="s") for kind in (Met, Met)]
    two = evaluate(SeveralDevices(models), data, examples=[example])
    one = evaluate(PathChatSegmenter(models[0].model, name="small", fingerprint="s"), data, examples=[example])
    assert [replace(case, seconds=0.0) for case in two.cases] == [replace(case, seconds=0.0) for case in one.cases]
    assert {case.emitted for case in one.cases} == {True, False}
    assert (two.model, two.fingerprint, two.data, two.shots) == (one.model, one.fingerprint, one.data, one.shots)


def test_several_stores_or_a_folder_of_them_are_one_report(data: QuadrupletStore, tmp_path: Path) -> None:
    folder = tmp_path / "stores"
    for name in ("a.zarr", "b.zarr"):
        shutil.copytree(data.path, folder / name)
    (folder / "notes.txt").write_text("mine")
    stores = open_stores([str(data.path), str(folder), str(folder / "a.zarr")])
    assert [store.path for store in stores] == [data.path, folder / "a.zarr", folder / "b.zarr"]
    report = evaluate(Darkness(), *stores)
    one = evaluate(Darkness(), data)
    assert len(report.cases) == 3 * len(one.cases)
    assert [row.dice.value for row in report.rows] == pytest.approx([row.dice.value for row in one.rows], nan_ok=True)
    assert report.rows[0].n_present == 3 * one.rows[0].n_present
    with pytest.raises(DataError, match=r"notes\.txt is not a quadruplet store"):
        open_stores([str(folder / "notes.txt")])


def test_silence_about_the_absent_is_right_and_each_way_of_being_wrong_counts(data: QuadrupletStore) -> None:
    case = evaluate(Darkness(), data, limit=1).cases[0]
    pixels = [(4, 4, 8), (0, 0, 2), (0, 0, 0), (0, 1, 0), (0, 0, 0)]  # |P∩G|, |P|, |G|
    cases = [
        replace(case, intersection_px=i, predicted_px=p, truth_px=g, present=g > 0, emitted=p > 0) for i, p, g in pixels
    ]
    row = summarise(cases)[0]
    assert (row.n_present, row.n_absent) == (2, 3)
    assert row.giou.value == pytest.approx((0.5 + 0 + 1 + 0 + 1) / 5)
    assert (row.giou_present.value, row.giou_absent.value) == pytest.approx(((0.5 + 0) / 2, 2 / 3))
    assert row.ciou.value == pytest.approx(4 / (8 + 2 + 0 + 1 + 0))
    assert (row.sensitivity.value, row.specificity.value) == pytest.approx((1 / 2, 2 / 3))
    assert row.presence_accuracy.value == pytest.approx(3 / 5)
    silent = summarise(cases[2:3])[0]
    assert math.isnan(silent.ciou.value)
    assert math.isnan(silent.giou_present.value)
    assert math.isnan(silent.sensitivity.value)
