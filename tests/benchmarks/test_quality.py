"""The baselines of the quality table, and the table itself."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.quality import gallery, run, train_unet
from benchmarks.quality.baselines import (
    EOSIN,
    HAEMATOXYLIN,
    AllForeground,
    ClosedSet,
    StainThreshold,
    haematoxylin_density,
)
from benchmarks.quality.unet import UNet, count_parameters, width_for
from tests.model.small import small_model
from wsiseg.errors import DataError
from wsiseg.inference import Segmenter, devices
from wsiseg.inference.devices import copies_of
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.testing import FakeModel
from wsiseg.training import evaluate
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample, SourceInfo, write_quadruplets
from wsiseg.training.evaluate import judge
from wsiseg.training.figures import Case

H, E = HAEMATOXYLIN / np.linalg.norm(HAEMATOXYLIN), EOSIN / np.linalg.norm(EOSIN)


def stained(haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
    """Beer–Lambert: (H, W) amounts of two stains -> (H, W, 3) uint8."""
    density = haematoxylin[..., None] * H + eosin[..., None] * E
    return np.round(255 * 10**-density).astype(np.uint8)


def test_deconvolution_recovers_how_much_haematoxylin_there_is() -> None:
    haematoxylin, eosin = np.meshgrid(np.linspace(0, 0.9, 10), np.linspace(0, 0.5, 6))
    found = haematoxylin_density(stained(haematoxylin, eosin))
    assert found == pytest.approx(haematoxylin, abs=0.02)  # bytes are rounded


def test_the_stain_threshold_finds_nuclei_and_never_glass() -> None:
    rows, columns = np.ogrid[:128, :128]
    nucleus = (rows - 40) ** 2 + (columns - 30) ** 2 < 15**2
    noise = np.random.default_rng(0).normal(0, 0.01, (128, 128))
    tile = stained(np.where(nucleus, 0.6, 0.05) + noise, np.full((128, 128), 0.3))
    tile[:, 90:] = 250
    glass = np.full_like(tile, 248)
    model = StainThreshold(FakeModel())
    found, _ = model.segment_tiles(np.stack([tile, glass]), "nuclei", 0.5)
    assert found.probability is not None
    assert np.array_equal(found.probability > 0.5, nucleus)
    assert model.segment_tiles(glass[None], "nuclei", 0.5)[0].probability is None


def test_baselines_take_the_models_tiles() -> None:
    like = FakeModel(mpp=0.7, tile_size=96, overlap=24)
    model = AllForeground(like)
    assert (model.tile_size, model.overlap, model.mpp_for("brown")) == (96, 24, 0.7)
    (mask,) = model.segment_tiles(np.zeros((1, 96, 96, 3), np.uint8), "anything", 0.7)
    assert mask.probability is not None
    assert mask.probability.min() == 1


def test_the_unet_has_the_size_asked_for_and_keeps_the_images_size() -> None:
    width = width_for(6_000_000, 2)
    assert count_parameters(UNet(width, 2)) == pytest.approx(6_000_000, rel=0.1)
    assert UNet(4, 3).eval()(torch.rand(2, 3, 64, 96)).shape == (2, 3, 64, 96)


def test_a_closed_set_is_silent_about_what_it_has_no_channel_for() -> None:
    concept_of = {"the crypts": "gland", "any nuclei?": "nucleus", "dead tissue": "necrosis"}

    def network(images: torch.Tensor) -> torch.Tensor:
        assert images.max() <= 1
        return torch.stack([images[:, 0] - 0.5, torch.full_like(images[:, 0], -9)], dim=1)

    model = ClosedSet("net", FakeModel(), network, ("gland", "nucleus"), concept_of)
    tiles = np.full((1, 128, 128, 3), 255, np.uint8)
    probability = [model.segment_tiles(tiles, query, 1.0)[0].probability for query in concept_of]
    assert probability[0] is not None
    assert probability[0].min() > 0.5
    assert probability[1:] == [None, None]


@pytest.fixture
def data(tmp_path: Path) -> QuadrupletStore:
    """Round glands on eosin, two images to train on and two to validate."""
    rows, columns = np.ogrid[:96, :96]
    samples, questions = [], {}
    for k, split in enumerate(("train", "train", "val", "val")):
        gland = (rows - 40 - 4 * k) ** 2 + (columns - 45) ** 2 < (18 + k) ** 2
        samples.append(
            Sample(
                image=stained(np.where(gland, 0.5, 0.05), np.full((96, 96), 0.2)),
                layers={"gland": gland.astype(np.uint16)},
                present=("gland",),
                absent=("nucleus",),
                mpp=1.0,
                source="disks",
                group=f"patient {k}",
                split=split,
                name=f"image {k}",
            )
        )
        questions[f"image {k}"] = [
            Quadruplet(0, "gland", "where is brown?", "one gland", True),
            Quadruplet(0, "nucleus", "where is yellow?", "no nuclei", False),
        ]
    info = SourceInfo("disks", "CC0", "made here", "stated 1.0", "by image")
    return write_quadruplets(tmp_path / "disks.zarr", samples, {"disks": info}, questions)


def test_training_continues_from_its_checkpoint_and_refuses_anothers(
    data: QuadrupletStore, tmp_path: Path
) -> None:
    settings = {"parameters": 8000, "minutes": 5, "size": 32, "batch": 2, "workers": 0}
    out, channels = tmp_path / "unet.pt", ("gland", "nucleus")
    first = train_unet.train(data, out, channels=channels, max_steps=2, **settings)
    second = train_unet.train(data, out, channels=channels, max_steps=5, **settings)
    assert (first["step"], second["step"]) == (2, 5)
    assert second["seconds"] > first["seconds"] > 0
    network, state = train_unet.load(out)
    assert state["step"] == 5
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    spent = train_unet.train(data, out, channels=channels, **{**settings, "minutes": 0})
    assert spent["step"] == 5
    with pytest.raises(DataError, match="other settings"):
        train_unet.train(data, out, channels=("gland",), **settings)


def test_views_know_which_channels_have_a_truth(data: QuadrupletStore) -> None:
    view = train_unet.Targets(data, ("gland", "nucleus", "necrosis"), 64, 0, {})[3]
    again = train_unet.Targets(data, ("gland", "nucleus", "necrosis"), 64, 0, {})[3]
    assert view.image.shape == (3, 64, 64)
    assert view.masks.shape == (3, 64, 64)
    assert view.known.tolist() == [True, True, False]
    assert not view.masks[1:].any()
    assert torch.equal(view.image, again.image)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(devices, "_QUOTA", tmp_path / "none")  # of a container, which may be allowed one
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_one_core_answers_one_question_in_all_methods(
    data: QuadrupletStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PathChatSegmenter(small_model(), name="small", fingerprint="one")
    assert len(copies_of(model)) == 2
    asked: list[tuple[str, int, int]] = []

    def judged(copy: Segmenter, *rest: Any) -> Case:
        asked.append((threading.current_thread().name, torch.get_num_threads(), len(copies_of(copy))))
        return judge(copy, *rest)

    monkeypatch.setattr(run, "load_model", lambda name, device=None: model)
    monkeypatch.setattr(evaluate, "judge", judged)
    arguments = [str(data.path), "--method", "model", "--method", "stain", "--out", str(tmp_path / "quality.md")]
    CliRunner().invoke(run.main, arguments, catch_exceptions=False)
    assert asked == [(threading.current_thread().name, 1, 1)] * 2 * 4  # four questions of each method


@pytest.mark.usefixtures("two_threads")
def test_the_table_keeps_what_was_measured_before(
    data: QuadrupletStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_model", lambda name, device=None: FakeModel(mpp=1.0))
    out = tmp_path / "quality.md"
    for method in ("foreground", "stain", "stain"):
        arguments = [str(data.path), "--method", method, "--out", str(out)]
        result = CliRunner().invoke(run.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    entries = json.loads((tmp_path / "quality.json").read_bytes())
    assert [entry["method"] for entry in entries] == ["foreground", "stain"]
    stain = next(row for row in entries[1]["figures"] if row["concept"] == "gland")
    assert stain["dice"]["value"] > 0.95
    for fingerprint in ("1bb9ece0", "f863f49c", "f863f49c"):
        model = PathChatSegmenter(small_model(), name="small", fingerprint=fingerprint)
        monkeypatch.setattr(run, "load_model", lambda name, device=None, model=model: model)
        arguments = [str(data.path), "--method", "earlier", "--model", "runs/old", "--out", str(out)]
        CliRunner().invoke(run.main, arguments, catch_exceptions=False)
    page = out.read_text()
    assert "| questions | earlier small (1bb9ece0) | earlier small (f863f49c) | all foreground | haematoxylin" in page
    assert "`wsiseg evaluate runs/old disks.zarr --split val`" in page
    assert page.count("| disks | gland | all foreground |") == 1
    glance, _, _ = page.partition("## disks.zarr")
    assert re.search(r"\| disks \| gland \| val \| 2 \|.*\| 0\.\d{3} \| (0\.9[5-9]|1\.0)\d* \|", glance)
    assert re.search(r"\| disks \| not in this set \| val \| 2 \|.*\| 0\.000 \|", glance)
    assert "| all | val |" not in glance  # the same as of its one structure
    assert "`python -m benchmarks.quality.run disks.zarr --method stain --model tiny --split val`" in page


def test_the_gallery_draws_the_models_outline_and_the_truth_round_the_structure(data: QuadrupletStore) -> None:
    questions = gallery.first_questions(data, "disks", "gland", 5)
    assert [(data.records[q.image].split, q.query) for q in questions] == [("val", "where is brown?")] * 2
    picture = np.asarray(gallery.cell(StainThreshold(FakeModel(mpp=1.0)), data, questions[0]))
    scale = gallery.SIDE_PX / 96
    rows, columns = np.nonzero((picture == gallery.YELLOW).all(-1))
    radius = np.hypot(rows / scale - (40 + 4 * 2), columns / scale - 45)
    assert np.all(np.abs(radius - 20) < 2)  # of image 2
    assert len(rows) > 2 * np.pi * 20 * scale
    knows_nothing = ClosedSet("net", FakeModel(mpp=1.0), torch.nn.Identity(), (), {"where is brown?": "gland"})
    silent = np.asarray(gallery.cell(knows_nothing, data, questions[0]))
    assert not (silent == gallery.YELLOW).all(-1).any()
    assert (silent[: gallery.SIDE_PX] == gallery.WHITE).all(-1).sum() > 5 * 20 * scale  # a thin line round it
