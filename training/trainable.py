"""Which parameters a stage trains: frozen parts, low-rank adapters, rates."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsiseg.errors import DataError
from wsiseg.model.folder import HEAD
from wsiseg.model.memory import PARTS, part_of
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.recipe import Count, Recipe, Share, nearest

LANGUAGE, PATHOLOGY = "vlm.model.language_model", "vlm.model.visual.encoder"
SEGMENTING = ("seg_adapter", "image_encoder", "mask_head")
_SAM_BLOCKS = ("image_encoder.vit.patch_embed", "image_encoder.vit.pos_embed", "image_encoder.vit.blocks")

# Every linear layer of these is adapted, whatever a library calls it.
_VLM_BLOCKS = ("model.language_model.layers.", "model.visual.encoder.blocks.")
_ADAPTERS = ("lora_", "trainable_tokens")


@dataclass(frozen=True)
class TuningRecipe(Recipe):
    """A stage that trains the language model.

    `tuning` is `full`, or `lora`: adapters of `lora_rank` and `lora_dropout` (the paper: 16, 0.1) on the language
    model, on the pathology encoder where it is a transformer, and on the blocks of the image encoder where it is
    SAM's own, and the row of `<SEG>` in the tables of tokens. Projector, Seg-Adapter, mask head and the image
    encoder's neck train in full, and so does an image encoder with a convolutional stem, which has few weights
    and none from SAM.

    `compile` puts both image encoders, whose inputs have one shape, through `torch.compile`.
    """

    tuning: Literal["full", "lora"] = "full"
    lora_rank: Count = 16
    lora_dropout: Share = 0.1
    compile: bool = False


def train_all_but(model: PathChatSegR1, recipe: Recipe, frozen: Iterable[str]) -> None:
    """Let every parameter train whose name begins with none of what `recipe` and `frozen` name.

    Raises:
        DataError: the recipe freezes what the model does not have; that would train after all.
    """
    for prefix in recipe.frozen:
        if not any(name.startswith(prefix) for name, _ in model.named_parameters(remove_duplicate=False)):
            meant = nearest(prefix, [name for name, _ in model.named_modules()])
            raise DataError(f"frozen: no weight of the model has a name that begins with {prefix}{meant}")
    model.requires_grad_(True)
    _freeze(model, (*recipe.frozen, *frozen))


def _freeze(model: PathChatSegR1, prefixes: tuple[str, ...]) -> None:
    """Every parameter of which any name begins so: tied tables are one, with two names."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith(prefixes):
            parameter.requires_grad_(False)


def set_trainable(model: PathChatSegR1, recipe: TuningRecipe, frozen: Iterable[str] = ()) -> None:
    """Freeze what the recipe and `frozen` name; with `tuning: lora`, put adapters on the other transformers.

    Raises:
        DataError: see `train_all_but`.
    """
    is_sam = model.config.image.stem == "patch"
    if recipe.tuning == "full":
        train_all_but(model, recipe, frozen)
    else:
        adapted = (LANGUAGE, "vlm.lm_head", PATHOLOGY, *(_SAM_BLOCKS if is_sam else ()))
        train_all_but(model, recipe, (*frozen, *adapted))
        named = (*recipe.frozen, *frozen)
        kept = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        seg = [model.tokenizer.seg]
        tables = {"model.language_model.embed_tokens": seg}
        if not model.config.text.tie_word_embeddings:
            tables["lm_head"] = seg
        _add_adapters(model.vlm, _VLM_BLOCKS, recipe, tables)
        if is_sam and "image_encoder" not in named:
            _add_adapters(model.image_encoder.vit, ("blocks.",), recipe)
        for name, parameter in model.named_parameters():  # injection freezes all that it does not add
            parameter.requires_grad_(name in kept or _is_adapter(name))
        _freeze(model, named)
    if recipe.gradient_checkpointing:
        checkpoint_activations(model)
    if recipe.compile:
        model.image_encoder.compile()  # in place: names of weights stay
        model.vlm.model.visual.compile()


def _add_adapters(
    module: nn.Module, within: tuple[str, ...], recipe: TuningRecipe, tables: dict[str, list[int]] | None = None
) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and name.startswith(within)]
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=2 * recipe.lora_rank,
        lora_dropout=recipe.lora_dropout,
        target_modules=linear,
        trainable_token_indices=tables,
    )
    inject_adapter_in_model(config, module)


def _is_adapter(name: str) -> bool:
    return any(word in name for word in _ADAPTERS)


def merged(model: PathChatSegR1) -> PathChatSegR1:
    """The model with its adapters folded into their weights (itself where there are none)."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import TrainableTokensWrapper

    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        adapter = module.token_adapter if isinstance(module, TrainableTokensWrapper) else module
        if isinstance(module, LoraLayer | TrainableTokensWrapper):
            adapter.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, adapter.get_base_layer())
    return plain


def changes(model: PathChatSegR1) -> dict[str, torch.Tensor]:
    """What training changes, under the names of `wsiseg.model.base`: adapters as they are, all else as it stands."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import TrainableTokensWrapper

    found: dict[str, Any] = {n: p for n, p in model.named_parameters() if p.requires_grad and not _is_adapter(n)}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and module.lora_B["default"].weight.requires_grad:
            found[f"{name}.weight:lora_A"] = module.lora_A["default"].weight
            found[f"{name}.weight:lora_B"] = module.lora_B["default"].weight
            found[f"{name}.weight:scale"] = torch.tensor(float(module.scaling["default"]))
        elif isinstance(module, TrainableTokensWrapper):
            found[f"{name}.weight:rows"] = torch.tensor(module.token_adapter.token_indices["default"])
            found[f"{name}.weight:values"] = module.token_adapter.trainable_tokens_delta["default"]
        elif any(p.requires_grad for p in module.parameters(recurse=False)):  # running statistics
            found |= {f"{name}.{key}": value for key, value in module.named_buffers(recurse=False)}
    if model.config.text.tie_word_embeddings:
        found = {key: value for key, value in found.items() if key.partition(":")[0] != HEAD}
    return {key: value.detach() for key, value in found.items()}


def checkpoint_activations(model: PathChatSegR1) -> None:
    """Keep only the inputs of transformer blocks, and compute the rest again on the way back."""
    blocks = [*model.vlm.model.language_model.layers, *model.image_encoder.vit.blocks]
    if model.config.pathology.kind == "dinov2":
        encoder: Any = model.vlm.model.visual.encoder
        blocks += encoder.blocks
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def parameter_groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Pretrained backbones learn at `encoder_rate` of the rate; norms, biases and tables are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            encoder = "backbone" in name or name.startswith(f"model.{PATHOLOGY}.")
            pretrained = encoder and (bool(recipe.stem_weights) or bool(recipe.model))
            table = any(word in name.replace("patch_embed", "") for word in ("embed", "rel_pos", "tokens"))
            decayed = parameter.ndim > 1 and not table  # patches are embedded by convolutions
            groups.setdefault((pretrained, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.learning_rate * (recipe.encoder_rate if pretrained else 1.0),
            "start_lr": recipe.learning_rate * (recipe.encoder_rate if pretrained else 1.0),
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (pretrained, decayed), parameters in groups.items()
    ]


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part of the model: all, trained, and those of the trained that are adapters."""

    part: str
    total: int
    trained: int
    adapters: int


def count_parameters(module: nn.Module) -> list[PartCount]:
    """Parameters by part; `module` holds the model as `model`, and what only training needs beside it."""
    beside = "training only"  # heads and probes, dropped afterwards
    counts = {part: [0, 0, 0] for part in (*PARTS.values(), beside)}
    for name, parameter in module.named_parameters():
        part = part_of(name.removeprefix("model."), beside)
        trained = parameter.numel() if parameter.requires_grad else 0
        adapter = trained if _is_adapter(name) else 0
        counts[part] = [a + b for a, b in zip(counts[part], (parameter.numel(), trained, adapter), strict=True)]
    return [PartCount(part, *numbers) for part, numbers in counts.items()]
