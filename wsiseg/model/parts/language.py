"""Qwen2.5-VL from a hub folder: its text model, its tokenizer with `<SEG>`; its own vision tower is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wsiseg.errors import ModelError
from wsiseg.model.config import LanguageModelConfig, PartRecord
from wsiseg.model.folder import EMBEDDINGS, HEAD
from wsiseg.model.parts import Part, field, identity, licence_of, read_json, read_tensors, understood, weight_paths
from wsiseg.model.prompt import SEG, PromptTokenizer
from wsiseg.strict import record_of

_PLAIN = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)


def read_language(folder: Path, *, source: str, licence: str) -> tuple[Part, PromptTokenizer]:
    """The text model of Qwen2.5-VL and its tokenizer, extended by `<SEG>`.

    Args:
        folder: as the hub stores it: config.json, tokenizer.json, model.safetensors in shards with an index.

    Raises:
        ModelError: a file is missing or broken, another architecture, quantised weights, tied tables that differ.
    """
    with understood(folder / "config.json"):
        config = _read_config(folder / "config.json")
    paths = weight_paths(folder)
    tensors = {}
    for key, value in read_tensors(paths).items():
        if (ours := our_name(key)) is not None:
            tensors[ours] = value
    if config.tie_word_embeddings:
        head = tensors.pop(HEAD, None)  # some tools store the one table twice
        if head is not None and not torch.equal(head, tensors.get(EMBEDDINGS, head)):
            raise ModelError(
                f"{folder}: config.json says that input and output words are one table (tie_word_embeddings), but the "
                "weights hold two that differ; if they were trained apart, set it to false"
            )
    record = PartRecord("language model", source, identity(paths), licence_of(folder, licence))
    tokenizer = PromptTokenizer.from_file(folder / "tokenizer.json", SEG)
    add_seg_row(tensors, tokenizer, config, source)
    return Part(record, config, tensors), tokenizer


def our_name(key: str) -> str | None:
    """Hub name → ours; None for the stock vision tower.

    The hub keeps the names of 2025 (`model.layers…`, `visual…`); newer tools may write those of transformers' own
    modules (`model.language_model.layers…`, `model.visual…`).
    """
    if key.startswith(("visual.", "model.visual.")):
        return None
    if key.startswith("model.language_model."):
        return f"vlm.{key}"
    if key.startswith("model."):
        return f"vlm.model.language_model.{key.removeprefix('model.')}"
    return f"vlm.{key}"


def add_seg_row(
    tensors: dict[str, torch.Tensor], tokenizer: PromptTokenizer, config: LanguageModelConfig, source: str
) -> None:
    """Start `<SEG>` at the mean of all words, in a spare row of the table.

    Qwen's tables have more rows than the tokenizer has words (151,936 or 152,064 for 151,665). They are never
    resized: transformers' `resize_token_embeddings(len(tokenizer))` would cut the spare rows off.

    Raises:
        ModelError: no spare row.
    """
    seg = tokenizer.seg
    if seg >= config.vocab_size:
        raise ModelError(f"{source}: the tokenizer leaves no spare row for {SEG}: id {seg} of {config.vocab_size} rows")
    for key in (EMBEDDINGS, HEAD):
        if key in tensors and len(tensors[key]) > seg:
            table = tensors[key].clone()
            table[seg] = table[:seg].float().mean(dim=0).to(table.dtype)
            tensors[key] = table


def _read_config(path: Path) -> LanguageModelConfig:
    """config.json in the flat form of 2025, or in the nested one (`text_config`) of later transformers."""
    raw = read_json(path)
    if raw.get("model_type") != "qwen2_5_vl":
        raise ModelError(f"{path} describes a {raw.get('model_type')!r} model; the language model must be Qwen2.5-VL")
    if "quantization_config" in raw:
        raise ModelError(f"{path}: the weights are quantised; take the original ones")
    text: dict[str, Any] = raw.get("text_config") or raw
    rope = text.get("rope_parameters") or field(text, "rope_scaling", path)
    theta = rope.get("rope_theta") or field(text, "rope_theta", path)
    if text.get("hidden_act", "silu") != "silu" or text.get("use_sliding_window"):
        raise ModelError(f"{path}: only SiLU and full attention are supported, as Qwen2.5-VL is published")
    stated = {name: field(text, name, path) for name in _PLAIN} | {
        "rope_theta": theta,
        "mrope_section": field(rope, "mrope_section", path),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
    }
    config = record_of(LanguageModelConfig, stated)
    if below := [name for name in _PLAIN if getattr(config, name) <= 0]:
        raise ModelError(f"{path}: {below[0]} must be above 0")
    return config
