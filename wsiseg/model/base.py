"""A trained model that holds only what training changed, and says which model it began with.

    base.json            where that model lay, and the sha256 of its files
    model.safetensors    NAME                               a weight in the place of the base's
                         NAME:lora_A, NAME:lora_B, NAME:scale   W + scale · B·A (Hu et al. 2021, arXiv:2106.09685)
                         NAME:rows, NAME:values             some rows of a table of tokens

The base is looked for where it lay, then beside the model and beside its run; another one is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import orjson
import torch

from wsiseg.errors import ModelError
from wsiseg.files import atomic_write
from wsiseg.model.config import load_config
from wsiseg.model.parts import field, identity, read_json

BASE = "base.json"


def is_partial(folder: Path) -> bool:
    """Whether the model in the folder needs another one."""
    return (folder / BASE).is_file()


def weights_in(folder: Path) -> list[Path]:
    """The folder's *.safetensors, sorted; not what macOS puts beside each on a foreign disk (`._NAME`)."""
    return sorted(folder.glob("[!.]*.safetensors"))


def name_base(base: Path, folder: Path) -> None:
    """Write into `folder` that its model begins with the one in `base`. Raises ModelError, OutputError."""
    files = weights_in(base) + [base / BASE] * is_partial(base)
    known = {"folder": str(base.resolve()), "files": {path.name: _sha256(path) for path in files}}
    with atomic_write(folder / BASE) as file:
        file.write(orjson.dumps(known, option=orjson.OPT_INDENT_2))


def base_files(folder: Path) -> dict[str, str]:
    """Name and sha256 of the files that a partial model needs. Raises ModelError: base.json is broken."""
    files = field(read_json(folder / BASE), "files", folder / BASE)
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{folder / BASE} names no files")
    return files


def find_base(folder: Path) -> Path:
    """The model that the partial one in `folder` began with, every file of it checked.

    Raises:
        ModelError: it is missing, in part or as a whole, or it is another one.
    """
    files, lay = base_files(folder), Path(field(read_json(folder / BASE), "folder", folder / BASE))
    own = folder.resolve()
    parents = own.parents
    places = list(dict.fromkeys([lay, parents[0] / lay.name, parents[min(1, len(parents) - 1)] / lay.name]))
    places = [place for place in places if place != own]  # the base of a run's model is mostly called `model`, too
    # Not `Path.is_file`, which raises where nobody may look: the next place may be the right one.
    found = next((place for place in places if os.path.isfile(place / next(iter(files)))), None)
    if found is None:
        sources = "; ".join(f"{part.role} {part.source}" for part in load_config(folder / "config.json").parts)
        raise ModelError(
            f"{folder} holds only what training changed, and the model that it began with lies neither in "
            f"{' nor in '.join(map(str, places))}: copy it there, or build it again from {sources or 'its parts'}"
        )
    for name, wanted in files.items():
        path = found / name
        if not os.path.isfile(path):
            raise ModelError(f"{found} lacks {name}, which {folder} was trained on")
        if (sha256 := _sha256(path)) != wanted:
            raise ModelError(
                f"{path} is not the file that {folder} was trained on: its sha256 is {sha256[:16]}…, "
                f"and {wanted[:16]}… is needed"
            )
    return found


def changed(name: str, weight: torch.Tensor, changes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A weight of the base with what training made of it; float32 where it was adapted."""
    if name in changes:
        return changes[name]
    if f"{name}:lora_A" in changes:
        a, b, scale = (changes[f"{name}:{part}"].to(weight.device) for part in ("lora_A", "lora_B", "scale"))
        return weight.float() + (b @ a) * scale
    if f"{name}:rows" in changes:
        rows, values = (changes[f"{name}:{part}"].to(weight.device) for part in ("rows", "values"))
        return weight.float().index_copy(0, rows, values)
    return weight


def check_changes(base: Mapping[str, torch.Tensor], changes: Mapping[str, torch.Tensor], where: str) -> None:
    """Raises ModelError unless every change is one of a weight of the base, and has its shape."""
    for key, value in changes.items():
        name, _, kind = key.partition(":")
        if name not in base:
            raise ModelError(f"{where}, unexpected: {key}")
        rows, columns = (*base[name].shape, 1, 1)[:2]
        expected = {
            "": tuple(base[name].shape),
            "lora_A": (value.shape[0] if value.ndim else 0, columns),
            "lora_B": (rows, value.shape[-1] if value.ndim else 0),
            "scale": (),
            "rows": (len(value) if value.ndim else 0,),
            "values": (value.shape[0] if value.ndim else 0, columns),
        }
        if tuple(value.shape) != expected.get(kind):
            raise ModelError(f"{where}, wrong shape: {key} is {tuple(value.shape)}, for {tuple(base[name].shape)}")


def _sha256(path: Path) -> str:
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(64)
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    return identity([path])
