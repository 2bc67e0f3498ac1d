"""PathChat-SegR1 and where its weights come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg.errors import ModelError

if TYPE_CHECKING:
    from wsiseg.inference import Segmenter

BUNDLED = "tiny"


def load_model(name_or_folder: str | os.PathLike[str] | None = None, *, device: str | None = None) -> Segmenter:
    """The bundled model (None or "tiny"), or the one in a model folder.

    Args:
        device: torch device; None takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ModelError: unknown name, folder without a model, damaged weights, weights that no one has trained yet,
            unknown device.
    """
    folder = model_folder(name_or_folder)
    import torch

    from wsiseg.inference.engine import PathChatSegmenter
    from wsiseg.model.config import load_config
    from wsiseg.model.folder import folder_fingerprint, load_folder, running_dtype

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if untrained := load_config(folder / "config.json").untrained:
        raise ModelError(
            f"the model in {folder} is a start for training: its {' and '.join(untrained)} are not trained, so that "
            "it cannot outline anything; train it with `wsiseg train`"
        )
    model = load_folder(folder, device=device, dtype=running_dtype(folder, device))
    return PathChatSegmenter(model, name=model.config.name, fingerprint=folder_fingerprint(folder))


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
