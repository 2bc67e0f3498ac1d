"""A model is a folder: config.json, *.safetensors, tokenizer.json, README.md, caution.txt. No pickle, strict keys.

Trained models hold one file of weights; models built from published parts hold several, none with a key of another.
What is trained from published parts holds only what training changed (`wsiseg.model.base`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from wsiseg.errors import ModelError, OutputError
from wsiseg.files import atomic_folder, atomic_write, make_folder
from wsiseg.model.base import BASE, base_files, changed, check_changes, find_base, is_partial, weights_in
from wsiseg.model.config import PathChatConfig, load_config, save_config
from wsiseg.model.parts import check_readable
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.model.prompt import PromptTokenizer

WEIGHTS, CONFIG, TOKENIZER, CAUTION = "model.safetensors", "config.json", "tokenizer.json", "caution.txt"
EMBEDDINGS, HEAD = "vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight"
# Frequencies of positions: rounded to 16 bits they would point elsewhere.
_ALWAYS_FLOAT32 = "positional_encoding_gaussian_matrix"


def save_model(model: PathChatSegR1, folder: Path, *, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Write the folder, tied weights once; floating-point weights in the `dtypes` of their names, or in float32."""
    state = {
        key: value.to(torch.float32 if dtypes is None else dtypes[key]) if value.is_floating_point() else value
        for key, value in stored_keys(model).items()
    }
    _save(model, state, folder)


def save_changes(model: PathChatSegR1, changes: Mapping[str, torch.Tensor], folder: Path, run: Path) -> None:
    """Write the folder with `changes` alone, on the base that `run` names; see `wsiseg.model.base`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / BASE) as file:
        file.write((run / BASE).read_bytes())
    _save(model, changes, folder)


def _save(model: PathChatSegR1, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_config(model.config, folder / CONFIG)
    model.tokenizer.save(folder / TOKENIZER)
    save_tensors(state, folder / WEIGHTS)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all; for the only process that writes such files in its folder."""
    for leftover in path.parent.glob(".tmp*"):  # under such a name the package writes first; a killed process left it
        leftover.unlink()
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_tensors({key: value.cpu() for key, value in tensors.items()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file with the permissions of any new file; the package gives them to the owner alone."""
    from safetensors.torch import save_file

    with open(path, "wb") as new:
        mode = stat.S_IMODE(os.fstat(new.fileno()).st_mode)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})
    with suppress(OSError):  # the disk knows no permissions
        path.chmod(mode)


def load_folder(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PathChatSegR1:
    """Build the model that the folder describes and fill every weight; beside it, one weight at a time is in memory.

    Raises:
        ModelError: a file is missing or broken, or keys, shapes or number types do not match the configuration.
    """
    config = load_config(folder / CONFIG)
    tokenizer = PromptTokenizer.from_file(folder / TOKENIZER)
    with torch.device("meta"):  # no memory yet, and no random weights that could be left standing
        model = build_model(config, tokenizer)
    check_state(stored_keys(model), stored_tensors(folder), str(folder))
    state: dict[str, torch.Tensor] = {}
    for key, value in _weights(folder, device):
        kind = torch.float32 if key.endswith(_ALWAYS_FLOAT32) else dtype
        # A copy: what the file holds may be replaced while the model lives.
        state[key] = value.to(kind if value.is_floating_point() else value.dtype, copy=True)
    return filled(model, state, device, str(folder))


def filled(model: PathChatSegR1, state: Mapping[str, torch.Tensor], device: str, where: str) -> PathChatSegR1:
    """The same model, built on the meta device, with the tensors of `state` (as `stored_keys` names them) as weights.

    Raises:
        ModelError: a weight is left without a value; `where` says whose.
    """
    tied = model.config.text.tie_word_embeddings
    model.load_state_dict(state, strict=not tied, assign=True)
    language: Any = model.vlm.model.language_model
    if tied:
        model.vlm.lm_head.weight = language.embed_tokens.weight
    # Its frequencies are computed, not stored; and they stay in float32.
    language.rotary_emb = type(language.rotary_emb)(config=model.vlm.config.text_config).to(device)
    left = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
    if left:
        raise ModelError(f"{where}: nothing fills {', '.join(left[:5])}; this is a fault of wsiseg, please report it")
    return model.eval()


def weight_files(folder: Path) -> list[Path]:
    """The folder's *.safetensors, sorted. Raises ModelError: there is none."""
    files = weights_in(folder)
    if not files:
        raise ModelError(f"{folder} holds no {WEIGHTS}")
    return files


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the whole model, as meta tensors (shape and dtype), read from the files' headers alone.

    Raises:
        ModelError: no file, a broken file, a key in two files; the base is missing, or does not fit.
    """
    own = own_tensors(folder)
    if not is_partial(folder):
        return own
    whole = stored_tensors(find_base(folder))
    check_changes(whole, own, str(folder))
    return whole | {key: value for key, value in own.items() if ":" not in key}


def own_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What the folder's own files hold; see `stored_tensors`."""
    return {key: value.to("meta") for key, value in _own_weights(folder, "cpu")}  # mapped, so that no value is read


def _weights(folder: Path, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and weights of the whole model, one at a time."""
    if is_partial(folder):
        changes = dict(_own_weights(folder, device))
        for key, value in _weights(find_base(folder), device):
            yield key, changed(key, value, changes)
    else:
        yield from _own_weights(folder, device)


def _own_weights(folder: Path, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    for path in weight_files(folder):
        check_readable(path)
        try:
            with safe_open(path, framework="pt", device=device) as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    if key in found:
                        raise ModelError(f"{path}: {key} is in another file of {folder} too; keep one of the two files")
                    found.add(key)
                    yield key, file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged: {error}") from error


def running_dtype(folder: Path, device: str) -> torch.dtype:
    """float32, except for a language model that is stored in bfloat16 and runs on a GPU."""
    on_gpu = torch.device(device).type == "cuda"
    stored = stored_tensors(folder).get(EMBEDDINGS) if on_gpu else None
    return torch.bfloat16 if stored is not None and stored.dtype == torch.bfloat16 else torch.float32


def stored_keys(model: PathChatSegR1) -> dict[str, torch.Tensor]:
    """The state dict as files hold it: tied weights once."""
    state = model.state_dict()
    if model.config.text.tie_word_embeddings:
        del state[HEAD]
    return state


def check_new(folder: Path) -> None:
    """Raises OutputError if something lies there: a model is never mixed with another."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already; name a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Where to write the model folder `folder`, which appears when the block ends without an error.

    Raises:
        OutputError: something lies there, or it cannot be written; nothing is left behind.
    """
    from safetensors import SafetensorError

    make_folder(folder.parent)
    try:
        with atomic_folder(folder, replaces=lambda found: not any(found.iterdir())) as temporary:
            yield temporary
    except SafetensorError as error:  # atomic_folder tells of all that is an OSError
        raise OutputError(f"cannot write {folder}: {error}") from error


def check_state(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], where: str) -> None:
    """Raises ModelError unless `given` has the keys, the shapes and the kinds of number of `own`."""

    def complain(problem: str, keys: Iterable[str]) -> None:
        if listed := sorted(keys):
            more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
            raise ModelError(f"{where}, {problem}: {', '.join(listed[:5])}{more}")

    both = own.keys() & given.keys()
    complain("missing", own.keys() - given.keys())
    complain("unexpected", given.keys() - own.keys())
    complain(
        "wrong shape",
        (f"{k} is {tuple(given[k].shape)}, not {tuple(own[k].shape)}" for k in both if given[k].shape != own[k].shape),
    )
    complain(
        "wrong dtype",
        (
            f"{k} is {given[k].dtype}, not {own[k].dtype}"
            for k in both
            if given[k].is_floating_point() != own[k].is_floating_point() or given[k].element_size() < 2
        ),
    )


def build_model(config: PathChatConfig, tokenizer: PromptTokenizer) -> PathChatSegR1:
    """A model with fresh weights: the start of training, never a result."""
    if tokenizer.tokenizer.get_vocab_size() > config.text.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokenizer.tokenizer.get_vocab_size()} tokens, "
            f"the model only {config.text.vocab_size} rows"
        )
    return PathChatSegR1(config, tokenizer)


def caution(folder: Path) -> str:
    """What everyone should be told who gets outlines of tissue from this model: its caution.txt, "" without one.

    No part of the configuration, since training makes another model with other limits.
    """
    path = folder / CAUTION
    return " ".join(path.read_text("utf-8", errors="replace").split()) if path.is_file() else ""


def folder_fingerprint(folder: Path) -> str:
    """Hex digest of configuration, tokenizer and weights: two models with the same one answer alike.

    Raises:
        ModelError: one of them is missing.
    """
    files = [folder / CONFIG, folder / TOKENIZER, *weight_files(folder), *[folder / BASE] * is_partial(folder)]
    if missing := [path.name for path in files if not path.is_file()]:
        raise ModelError(f"{folder} lacks {', '.join(missing)}; is the folder complete?")
    # Training may write the folder anew while this process lives.
    written = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _fingerprint_of(folder.resolve(), written)


@lru_cache(64)
def _fingerprint_of(folder: Path, written: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path in (folder / CONFIG, folder / TOKENIZER, *weight_files(folder)):
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    if is_partial(folder):
        digest.update(repr(sorted(base_files(folder).items())).encode())
    return digest.hexdigest()[:16]
