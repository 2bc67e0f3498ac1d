"""What every training stage keeps: a moving average of the weights, and a state from which it resumes exactly."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wsiseg.errors import DataError


class Average:
    """Exponential moving average of all floating-point weights and buffers, young averages debiased."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in module.state_dict().items():
            if key in self.values:
                self.values[key].lerp_(value, 1 - decay)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Inside the block `module` carries the averaged weights."""
        own = module.state_dict()
        kept = {key: own[key].clone() for key in self.values}
        try:
            with torch.no_grad():
                for key, value in self.values.items():
                    own[key].copy_(value)
            yield
        finally:
            with torch.no_grad():
                for key, value in kept.items():
                    own[key].copy_(value)


def save_state(folder: Path, step: int, sft: Any, optimizer: Any, average: Average) -> None:
    """Everything a run needs to go on, written beside and swapped in whole: a kill leaves the old or the new."""
    from wsiseg.model.folder import save_model
    from wsiseg.training.sft import merged

    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_model(merged(sft.model), fresh / "model")
    tensors = {f"module.{key}": value.clone() for key, value in sft.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.values.items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = value.clone()
    save_file({key: value.contiguous() for key, value in tensors.items()}, fresh / "state.safetensors")
    (fresh / "state.json").write_text(json.dumps({"step": step, "updates": average.updates}))
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path, sft: nn.Module, optimizer: Any, average: Average) -> int:
    """Undo of `save_state`; returns the step to go on from.

    Raises:
        DataError: the state does not fit the recipe.
    """
    numbers = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / "state.safetensors")

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}

    try:
        sft.load_state_dict(part("module."))
        for key, value in part("average.").items():
            average.values[key].copy_(value)
    except (RuntimeError, KeyError) as error:
        raise DataError(f"{folder} was saved by another recipe: {error}".splitlines()[0]) from error
    for index, parameter in enumerate(_parameters(optimizer)):
        state = part(f"optimizer.{index}.")
        if state:
            optimizer.state[parameter] = state
    average.updates = int(numbers["updates"])
    return int(numbers["step"])


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
