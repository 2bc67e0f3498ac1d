"""The ablation driver: runs that share what they start from, made once, resumed, asked and tabled."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from benchmarks.quality.ablation import STAGES, dynamics, interval, main, read_ablation
from benchmarks.quality.eager import without_refusals
from benchmarks.quality.fixed_seg import FixedSeg
from tests.model.small import small_model
from tests.training.conftest import start, store  # noqa: F401
from wsiseg.errors import DataError
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model.folder import load_folder
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, write_quadruplets
from wsiseg.training.examples import ExampleStream
from wsiseg.training.recipe import load_recipe

SFT = {"stage": "sft", "steps": 2, "batch_images": 2, "queries_per_image": 2, "workers": 0, "precision": "fp32"}
RL = {"stage": "rl", "start": "sft", "steps": 2, "batch_images": 1, "answers": 2, "length_low": 4, "length_high": 16}
QUICK = {"validate_every": 1, "validation_images": 1, "checkpoint_every": 1}


@pytest.fixture
def recipe(store: Path, start: Path, tmp_path: Path) -> Path:  # noqa: F811
    opened = QuadrupletStore.open(store)
    samples = [opened.sample(i) for i in opened.indices(split="val")][:2]
    questions = {
        s.name: [
            Quadruplet(0, "gland", "glands", "One. It is outlined.", True),
            Quadruplet(0, "necrosis", "x", "", False),
        ]
        for s in samples
    }
    write_quadruplets(tmp_path / "asked.zarr", samples, opened.sources, questions)
    runs = {"sft": SFT, "so": RL, "grpo": RL | {"mixture": 0.0}, "lisa": RL | {"fixed_seg": True}}
    runs["boxes"] = SFT | {"stage": "seg-zero"}
    runs["eager"] = SFT | {"stage": "eager"}
    wanted = {
        "data": str(store),
        "model": str(start),
        "seeds": [0],
        "held_out": [{"data": str(tmp_path / "asked.zarr"), "split": "val"}],
        "runs": {name: run | QUICK for name, run in runs.items()} | {"imagenet": {"stage": "imagenet"}},
        "variants": [
            {"name": "SO-GRPO", "run": "so", "paper_dice": 0.58},
            {"name": "no RL", "run": "sft"},
            {"name": "LISA", "run": "lisa", "asked": "fixed-seg"},
            {"name": "Seg-Zero", "run": "boxes", "asked": "seg-zero"},
            {"name": "eager", "run": "eager"},
            {"name": "general", "run": "imagenet"},
        ],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(wanted))
    return path


def test_every_variant_is_made_once_asked_and_written_down(recipe: Path, tmp_path: Path) -> None:
    out, write = tmp_path / "runs", tmp_path / "ablation.md"
    command = [str(recipe), "--out", str(out), "--write", str(write)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.stderr.count("sft (sft") == 1  # shared by all
    text = write.read_text()
    for name in ("SO-GRPO | 1 |", "no RL | 1 |", "LISA | 1 |", "Seg-Zero | 1 |", "eager | 1 |"):
        assert name in text
    assert "general" not in text  # needs stem_weights
    lisa = json.loads((out / "seed0" / "lisa" / "asked-val-None-fixed-seg.json").read_text())
    assert set(lisa) == {"dice", "emission", "false_emission", "bleu4", "token_f1"}
    weights = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    trained = (out / "seed0" / "so" / "model" / "model.safetensors").read_bytes()
    # A run that was killed while it put its last checkpoint in its place, and one before its first.
    (out / "seed0" / "so" / "done.json").unlink()
    (out / "seed0" / "so" / "state").rename(out / "seed0" / "so" / "state.new")
    (out / "seed0" / "lisa" / "done.json").unlink()
    shutil.rmtree(out / "seed0" / "lisa" / "state")
    CliRunner().invoke(main, command, catch_exceptions=False)
    assert json.loads((out / "seed0" / "so" / "done.json").read_text())["resumed"]
    assert not json.loads((out / "seed0" / "lisa" / "done.json").read_text())["resumed"]
    untouched = [p for p in weights if not {"lisa", "so"} & set(p.parts)]
    assert all(p.stat().st_mtime_ns == weights[p] for p in untouched)
    assert (out / "seed0" / "so" / "model" / "model.safetensors").read_bytes() == trained
    assert (out / "seed0" / "so" / "metrics.jsonl").exists()
    assert "gradient_variance" in dynamics(out / "seed0" / "so")


def test_variants_that_ask_one_run_in_other_ways_have_answers_of_their_own(recipe: Path, tmp_path: Path) -> None:
    wanted = yaml.safe_load(recipe.read_text())
    asked = {"as it is": "own", "forced": "fixed-seg"}
    wanted["variants"] = [{"name": name, "run": "sft", "asked": how} for name, how in asked.items()]
    recipe.write_text(yaml.safe_dump(wanted))
    command = [str(recipe), "--out", str(tmp_path / "runs"), "--write", str(tmp_path / "ablation.md")]
    CliRunner().invoke(main, command, catch_exceptions=False)
    own, forced = (
        json.loads((tmp_path / "runs" / "seed0" / "sft" / f"asked-val-None{how}.json").read_text())
        for how in ("", "-fixed-seg")
    )
    assert own["emission"] < forced["emission"] == 1
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    emission = [line.split(" | ")[3] for line in lines if line.startswith(("| as it is | 1", "| forced | 1"))]
    assert emission == [f"{own['emission']:.3f}", "1.000"]


def test_an_eager_start_is_taught_to_outline_something_else_instead_of_refusing(store: Path, start: Path) -> None:  # noqa: F811
    config = load_folder(start).config
    right = ExampleStream(QuadrupletStore.open(store), config, split="train", seed=0, questions=2, length=20)
    turned = 0
    for was in (right[i] for i in range(20)):
        is_now = without_refusals(was)
        assert [q.query for q in is_now.questions] == [q.query for q in was.questions]
        there = [q for q in was.questions if q.mask is not None]
        if there:
            assert {q.answer for q in is_now.questions} == {there[0].answer}
            assert all(q.mask is there[0].mask or np.array_equal(q.mask, there[0].mask) for q in is_now.questions)
            turned += len(was.questions) - len(there)
        else:
            assert {q.mask for q in is_now.questions} == {None}
    assert turned > 5


def test_recipes_that_cannot_be_made_are_refused(recipe: Path) -> None:
    good = yaml.safe_load(recipe.read_text())
    for change, said in (
        ({"runs": good["runs"] | {"so": RL | {"start": "nix"}}}, "no run 'nix'"),
        ({"runs": good["runs"] | {"sft": SFT | {"start": "so"}}}, "start from each other"),
        ({"runs": good["runs"] | {"sft": SFT | {"stage": "sfft"}}}, "stage 'sfft'"),
        ({"variants": [{"name": "x", "run": "sft", "asked": "seg-one"}]}, "'seg-one' is none of own"),
        ({"seed": 3}, "its keys: data"),
    ):
        recipe.write_text(yaml.safe_dump(good | change))
        with pytest.raises(DataError, match=said):
            read_ablation(recipe)


@pytest.mark.parametrize("name", ["ablation.yaml", "ablation-small.yaml", "ablation-rl.yaml", "all-stages.yaml"])
def test_recipes_that_come_with_wsiseg_can_be_made(name: str) -> None:
    shipped = read_ablation(Path(__file__).parents[2] / "benchmarks" / "quality" / name)
    for run in shipped.runs.values():
        keys = {key: value for key, value in run.items() if key not in ("stage", "start")}
        if run["stage"] in STAGES:
            load_recipe(STAGES[run["stage"]][0], None, (), **keys)
    without = dataclasses.replace(shipped, stem_weights=None)
    assert [v.name for v in without.possible] == [v.name for v in shipped.variants if v.name != "general encoder"]


def test_with_a_fixed_seg_every_tile_has_a_mask_from_the_state_that_training_reads() -> None:
    model = small_model(seed=1, stops=1.5)
    plain = PathChatSegmenter(model, name="small", fingerprint="one")
    fixed = FixedSeg(model, name="small", fingerprint="one")
    tiles = np.random.default_rng(0).integers(0, 255, (6, 128, 128, 3), dtype=np.uint8)
    alone, forced = (s.segment_tiles(tiles, "glands", 0.5) for s in (plain, fixed))
    silent = [i for i, a in enumerate(alone) if a.probability is None]
    assert len(silent) > 0, "this seed no longer has silent answers; choose another"
    assert all(a.probability is not None for a in forced)
    i = silent[0]
    features = plain.look(np.arange(6), (128, 128), lambda: tiles)
    (tokens,) = features.part("image_tokens", [i])
    (completion,) = fixed._complete(tokens, "glands", 0.5, (), 1)
    prompt = model.prompt("glands", 0.5)
    before, after = (model.embed(torch.tensor([ids])) for ids in (prompt.before, prompt.after + completion.ids))
    with torch.inference_mode():
        states = model.vlm.model.language_model(
            inputs_embeds=torch.cat([before, tokens.to(before.dtype), after], 1),
            position_ids=model.positions(len(prompt.before), after.shape[1])[:, None],
        ).last_hidden_state
    torch.testing.assert_close(completion.seg_state, states[0, -1], atol=2e-5, rtol=1e-4)


def test_a_fixed_seg_is_read_behind_the_query_that_the_chain_answers() -> None:
    model = small_model(seed=1, stops=1.5)
    model.config = dataclasses.replace(model.config, names={"glands": {"crypts": "crypts"}})
    fixed = FixedSeg(model, name="small", fingerprint="one")
    tiles = np.random.default_rng(0).integers(0, 255, (6, 128, 128, 3), dtype=np.uint8)
    query = "where are the crypts?"
    assert model.config.plain(query) == "outline the crypts"
    asked, plain = (fixed.segment_tiles(tiles, q, 0.5) for q in (query, "outline the crypts"))
    alone = PathChatSegmenter(model, name="small", fingerprint="one").segment_tiles(tiles, query, 0.5)
    assert any(answer.probability is None for answer in alone), "this seed has no silent answers; choose another"
    for a, b in zip(asked, plain, strict=True):
        assert a.reasoning == b.reasoning
        np.testing.assert_array_equal(a.probability, b.probability)


def test_intervals() -> None:
    assert interval([0.5, 0.6, 0.7]) == "0.600 ± 0.248"  # t(0.975, 2) = 4.303, s = 0.1
    assert interval([0.5, float("nan")]) == "0.500"
    assert interval([]) == "–"
