"""The training loop that all stages share: steps, moving average, validation, figures, checkpoints, exact resume.

A stage is a module whose forward gives the losses of a batch, and examples addressed by their position. All that
is random about a step is seeded with its number, so that a resumed run takes the very steps of an uninterrupted
one, and n processes those of one process with n times the accumulation.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import nn

from wsiseg.errors import DataError
from wsiseg.model.base import is_partial
from wsiseg.model.folder import save_changes, save_model
from wsiseg.model.pathchat import PathChatSegR1, layout
from wsiseg.training.recipe import Recipe, save_recipe
from wsiseg.training.run import Average, Figures, full_disk_told, load_state, read_figures, save_state, sole_run
from wsiseg.training.start import keep_make
from wsiseg.training.trainable import changes, count_parameters, merged, parameter_groups

if TYPE_CHECKING:
    from accelerate import PartialState

_log = logging.getLogger(__name__)

Report = Callable[[int, dict[str, float]], None]
Say = Callable[[str], None]


class Examples(Protocol):
    """Items by position; item k is the same in every run."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> Any: ...


@dataclass(frozen=True)
class Stage:
    """What a stage brings to the loop.

    `module(batch)` gives a dict of scalars, of which `loss` is minimised; what it has none of in a batch is NaN, and
    left out of means. It holds the `model`. `examples(n)` and `validation(n)` give n examples (none, where no images
    are kept for validation); `collate` turns a list of them into a batch with `.to(device)`; `measure` gives further
    figures of the module, written down with every validation.
    """

    module: nn.Module
    model: PathChatSegR1
    examples: Callable[[int], Examples]
    validation: Callable[[int], Examples]
    collate: Callable[[list[Any]], Any]
    measure: Callable[[], dict[str, float]] | None = None


def fit(
    stage: Stage,
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    report: Report | None = None,
    say: Say | None = None,
) -> Path:
    """Train a stage in the folder `out`; returns the folder of the trained model (moving average of the weights).

    `out` holds recipe.yaml, metrics.jsonl and TensorBoard scalars, `state/` (from which a run resumes exactly) and
    `model/`. Figures of kind `train` are means over a step's batches and processes, with the norm of the gradient,
    the rate, the seconds and the share of them spent waiting for data; those of kind `validation` are of the
    average, first at step 0.

    Raises:
        DataError: another run trains in `out`, or it holds the state of another recipe; or the loss is no number.
        OutputError: `out` cannot be written; the last checkpoint stays.
    """
    with sole_run(out, this_process().is_main_process):
        return _fit(stage, recipe, out, resume, report, say)


def _fit(stage: Stage, recipe: Recipe, out: Path, resume: bool, report: Report | None, say: Say | None) -> Path:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # Not every batch has a mask, so not every batch uses every weight.
    warn_of_precision(recipe.precision)
    accelerator = Accelerator(
        mixed_precision="no",  # see `autocast`
        gradient_accumulation_steps=recipe.accumulation,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    module, main = stage.module, accelerator.is_main_process
    if main:
        keep_make(stage.model, recipe, out)
        if say:
            say(table(module, recipe, accelerator.num_processes))
    module.to(memory_format=layout(accelerator.device))  # type: ignore[call-overload]
    optimizer: Any = torch.optim.AdamW(
        parameter_groups(module, recipe), betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    prepared, optimizer = accelerator.prepare(module, optimizer)
    average = Average(module, recipe.ema)
    step = load_state(out / "state", module, optimizer, average) if resume else 0
    if main:
        save_recipe(recipe, out / "recipe.yaml")  # only now: that of a run that was refused stays as it was
        if resume:
            save_averaged(out, module, stage.model, average)  # it may have been killed before it came to that
    turns = range(step * recipe.accumulation, recipe.steps * recipe.accumulation)
    batches = loader(stage.examples, stage.collate, recipe, recipe.batch_images, turns, accelerator)
    held_out = _validation_batches(stage, recipe)
    figures = Figures(out, step, recipe) if main else None

    def validate() -> None:
        with average.swapped(module):
            values = _means(module, held_out, accelerator.device, recipe) | (stage.measure() if stage.measure else {})
        if figures and values:
            figures.add(step, "validation", values)

    if not resume:
        validate()
    while step < recipe.steps:
        train_mode(module)
        for group in optimizer.param_groups:
            group["lr"] = group["start_lr"] * schedule(step, recipe)
        values = _step(step, batches, prepared, optimizer, accelerator, recipe)
        step += 1
        check_finite(step, values, recipe, out)
        average.update(module)
        if figures:
            figures.add(step, "train", values)
        if report and main:
            report(step, values)
        last = step == recipe.steps
        if step % recipe.validate_every == 0 or last:
            validate()
        if main and (step % recipe.checkpoint_every == 0 or last):
            checkpoint(out, step, module, stage.model, optimizer, average)
    accelerator.wait_for_everyone()
    if figures:
        figures.close()
    if say and main:
        say(gains(out))
    return out / "model"


def this_process() -> PartialState:
    """Which of a run's processes this is; on CPUs too, as `Accelerator` sees it.

    `PartialState()` itself does not read ACCELERATE_USE_CPU, and whoever asks first decides for all: processes on CPUs
    then each took themselves for the only one.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def autocast(precision: Literal["bf16", "fp32"], device: torch.device) -> torch.autocast:
    """Around a forward pass: bf16 where it is asked for and the device computes in it, else fp32.

    On a CPU without AVX-512 torch multiplies bf16 matrices one number at a time, many times slower than in fp32.
    Accelerate's own has one precision for all trainings of a process, and refuses those that come with another.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and _computes_in_bf16(device))


def warn_of_precision(precision: Literal["bf16", "fp32"]) -> None:
    """Say at the beginning that `autocast` will not do as the recipe asks."""
    if precision == "bf16" and not _computes_in_bf16(this_process().device):
        _log.warning("this CPU does not compute in bf16; training in fp32")


def _computes_in_bf16(device: torch.device) -> bool:
    return device.type != "cpu" or _cpu_computes_in_bf16()


def _cpu_computes_in_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def checkpoint(
    out: Path, step: int, module: nn.Module, model: PathChatSegR1, optimizer: Any, average: Average
) -> None:
    """Write what the run resumes from (`state/`) and its averaged `model/`. OutputError if that fails."""
    with full_disk_told(out):
        save_state(out / "state", step, module, optimizer, average, partial=is_partial(out))
    save_averaged(out, module, model, average)


def check_finite(step: int, values: dict[str, float], recipe: Recipe, out: Path) -> None:
    """Raise DataError if the loss or the gradient of a step is no number: such weights must reach no checkpoint."""
    loss = values.get("loss", math.nan)
    if not (math.isfinite(loss) and math.isfinite(values["norm"])):
        raise DataError(
            f"step {step}: the loss is {loss:g} and the norm of its gradient {values['norm']:g}, of which "
            f"nothing can be learned; {out} keeps its last checkpoint: go on from it with --resume and a "
            f"learning_rate below {recipe.learning_rate:g}"
        )


def save_averaged(out: Path, module: nn.Module, model: PathChatSegR1, average: Average) -> None:
    """Write the averaged `model/`: what changed of a model built from published parts, else the whole, adapters
    folded in. OutputError if that fails."""
    with full_disk_told(out), average.swapped(module):
        if is_partial(out):
            save_changes(model, changes(model), out / "model", out)
        else:
            save_model(merged(model), out / "model")


def plan(module: nn.Module, recipe: Recipe, out: Path, say: Say | None) -> Path:
    """A dry run: say what would train, touch nothing."""
    if say:
        say(table(module, recipe, this_process().num_processes))
    return out


def schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the start value."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train_mode(module: nn.Module) -> None:
    """`module.train()`, but running statistics of frozen stems stay as they are."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and not any(p.requires_grad for p in part.parameters()):
            part.eval()


def table(module: nn.Module, recipe: Recipe, processes: int) -> str:
    """Parameters by part, the memory that they take for training, and the steps, as text."""
    parts = count_parameters(module)
    lines = [f"{'part':<18}{'parameters':>16}{'trained':>16}{'adapters':>14}"]
    lines += [f"{p.part:<18}{p.total:>16,}{p.trained:>16,}{p.adapters:>14,}" for p in parts if p.total]
    total, trained = sum(p.total for p in parts), sum(p.trained for p in parts)
    lines.append(f"{'all':<18}{total:>16,}{trained:>16,}{sum(p.adapters for p in parts):>14,}")
    held = {"weights": total, "gradients": trained, "AdamW": 2 * trained, "moving average": trained}
    memory = ", ".join(f"{name} {_bytes(4 * count)}" for name, count in held.items())
    lines.append(f"memory per process: {_bytes(4 * sum(held.values()))} ({memory}), and activations on top")
    images = recipe.batch_images * recipe.accumulation * processes
    lines.append(
        f"{recipe.steps} steps of {images} images ({recipe.batch_images} a batch × {recipe.accumulation} batches × "
        f"{processes} processes), {recipe.steps * images:,} images in all"
    )
    return "\n".join(lines)


def gains(out: Path) -> str:
    """What validation said at the beginning and at the end, as text."""
    lines = read_figures(out, "validation")
    if not lines:
        return "no validation images: nothing was measured"
    first, last = lines[0], lines[-1]
    rows = [f"{name:<28}{first[name]:>12.4g}{last[name]:>12.4g}" for name in last if name != "step" and name in first]
    return "\n".join([f"{'validation':<28}{'before':>12}{'after':>12}", *rows])


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _step(
    step: int, batches: Iterator[Any], prepared: nn.Module, optimizer: Any, world: Any, recipe: Recipe
) -> dict[str, float]:
    """One step of the optimiser over `accumulation` batches; means over them and over all processes."""
    began, waited = time.monotonic(), 0.0
    seen: list[dict[str, torch.Tensor]] = []
    norm = torch.zeros(())
    for turn in range(recipe.accumulation):
        asked = time.monotonic()
        batch = next(batches).to(world.device)
        waited += time.monotonic() - asked
        # The number of the batch among all processes' batches: the same for any split of the work.
        number = (step * recipe.accumulation + turn) * world.num_processes + world.process_index
        torch.manual_seed(recipe.seed + 1_000_003 * (number + 1))
        with world.accumulate(prepared):
            with autocast(recipe.precision, world.device):
                losses = prepared(batch)
            world.backward(losses["loss"])
            if world.sync_gradients:
                norm = world.clip_grad_norm_(prepared.parameters(), recipe.largest_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen.append({name: value.detach().float() for name, value in losses.items()})
    figures = torch.stack([torch.stack(list(losses.values())) for losses in seen])  # (accumulation, F)
    sums, counts = world.reduce(torch.stack([figures.nansum(0), (~figures.isnan()).float().sum(0)]), reduction="sum")
    values = {name: value for name, value in zip(seen[0], (sums / counts).tolist(), strict=True) if value == value}
    seconds = time.monotonic() - began
    rate = recipe.learning_rate * schedule(step, recipe)  # groups of pretrained backbones have a share of it
    return values | {"norm": float(norm), "rate": rate, "seconds": seconds, "waiting": waited / seconds}


@torch.no_grad()
def _means(module: nn.Module, batches: list[Any], device: torch.device, recipe: Recipe) -> dict[str, float]:
    """Mean losses and figures over the validation batches that have them."""
    module.eval()
    seen: dict[str, list[float]] = {}
    for index, batch in enumerate(batches):
        torch.manual_seed(index)
        with autocast(recipe.precision, device):
            for name, value in module(batch.to(device)).items():
                if not value.isnan():
                    seen.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in seen.items()}


def loader(
    examples: Callable[[int], Examples],
    collate: Callable[[list[Any]], Any],
    recipe: Recipe,
    size: int,
    turns: range,
    world: Any,
) -> Iterator[Any]:
    """A batch of `size` examples for each turn: process p of n takes batches p, p + n, … of one common order."""
    batches = [turn * world.num_processes + world.process_index for turn in turns]
    order = [list(range(b * size, (b + 1) * size)) for b in batches]
    return iter(
        torch.utils.data.DataLoader(
            examples(turns.stop * world.num_processes * size),  # type: ignore[arg-type]
            batch_sampler=order,  # type: ignore[arg-type]
            num_workers=recipe.workers,
            prefetch_factor=4 if recipe.workers else None,
            collate_fn=collate,
        )
    )


def _validation_batches(stage: Stage, recipe: Recipe) -> list[Any]:
    stream, size = stage.validation(recipe.validation_images), recipe.batch_images
    return [
        stage.collate([stream[i] for i in range(b, min(b + size, len(stream)))]) for b in range(0, len(stream), size)
    ]
