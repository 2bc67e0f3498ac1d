"""A model folder from published parts: the start of training at the paper's size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from wsiseg.errors import ModelError
from wsiseg.model.card import start_card
from wsiseg.model.config import (
    ImageEncoderConfig,
    LanguageModelConfig,
    PathChatConfig,
    PathologyEncoderConfig,
    paper,
    save_config,
)
from wsiseg.model.folder import (
    CONFIG,
    TOKENIZER,
    build_model,
    check_new,
    check_state,
    new_folder,
    stored_keys,
    write_tensors,
)
from wsiseg.model.parts import Part, understood
from wsiseg.model.parts.language import read_language
from wsiseg.model.parts.pathology import read_pathology
from wsiseg.model.parts.segment_anything import read_sam
from wsiseg.model.pathchat import SegAdapter
from wsiseg.model.prompt import PromptTokenizer
from wsiseg.model.published import PUBLISHED
from wsiseg.model.vision import make_projector

UNTRAINED = ("projector", "Seg-Adapter", "<SEG> token")
_SHARD_BYTES = 4 << 30  # safetensors copies what it writes: one shard at a time fits into memory


def build_folder(out: Path, *, language: str, pathology: str, sam: Path, sam_kind: str) -> PathChatConfig:
    """Assemble a model folder and return its configuration.

    Args:
        out: a new folder.
        language, pathology: a published name (its download is taken, see `fetch`), a folder, or NAME=FOLDER.
        sam: checkpoint of MedSAM or SAM, with `sam_kind` `MedSAM` or `SAM`.

    Raises:
        ModelError: a part is missing, broken or of another architecture, or two parts do not fit each other.
        OutputError: `out` exists and is not empty, or cannot be written.
    """
    check_new(out)
    folder, source, licence, _ = _locate(language, "language")
    with understood(f"language model {source}"):
        text, tokenizer = read_language(folder, source=source, licence=licence)
    folder, source, licence, name = _locate(pathology, "pathology")
    known = PUBLISHED.get(name) if name else None
    with understood(f"pathology encoder {source}"):
        eye = read_pathology(folder, known=known, source=source, licence=licence)
    with understood(f"{sam_kind} {sam}"):
        hand = read_sam(sam, kind=sam_kind)
    config = assembled_config(text, eye, hand)
    fresh = fresh_weights(config)
    check_parts(config, tokenizer, (text, eye, hand), fresh)
    with new_folder(out) as folder:
        for part, stem in ((text, "language"), (eye, "pathology"), (hand, "sam")):
            write_shards(part.tensors, folder, stem)
        write_shards(fresh, folder, "fresh")
        tokenizer.save(folder / TOKENIZER)
        (folder / "README.md").write_text(start_card(config), "utf-8")
        save_config(config, folder / CONFIG)
    return config


def assembled_config(text: Part, eye: Part, hand: Part) -> PathChatConfig:
    """The paper's configuration with the dimensions of these parts. Raises ModelError: they do not fit."""
    assert isinstance(text.config, LanguageModelConfig)
    assert isinstance(eye.config, PathologyEncoderConfig)
    assert isinstance(hand.config, ImageEncoderConfig)
    return dataclasses.replace(
        paper(),
        name="start",
        text=text.config,
        pathology=eye.config,
        image=hand.config,
        parts=(text.record, eye.record, hand.record),
        untrained=UNTRAINED,
    )


def fresh_weights(config: PathChatConfig) -> dict[str, torch.Tensor]:
    """What no publisher has: projector and Seg-Adapter, drawn from seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = make_projector(config.pathology.width, config.text.hidden_size)
        adapter = SegAdapter(config.text.hidden_size, config.image.prompt_dim, config.seg_tokens)
    named = {"vlm.model.visual.projector": projector, "seg_adapter": adapter}
    return {f"{prefix}.{key}": value for prefix, module in named.items() for key, value in module.state_dict().items()}


def check_parts(
    config: PathChatConfig, tokenizer: PromptTokenizer, parts: tuple[Part, ...], fresh: dict[str, torch.Tensor]
) -> None:
    """Compare every part with the model it is to be a part of. Raises ModelError, naming the part and the keys."""
    with torch.device("meta"):
        own = stored_keys(build_model(config, tokenizer))
    prefixes = (
        ("vlm.model.language_model.", "vlm.lm_head."),
        ("vlm.model.visual.encoder.",),
        ("image_encoder.", "mask_head."),
    )
    for part, prefix in zip(parts, prefixes, strict=True):
        wanted = {key: value for key, value in own.items() if key.startswith(prefix)}
        check_state(wanted, part.tensors, f"{part.record.role} {part.record.source}")
    together = {key: value for part in parts for key, value in part.tensors.items()} | fresh
    check_state(own, together, "the parts together")


def write_shards(tensors: dict[str, torch.Tensor], folder: Path, stem: str) -> None:
    """`stem.safetensors`, or `stem-00001.safetensors` and so on where it is too much for one file."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    room, written = _SHARD_BYTES, set[int]()
    for key, value in tensors.items():
        size = value.numel() * value.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = _SHARD_BYTES
        storage = value.untyped_storage().data_ptr()
        shards[-1][key] = value.clone() if storage in written else value  # safetensors refuses two names of one tensor
        written.add(storage)
        room -= size
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"
        write_tensors(shard, folder / name)


def _locate(part: str, role: str) -> tuple[Path, str, str, str]:
    """`name`, `folder` or `name=folder` → folder, what to call its source, licence, published name or ""."""
    from wsiseg.model.hub import downloaded

    name, _, path = part.partition("=")
    if name.partition("@")[0] in PUBLISHED:
        entry = PUBLISHED[name.partition("@")[0]]
        if entry.role != role:
            raise ModelError(f"{entry.name} is a {entry.role} model, not a {role} one; see `wsiseg models list`")
        if path:
            return Path(path), f"{entry.repository} ({path})", entry.licence, entry.name
        folder = downloaded(name)
        return folder, f"{entry.repository}@{folder.name}", entry.licence, entry.name
    if not Path(part).is_dir():
        raise ModelError(f"{part!r} is neither a published name (see `wsiseg models list`) nor a folder")
    return Path(part), str(part), "unknown: ask its publisher", ""
