"""PathChat-SegR1 and where its weights come from."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg.errors import ModelError

if TYPE_CHECKING:
    from wsiseg.inference import Segmenter
    from wsiseg.model.config import Weights

BUNDLED = "tiny"


def load_model(
    name_or_folder: str | os.PathLike[str] | None = None, *, device: str | None = None, weights: Weights = "full"
) -> Segmenter:
    """The bundled model (None or "tiny"), or the one in a model folder.

    Args:
        device: torch device; None takes CUDA, then Apple's MPS, then the CPU. Several, such as "cuda:0,cuda:1" or
            "0,1", hold a copy each and share the tiles of a slide.
        weights: of the language model's layers: as they are stored, or in 8 or 4 bits (see `wsiseg.model.quantised`).
            Others are another model, and `fingerprint` says so.

    Raises:
        ModelError: unknown name, folder without a model, damaged weights, weights that no one has trained yet,
            unknown device, too little memory on it, bitsandbytes missing.
    """
    folder = model_folder(name_or_folder)
    import torch

    from wsiseg.inference.deterministic import fix_cublas_workspace
    from wsiseg.inference.devices import SeveralDevices
    from wsiseg.inference.engine import PathChatSegmenter
    from wsiseg.model.config import load_config
    from wsiseg.model.folder import caution, folder_fingerprint, load_folder, running_dtype
    from wsiseg.model.quantised import quantise_language

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    fix_cublas_workspace()  # before the first product, should results be asked for later that must be the same
    devices = [f"cuda:{name}" if name.isdecimal() else name for name in map(str.strip, str(device).split(","))]
    for name in devices:
        try:
            torch.ones(1, device=name)  # a kernel must run, too: a card may be too old for this torch
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if untrained := load_config(folder / "config.json").untrained:
        raise ModelError(
            f"the model in {folder} is a start for training: its {' and '.join(untrained)} are not trained, so that "
            "it cannot outline anything; train it with `wsiseg train`"
        )
    models = []
    for name in devices:
        dtype = running_dtype(folder, name)
        try:
            if weights == "full":
                models.append(load_folder(folder, device=name, dtype=dtype))
            else:
                models.append(quantise_language(load_folder(folder, dtype=dtype), weights, name))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(no_memory(name, f"the model in {folder}")) from error
    fingerprint = folder_fingerprint(folder) + ("" if weights == "full" else f"-{weights}")
    known = partial(PathChatSegmenter, name=models[0].config.name, fingerprint=fingerprint, caution=caution(folder))
    copies = [known(model) for model in models]
    return copies[0] if len(copies) == 1 else SeveralDevices(copies)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device is full. Only CUDA's allocator has an exception of its own for that."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size  # knows the words of Apple's MPS and of the CPU

    full = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    # Of cuBLAS, and of the driver outside that allocator.
    return full or any(words in str(error) for words in ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory"))


def no_memory(device: object, what: str) -> str:
    """What to tell whose device has too little memory."""
    return (
        f"{device} has no room for {what}: end what else runs there, take smaller weights (--weights 8bit or 4bit), or "
        "another device; docs/models.md says what fits where"
    )


def model_folder(name_or_folder: str | os.PathLike[str] | None) -> Path:
    """Where a model lies. Raises ModelError if there is none."""
    name = os.fspath(name_or_folder) if name_or_folder is not None else BUNDLED
    if name == BUNDLED:
        bundled = Path(__file__).parent.parent / "assets" / BUNDLED
        if not (bundled / "config.json").is_file():
            raise ModelError("this installation holds no bundled model; reinstall wsiseg, or name a model folder")
        return bundled
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ModelError(f"no model at {name!r}: give {BUNDLED!r} (bundled) or a folder that holds config.json")
    return folder
