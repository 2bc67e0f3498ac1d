"""Published weights, each translated to the names that PathChat-SegR1 gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from wsiseg.errors import ModelError
from wsiseg.model.config import ImageEncoderConfig, LanguageModelConfig, PartRecord, PathologyEncoderConfig


@dataclass(frozen=True)
class Part:
    """One part of a model: what it was (`record`), what it is (`config`), and its weights under our names."""

    record: PartRecord
    config: LanguageModelConfig | PathologyEncoderConfig | ImageEncoderConfig
    tensors: dict[str, torch.Tensor]


@contextmanager
def understood(what: object) -> Iterator[None]:
    """ModelError about `what`, published by others, where its content leads to an error of Python's in the block."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{what} is not understood ({type(error).__name__}: {error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Raises ModelError: no such file, or not a JSON object."""
    try:
        raw = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} is missing; is the download complete? ({error.strerror})") from error
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return raw


def field(raw: dict[str, Any], name: str, where: Path) -> Any:
    """A field that must be there. Raises ModelError."""
    if name not in raw:
        raise ModelError(f"{where} has no field {name!r}")
    return raw[name]


def weight_paths(folder: Path) -> list[Path]:
    """The files of a hub folder that hold its weights: safetensors, in shards or whole, else the older .bin.

    Raises:
        ModelError: none is there, or a shard that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        with understood(index):
            shards = sorted(set(field(read_json(index), "weight_map", index).values()))
        if missing := [name for name in shards if not (folder / name).is_file()]:
            raise ModelError(f"{folder} lacks {', '.join(missing)}, named in {index.name}; fetch it again")
        return [folder / name for name in shards]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise ModelError(f"{folder} holds no model.safetensors and no pytorch_model.bin")


def check_readable(path: Path) -> None:
    """Raises ModelError: the file cannot be opened, and why. (safetensors says of each that it is not there.)"""
    try:
        open(path, "rb").close()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def read_tensors(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """All tensors of the files, mapped from disk where the format allows. Raises ModelError: a broken file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        check_readable(path)
        try:
            tensors |= load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged: {error}") from error
    return tensors


def read_pickle(path: Path) -> dict[str, Any]:
    """A published .pth or .bin, read by the loader that builds tensors and nothing else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"no checkpoint at {path}") from error
    except Exception as error:  # the loader runs into damage, and into texts, with errors of any kind
        # Not what torch says of it, which is an advice to run whatever the file holds.
        raise ModelError(
            f"{path} is not loaded: it is damaged, or no checkpoint (but, say, the web page of its download), or holds "
            "more than weights"
        ) from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def identity(paths: Sequence[Path]) -> str:
    """sha256 over the files, in order. Raises ModelError: one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        check_readable(path)
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def licence_of(folder: Path, otherwise: str) -> str:
    """The licence that the model card in the folder states, else `otherwise`."""
    card = folder / "README.md"
    lines = card.read_text("utf-8", "replace").splitlines() if card.is_file() else []
    stated = {}
    for line in lines[1:60] if lines[:1] == ["---"] else []:
        if line == "---":
            break
        key, _, value = line.partition(":")
        stated[key] = value.strip()
    licence = stated.get("license", "")
    return (stated.get("license_name") or licence if licence == "other" else licence) or otherwise
