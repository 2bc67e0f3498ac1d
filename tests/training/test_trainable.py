"""What trains, and that adapters leave no trace but their effect."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from tests.model.small import byte_tokenizer, small_config, small_paper_config
from wsiseg.errors import DataError
from wsiseg.model.folder import build_model
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.sft import SftModel, SftRecipe
from wsiseg.training.trainable import TuningRecipe, count_parameters, merged, parameter_groups, set_trainable

LORA = TuningRecipe(tuning="lora")


def trained(model: PathChatSegR1) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_lora_of_the_paper_trains_adapters_of_rank_16_in_all_three_transformers_and_the_heads_in_full() -> None:
    model = build_model(small_paper_config(), byte_tokenizer())
    before = {name.rpartition(".")[0]: p.shape for name, p in model.named_parameters()}
    set_trainable(model, LORA)
    names = trained(model)
    adapted = {name.partition(".lora_")[0] for name in names if ".lora_A." in name}
    blocks = (
        [f"vlm.model.language_model.layers.{i}." for i in range(2)]
        + [f"vlm.model.visual.encoder.blocks.{i}." for i in range(2)]
        + [f"image_encoder.vit.blocks.{i}." for i in range(2)]
    )
    for block, layers in zip(blocks, (7, 7, 4, 4, 4, 4), strict=True):  # q k v o gate up down; qkv proj and MLP
        assert sum(name.startswith(block) for name in adapted) == layers, block
    assert len(adapted) == 30
    assert adapted <= set(before)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            assert parameter.shape[0] == 16
        full = name.startswith(("seg_adapter", "mask_head", "vlm.model.visual.projector", "image_encoder.vit.neck"))
        assert (name in names) == (full or "lora_" in name or "trainable_tokens" in name), name
    dropouts = [m.p for name, m in model.named_modules() if name.endswith("lora_dropout.default")]
    assert dropouts == [0.1] * 30
    # of the tables of tokens, the one row that is new to a published language model
    rows = {name: p.shape for name, p in model.named_parameters() if "trainable_tokens" in name}
    assert list(rows.values()) == [(1, 64)] * 2


def test_an_image_encoder_with_a_convolutional_stem_trains_in_full() -> None:
    model = build_model(small_config(), byte_tokenizer())
    set_trainable(model, LORA)
    names = trained(model)
    assert all(name in names for name, _ in model.named_parameters() if name.startswith("image_encoder"))
    assert not any(name.startswith("vlm.model.visual.encoder") for name in names)


def test_matrices_and_convolutions_are_decayed_and_tables_norms_and_biases_are_not() -> None:
    model = build_model(small_config(), byte_tokenizer())
    rate = {id(p): group["weight_decay"] for group in parameter_groups(model, SftRecipe()) for p in group["params"]}
    decayed = {name for name, parameter in model.named_parameters() if rate[id(parameter)]}
    stem = {name for name, p in model.named_parameters() if ".patch_embed." in name and p.ndim == 4}
    assert stem
    assert stem < decayed
    assert not any("embed_tokens" in name or "pos_embed" in name or name.endswith("bias") for name in decayed)


@pytest.mark.parametrize("frozen", ["vlm", "vlm.model.visual", "vlm.model.language_model", "image_encoder.vit"])
def test_what_the_recipe_freezes_gets_no_adapter_that_learns(frozen: str) -> None:
    model = build_model(small_paper_config(), byte_tokenizer())
    set_trainable(model, TuningRecipe(tuning="lora", frozen=(frozen,)))
    names = trained(model)
    assert names
    assert not any(name.startswith(frozen) for name in names)


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("frozen", ["vlm.lm_head", "vlm.model.language_model.embed_tokens"])
def test_tied_tables_are_frozen_under_either_name(tuning: Literal["full", "lora"], frozen: str) -> None:
    model = build_model(small_paper_config(tie_word_embeddings=True), byte_tokenizer())
    set_trainable(model, TuningRecipe(tuning=tuning, frozen=(frozen,)))
    assert trained(model)
    assert not any("lm_head" in name or "embed_tokens" in name for name in trained(model))


def test_a_name_to_freeze_that_the_model_does_not_have_is_told() -> None:
    model = build_model(small_config(), byte_tokenizer())
    wrong = r"frozen: no weight .* begins with image_encodr \(did you mean image_encoder\?\)"
    with pytest.raises(DataError, match=wrong):
        set_trainable(model, TuningRecipe(frozen=("vlm.lm_head", "image_encodr")))


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_merge_without_a_trace_and_keep_their_effect(tied: bool) -> None:
    torch.manual_seed(0)
    model = build_model(small_paper_config(tied), byte_tokenizer())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_trainable(model, LORA)
    plain = merged(model)  # adapters start at zero: merging changes nothing
    assert [name for name, _ in plain.named_parameters()] == list(before)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, before[name]), name
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "trainable_tokens" in name:
                parameter.normal_(std=0.05)
    model.eval()  # adapters arrive in training mode, with dropout
    ids = torch.tensor([[20, 30, model.tokenizer.seg, 40]])
    tiles = torch.rand(1, 3, 128, 128)
    outputs = []
    for variant in (model, merged(model)):
        with torch.inference_mode():
            states = variant.vlm.model.language_model(inputs_embeds=variant.embed(ids)).last_hidden_state
            outputs.append(
                [variant.vlm.lm_head(states), variant.image_tokens(tiles), variant.masks(tiles, states[:, 2])]
            )
    for adapted, folded in zip(*outputs, strict=True):
        torch.testing.assert_close(adapted, folded, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        assert not torch.allclose(outputs[1][1], plain.image_tokens(tiles))  # the adapters did something


def test_the_table_counts_every_parameter_once() -> None:
    module = SftModel(build_model(small_paper_config(), byte_tokenizer()), SftRecipe())
    set_trainable(module.model, LORA)
    parts = count_parameters(module)
    assert sum(part.total for part in parts) == sum(p.numel() for p in module.parameters())
    assert sum(part.trained for part in parts) == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert {part.part: part.trained == part.adapters for part in parts} == {
        "pathology encoder": True,
        "projector": False,
        "language model": True,
        "Seg-Adapter": False,
        "image encoder": False,
        "mask decoder": False,
        "training only": False,
    }


@pytest.mark.parametrize(
    "how",
    [{"gradient_checkpointing": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)],
    ids=["recomputed", "compiled"],
)
def test_recomputed_or_compiled_the_gradients_are_the_same(how: dict[str, bool]) -> None:
    gradients = []
    for recipe in (TuningRecipe(), TuningRecipe(**how)):
        torch.manual_seed(0)
        model = build_model(small_paper_config(), byte_tokenizer())
        names = model.state_dict().keys()
        set_trainable(model, recipe)
        assert model.state_dict().keys() == names
        states = model.vlm.model.language_model(
            inputs_embeds=model.image_tokens(torch.ones(1, 3, 64, 64)), use_cache=False
        ).last_hidden_state
        model.masks(torch.ones(1, 3, 64, 64), states[:, -1]).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 80
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
