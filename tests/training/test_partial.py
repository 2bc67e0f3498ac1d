"""What is trained from published parts holds only what training changed, and knows the rest by its hash."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.model.published import small_sam, write_dinov2, write_qwen
from wsiseg.cli.models import command as models
from wsiseg.errors import ModelError
from wsiseg.model import load_model
from wsiseg.model.base import find_base, name_base
from wsiseg.model.build import build_folder
from wsiseg.model.folder import folder_fingerprint, load_folder, own_tensors, save_changes, save_model, stored_tensors
from wsiseg.training.sft import SftRecipe, train
from wsiseg.training.trainable import TuningRecipe, changes, merged, set_trainable

RECIPE = SftRecipe(
    tuning="lora",
    steps=4,
    batch_images=2,
    queries_per_image=2,
    warmup_steps=1,
    precision="fp32",
    workers=0,
    validate_every=4,
    checkpoint_every=2,
    validation_images=0,
)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def begun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start built from published parts."""
    parts = tmp_path_factory.mktemp("parts")
    write_qwen(parts / "qwen", tied=request.param)
    write_dinov2(parts / "dinov2", registers=4, swiglu=True)
    torch.save(small_sam().state_dict(), parts / "medsam_vit_b.pth")
    build_folder(
        parts / "start",
        language=str(parts / "qwen"),
        pathology=str(parts / "dinov2"),
        sam=parts / "medsam_vit_b.pth",
        sam_kind="MedSAM",
    )
    return parts / "start"


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_changes_on_their_base_are_the_trained_model(begun: Path, tmp_path: Path, tuning: str) -> None:
    model = load_folder(begun)
    model.config = dataclasses.replace(model.config, untrained=())
    set_trainable(model, TuningRecipe(tuning=tuning), frozen=() if tuning == "lora" else ("vlm.model.visual",))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    name_base(begun, tmp_path)
    save_changes(model, changes(model), tmp_path / "model", tmp_path)
    save_model(merged(model), tmp_path / "whole")
    one, two = load_folder(tmp_path / "model").state_dict(), load_folder(tmp_path / "whole").state_dict()
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-6, rtol=1e-6, msg=key)
    assert stored_tensors(tmp_path / "model").keys() == stored_tensors(tmp_path / "whole").keys()
    assert folder_fingerprint(tmp_path / "model") != folder_fingerprint(begun)
    shown = CliRunner().invoke(models, ["show", str(tmp_path / "model")]).output
    assert f"holds what training changed; the rest is in {begun.resolve()}" in shown
    if tuning == "lora":
        kept = own_tensors(tmp_path / "model")
        adapted = ("vlm.model.language_model", "vlm.model.visual.encoder", "image_encoder.vit.blocks")
        assert all(":" in key for key in kept if key.startswith(adapted))
        assert any(key.endswith("embed_tokens.weight:rows") for key in kept)


def test_a_run_keeps_no_frozen_weight_resumes_exactly_and_can_be_the_next_base(
    begun: Path, store: Path, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, data=str(store), model=str(begun))
    whole = train(recipe, tmp_path / "whole")
    frozen = "vlm.model.language_model.layers.0.self_attn.q_proj"
    assert f"{frozen}.weight:lora_A" in own_tensors(whole)
    assert f"{frozen}.weight" not in own_tensors(whole)
    state = load_file(tmp_path / "whole" / "state" / "state.safetensors")
    assert f"module.model.{frozen}.lora_A.default.weight" in state
    assert f"module.model.{frozen}.base_layer.weight" not in state

    class Killed(Exception):
        pass

    def kill(step: int, values: dict[str, float]) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", report=kill)
    again = train(recipe, tmp_path / "cut", resume=True)
    one, two = load_folder(whole).state_dict(), load_folder(again).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert load_model(whole, device="cpu").name == "start"

    second = train(dataclasses.replace(recipe, model=str(whole), steps=1), tmp_path / "second")
    moved = load_folder(second).state_dict()
    assert any(not torch.equal(one[key], moved[key]) for key in one)


def test_another_base_is_refused_and_a_missing_one_is_asked_for(begun: Path, tmp_path: Path) -> None:
    base = tmp_path / "elsewhere" / "start"
    shutil.copytree(begun, base)
    model = load_folder(base)
    set_trainable(model, TuningRecipe(tuning="lora"))
    run = tmp_path / "run"
    run.mkdir()
    name_base(base, run)
    save_changes(model, changes(model), run / "model", run)
    load_folder(run / "model")

    shutil.move(base, tmp_path / "start")  # beside the run
    load_folder(run / "model")
    name = next(path.name for path in sorted((tmp_path / "start").glob("sam*.safetensors")))
    tensors = load_file(tmp_path / "start" / name)
    key = next(iter(tensors))
    save_file(tensors | {key: tensors[key] + 1}, tmp_path / "start" / name)
    with pytest.raises(ModelError, match=rf"{name} is not the file that .* was trained on"):
        load_folder(run / "model")
    (tmp_path / "start" / name).unlink()
    with pytest.raises(ModelError, match=f"lacks {name}"):
        load_folder(run / "model")
    shutil.rmtree(tmp_path / "start")
    with pytest.raises(ModelError, match=r"lies neither in .*copy it there, or build it again from language model"):
        load_folder(run / "model")


def test_a_base_beside_the_run_is_found_where_nobody_may_look_at_the_old_place(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: `Path.is_file` raises there, in Python 3.11.
    run = tmp_path / "bob" / "run"
    (run / "model").mkdir(parents=True)
    shutil.copytree(begun, tmp_path / "alice" / "start")
    name_base(tmp_path / "alice" / "start", run)
    shutil.copy(run / "base.json", run / "model")
    shutil.copytree(begun, tmp_path / "bob" / "start")
    stat = os.stat

    def private(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if "alice" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", private)
    assert find_base(run / "model") == tmp_path / "bob" / "start"


def test_a_base_that_is_called_as_the_model_itself_is_found_beside_the_run(begun: Path, tmp_path: Path) -> None:
    # Trap: training calls all that it writes `model`, the base of a second stage too.
    model = load_folder(begun)
    set_trainable(model, TuningRecipe(tuning="lora"))
    base = begun
    for run in (tmp_path / "sft", tmp_path / "rl"):
        run.mkdir()
        name_base(base, run)
        save_changes(model, changes(model), run / "model", run)
        base = run / "model"
    shutil.move(tmp_path / "sft" / "model", tmp_path / "model")
    assert find_base(tmp_path / "rl" / "model") == tmp_path / "model"
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ModelError, match=r"lies neither in .*copy it there"):
        find_base(tmp_path / "rl" / "model")
