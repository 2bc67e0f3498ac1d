"""LoRA adapters as peft saves them: folded in exactly, refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.model.small import byte_tokenizer, small_config
from wsiseg.cli.main import main
from wsiseg.errors import ModelError
from wsiseg.model.config import PathChatConfig, PathologyEncoderConfig
from wsiseg.model.folder import build_model, load_folder, save_model
from wsiseg.model.lora import merge_adapter, merge_folder
from wsiseg.model.pathchat import PathChatSegR1

# For `LoraConfig(target_modules=…)` on `model` or `model.vlm`. A regex, because short names such as `gate_proj` or
# `proj` occur in more than one part; and every projection of both transformers, which short names of another
# library's layout would miss without a word.
_TARGETS = (
    r".*(language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    r"|visual\.encoder\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2)))"
)


def small_dinov2_config(tied: bool = True) -> PathChatConfig:
    arguments = {"depth": 1, "num_heads": 2, "mlp_width": 24, "swiglu": True, "registers": 4}
    eye = PathologyEncoderConfig(kind="dinov2", image_size=56, patch_size=14, width=16, arguments=arguments)
    return replace(small_config(tie_word_embeddings=tied), pathology=eye)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(build_model(small_dinov2_config(), byte_tokenizer()), tmp_path / "base")
    return tmp_path / "base"


def trained_adapter(folder: Path, out: Path, *, whole: bool, seg_row: bool = False) -> PathChatSegR1:
    """Save an adapter with non-zero weights; returns the model that carries it, unmerged."""
    model = load_folder(folder)
    rows = [model.tokenizer.seg] if seg_row else None
    config = LoraConfig(r=4, lora_alpha=8, target_modules=_TARGETS, trainable_token_indices=rows)
    wrapped = get_peft_model(model if whole else model.vlm, config)  # type: ignore[arg-type]
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name or "trainable_tokens" in name:
                value.normal_(std=0.2)
    wrapped.save_pretrained(str(out))
    return model.eval()


def outputs(model: PathChatSegR1) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        image = model.image_tokens(torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
        words = model.embed(torch.arange(8)[None])
        embedded = torch.cat([image, words], dim=1)
        at = torch.arange(embedded.shape[1]).expand(3, 1, -1)
        states = model.vlm.model.language_model(inputs_embeds=embedded, position_ids=at, use_cache=False)
        return image, model.vlm.lm_head(states.last_hidden_state)


@pytest.mark.parametrize("whole", [True, False], ids=["of the whole model", "of its vlm"])
def test_the_merged_model_is_the_adapted_model(base: Path, tmp_path: Path, whole: bool) -> None:
    adapted = outputs(trained_adapter(base, tmp_path / "adapter", whole=whole, seg_row=not whole))
    shown = CliRunner().invoke(main, ["models", "merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "m")])
    assert shown.exit_code == 0, shown.stderr
    merged = load_folder(tmp_path / "m")
    for ours, theirs, before in zip(outputs(merged), adapted, outputs(load_folder(base)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert (ours - before).abs().max() > 1e-2
    # Trap: training the tied table through modules_to_save unties it; one trained row keeps the tie.
    assert merged.vlm.lm_head.weight is merged.vlm.model.language_model.embed_tokens.weight
    changed = (merged.vlm.lm_head.weight != load_folder(base).vlm.lm_head.weight).any(dim=1)
    assert changed.nonzero().flatten().tolist() == ([] if whole else [merged.tokenizer.seg])


def test_what_an_adapter_leaves_alone_is_stored_as_it_was(base: Path, tmp_path: Path) -> None:
    # Trap: the language model's 16 bits for all: they move the mask decoder's frequencies of positions.
    before = load_file(base / "model.safetensors")
    before = {key: value.bfloat16() if "language_model" in key else value for key, value in before.items()}
    save_file(before, base / "model.safetensors")
    trained_adapter(base, tmp_path / "adapter", whole=False)
    merge_folder(str(base), tmp_path / "adapter", tmp_path / "m")
    after = load_file(tmp_path / "m/model.safetensors")
    assert {key: value.dtype for key, value in after.items()} == {key: value.dtype for key, value in before.items()}
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert len(changed) == 18
    assert all(key.startswith("vlm.model.") for key in changed)


def test_a_row_of_a_tied_table_trained_behind_pefts_back_is_refused(base: Path, tmp_path: Path) -> None:
    # Trap: on the whole model peft does not see the tie and trains one side only; merged, both sides would change.
    trained_adapter(base, tmp_path / "adapter", whole=True, seg_row=True)
    with pytest.raises(ModelError, match=r"put the adapter on `model\.vlm`"):
        merge_adapter(load_folder(base), tmp_path / "adapter")


def test_tables_of_a_tied_model_that_came_apart_are_refused(base: Path, tmp_path: Path) -> None:
    # Trap: `modules_to_save`, as others train Qwen2.5-VL 3B; stored as one table, half of what was learned is gone.
    config = LoraConfig(r=4, target_modules=_TARGETS, modules_to_save=["embed_tokens", "lm_head"])
    get_peft_model(load_folder(base).vlm, config).save_pretrained(str(tmp_path / "adapter"))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="trains input and output tables of a tied model apart"):
        merge_folder(str(base), tmp_path / "adapter", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("options", [{}, {"ensure_weight_tying": True}], ids=["apart", "tied by peft"])
@pytest.mark.parametrize("table", ["embed_tokens", "lm_head"])
def test_lora_on_a_table_of_a_tied_model_is_refused(
    base: Path, tmp_path: Path, table: str, options: dict[str, bool]
) -> None:
    # Trap: merged into the one table it changes the other use of it too, and tied by peft it is merged twice.
    config = LoraConfig(r=4, target_modules=["q_proj", table], **options)  # type: ignore[arg-type]
    get_peft_model(load_folder(base).vlm, config).save_pretrained(str(tmp_path / "adapter"))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="of a tied model apart; train single rows"):
        merge_adapter(load_folder(base), tmp_path / "adapter")


def test_every_projection_of_both_transformers_is_adapted_and_nothing_else(base: Path, tmp_path: Path) -> None:
    # Trap: names shared between towers, and names of another library's layout that match nothing.
    trained_adapter(base, tmp_path / "adapter", whole=True)
    names = {key.rsplit(".lora_", 1)[0] for key in load_file(tmp_path / "adapter/adapter_model.safetensors")}
    adapted = sorted(name.removeprefix("base_model.model.vlm.model.") for name in names)
    text = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    eye = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    expected = [f"language_model.layers.{i}.{name}" for i in range(2) for name in text]
    expected += [f"visual.encoder.blocks.0.{name}" for name in eye]
    assert adapted == sorted(expected)


def edit_weights(folder: Path, edit) -> None:  # type: ignore[no-untyped-def]
    path = folder / "adapter_model.safetensors"
    save_file(edit(load_file(path)), path)


A = "base_model.model.vlm.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_weights(f, lambda s: dict(list(s.items())[1:])), "adapter .* on model 'small', missing"),
        (lambda f: edit_weights(f, lambda s: s | {"base_model.model.vlm.x": torch.zeros(1)}), "unexpected: .*vlm.x"),
        (lambda f: edit_weights(f, lambda s: {k: v[..., :3].clone() for k, v in s.items()}), "wrong shape"),
        (lambda f: edit_weights(f, lambda s: s | {A: s[A] * torch.nan}), rf"not finite, the first in {A}"),
        (lambda f: edit_config(f, target_modules="nothing_like_it"), "does not fit the model"),
        (lambda f: edit_config(f, lora_alpha=None), "does not fit the model"),
        (lambda f: edit_config(f, r="4"), "does not fit the model"),
        (lambda f: edit_config(f, trainable_token_indices=[5000]), "does not fit the model"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "holds no adapter_model.safetensors"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(base: Path, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    trained_adapter(base, tmp_path / "adapter", whole=True)
    damage(tmp_path / "adapter")
    with pytest.raises(ModelError, match=message):
        merge_adapter(load_folder(base), tmp_path / "adapter")
