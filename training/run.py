"""What every run keeps: a moving average of the weights, a state to resume from exactly, and its figures."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from wsiseg.errors import DataError, OutputError
from wsiseg.files import atomic_write, make_folder, remove_leftovers
from wsiseg.fleet.claim import ClaimHeldError, claimed
from wsiseg.model.base import BASE
from wsiseg.model.folder import CONFIG, TOKENIZER, write_tensors
from wsiseg.training.recipe import Recipe

START = "start.sha256"  # fingerprint of the model that the run began with
_WRITTEN = ("recipe.yaml", "metrics.jsonl", CONFIG, TOKENIZER, BASE, START)


class Average:
    """Exponential moving average of the trained weights and of all buffers, young averages debiased."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        still = _frozen(module)
        self.values = {
            key: value.detach().clone()
            for key, value in module.state_dict().items()
            if value.is_floating_point() and key not in still
        }

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


def save_state(
    folder: Path, step: int, module: nn.Module, optimizer: Any, average: Average, *, partial: bool = False
) -> None:
    """Everything a run needs to go on, written beside and swapped in whole: a kill leaves the old or the new.

    partial: leave frozen weights out, which the run reads again from the model that it began with.
    """
    still = _frozen(module) if partial else set()
    fresh = _fresh(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {f"module.{key}": value.clone() for key, value in module.state_dict().items() if key not in still}
    tensors |= {f"average.{key}": value for key, value in average.values.items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = value.clone()
    write_tensors(tensors, fresh / "state.safetensors")
    with atomic_write(fresh / "state.json") as file:  # last: with it the new state is whole
        file.write(json.dumps({"step": step, "updates": average.updates}).encode())
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def _recover_state(folder: Path) -> None:
    """Put the new state in its place, if `save_state` was killed just before it did. For the folder's sole run."""
    fresh = _fresh(folder)
    if not folder.exists() and (fresh / "state.json").exists():
        with suppress(FileNotFoundError):  # another process of this run was faster
            os.replace(fresh, folder)
    if folder.exists():  # a run of which no step is left saves no more, and would leave them there
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(_old(folder), ignore_errors=True)


def has_state(out: Path) -> bool:
    """Whether the run in `out` came to a checkpoint."""
    return (out / "state").exists() or (_fresh(out / "state") / "state.json").exists()


def no_run(out: Path) -> DataError:
    """The error for `--resume` where there is nothing to resume."""
    return DataError(f"{out} holds no run to resume; leave --resume out to start one")


def _fresh(folder: Path) -> Path:
    return folder.with_name(folder.name + ".new")


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


@contextmanager
def sole_run(out: Path, main: bool) -> Iterator[None]:
    """Hold the folder of a run while the block trains in it; of several processes of one run only `main` does.

    Raises:
        DataError: another run trains there.
        OutputError: it cannot be written.
    """
    if not main:
        yield
        return
    make_folder(out)
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(out / ".claim"))
        except ClaimHeldError as error:
            raise DataError(f"{error} trains in {out} already: wait for it, or choose another --out") from error
        for name in _WRITTEN:  # by a killed process
            remove_leftovers(out / name)
            remove_leftovers(out / "model" / name)
        yield


@contextmanager
def full_disk_told(out: Path) -> Iterator[None]:
    """OutputError when the block cannot write in `out`; what was whole there stays."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OutputError):
            raise
        if (out / "state").exists() or not has_state(out):  # else the fresh one is whole, and the only one
            shutil.rmtree(_fresh(out / "state"), ignore_errors=True)
        raise OutputError(
            f"cannot write {out}: {getattr(error, 'strerror', None) or error}; make room, and go on from the last "
            "checkpoint with --resume"
        ) from error


def load_state(folder: Path, module: nn.Module, optimizer: Any, average: Average) -> int:
    """Undo of `save_state`; returns the step to go on from.

    Raises:
        DataError: the state is damaged, or does not fit the recipe.
    """
    _recover_state(folder)
    try:
        numbers = json.loads((folder / "state.json").read_text())
        step, updates = int(numbers["step"]), int(numbers["updates"])
        open(folder / "state.safetensors", "rb").close()  # where it may not be read, safetensors says it is not there
        tensors = load_file(folder / "state.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder} is damaged, or was not copied whole: {error}".splitlines()[0]) from error

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}

    try:
        state = part("module.")
        left = module.load_state_dict(state, strict=False)
        if foreign := [*left.unexpected_keys, *(set(left.missing_keys) - _frozen(module))]:
            raise KeyError(foreign[0])
        averaged = part("average.")
        if other := averaged.keys() ^ average.values.keys():  # more or fewer weights train
            raise KeyError(min(other))
        for key, value in averaged.items():
            average.values[key].copy_(value)
    except (RuntimeError, KeyError) as error:
        raise DataError(f"{folder} was saved by another recipe: {error}".splitlines()[0]) from error
    for index, parameter in enumerate(_parameters(optimizer)):
        state = part(f"optimizer.{index}.")
        if state:
            # Moments live where their weights do; the count of steps stays on the CPU, as AdamW keeps it. Copies: what
            # `load_file` gives is the mapped file, which NFS and Windows let no later checkpoint take away.
            optimizer.state[parameter] = {
                k: v.clone() if k == "step" else v.to(parameter.device, copy=True) for k, v in state.items()
            }
    average.updates = updates
    return step


def _frozen(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class Figures:
    """A run's numbers, in metrics.jsonl, as TensorBoard scalars, and at Weights & Biases if the recipe says so."""

    def __init__(self, out: Path, step: int, recipe: Recipe) -> None:
        """step: that the run goes on from; what a killed run wrote of later ones is forgotten, but not at W&B.

        Raises:
            DataError: a package is missing; or the recipe names a W&B project, and nobody is logged in.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DataError('training needs tensorboard: pip install "wsiseg[train]"') from error

        self._wandb = _at_wandb(out, step, recipe) if recipe.wandb else None

        self._path = out / "metrics.jsonl"
        with full_disk_told(out):
            self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        kept = [line for line in _lines(self._path) if step and _still_holds(json.loads(line), step)]
        with atomic_write(self._path) as file:
            file.writelines(line.encode() + b"\n" for line in kept)

    def add(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Write down the figures of a step. OutputError if that fails."""
        with full_disk_told(self._path.parent):
            with open(self._path, "a") as file:
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """OutputError if the last figures cannot be written."""
        with full_disk_told(self._path.parent):
            self._writer.close()
        if self._wandb:
            self._wandb.finish()


def _still_holds(line: dict[str, Any], step: int) -> bool:
    """Whether a run that goes on from `step` need not write the line again. Those of kind `lyapunov` compare with the
    policy that the run then ended with; it will end with another."""
    return bool(line["step"] <= step and line["kind"] != "lyapunov")


def _at_wandb(out: Path, step: int, recipe: Recipe) -> Any:
    """The run at Weights & Biases: a new one, or with a step to go on from the one that `out` began."""
    try:
        import wandb
    except ImportError as error:
        raise DataError('`wandb` in the recipe needs a package: pip install "wsiseg[wandb]"') from error
    kept = out / "wandb-run"
    if not step or not kept.exists():
        kept.write_text(secrets.token_hex(8))
    try:
        return wandb.init(
            project=recipe.wandb, name=out.name, dir=str(out), id=kept.read_text(), resume="allow", config=vars(recipe)
        )
    except wandb.Error as error:
        raise DataError(f"Weights & Biases: {error}; `wandb login`, or WANDB_MODE=offline") from error


def read_figures(out: Path, kind: str) -> list[dict[str, float]]:
    """The lines of one kind in metrics.jsonl, in the order they were written."""
    lines = [json.loads(line) for line in _lines(out / "metrics.jsonl")]
    return [{k: v for k, v in line.items() if k != "kind"} for line in lines if line["kind"] == kind]


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that may not be there yet, or be cut off at its end."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
