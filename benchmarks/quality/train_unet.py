r"""Train the closed-set U-Net on the views that the model is trained on, for a given wall time.

    python -m benchmarks.quality.train_unet open.zarr --out runs/unet.pt --parameters 10.7e6 --minutes 60 \
        --recipe training/recipes/tiny-sft.yaml --stem-weights efficientnet-lite0-57934424.pth

Run again with the same --out it continues where it stopped; a finished run starts nothing. Minutes count
training only, over all starts. Views are addressed by position, so a resumed run sees the data it would have
seen; the learning rate follows the share of the minutes that is spent.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.quality.unet import UNet, count_parameters, width_for
from wsiseg.errors import DataError
from wsiseg.files import atomic_write
from wsiseg.model.config import tiny
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import ExampleStream
from wsiseg.training.loop import autocast
from wsiseg.training.losses import mask_loss
from wsiseg.training.recipe import load_recipe
from wsiseg.training.sft import SftRecipe

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Target:
    """Pixels (3, S, S) in [0, 1], masks (C, S, S) of 0 and 1, and which channels have a truth (C,) bool."""

    image: torch.Tensor
    masks: torch.Tensor
    known: torch.Tensor


class Targets(Dataset):  # type: ignore[type-arg]
    """The views that the model's own `ExampleStream` draws, with every channel's mask at once."""

    def __init__(
        self, store: QuadrupletStore, channels: tuple[str, ...], size: int, seed: int, weights: dict[str, float]
    ) -> None:
        config = replace(tiny(), tile_size=size)
        self.stream = ExampleStream(
            store, config, split="train", seed=seed, questions=1, length=1, source_weights=weights, cache=4096
        )
        self.channels = channels

    def __getitem__(self, position: int) -> Target:
        view = self.stream.view(np.random.default_rng((self.stream.seed, position)))
        empty = np.zeros(view.image.shape[:2], bool)
        masks = np.stack([view.layers[name] > 0 if name in view.layers else empty for name in self.channels])
        known = [name in view.layers or name in view.absent for name in self.channels]
        image = torch.from_numpy(view.image.copy()).permute(2, 0, 1).float() / 255
        return Target(image, torch.from_numpy(masks).float(), torch.tensor(known))


def collate(targets: list[Target]) -> Target:
    return Target(*(torch.stack([getattr(target, name) for target in targets]) for name in Target.__annotations__))


def learning_rate(peak: float, spent: float) -> float:
    """Linear rise over the first 2 % of the time, then half a cosine down to zero; `spent` in [0, 1]."""
    return peak * min(1.0, spent / 0.02) * 0.5 * (1 + math.cos(math.pi * min(1.0, spent)))


def train(
    store: QuadrupletStore,
    out: Path,
    *,
    channels: tuple[str, ...],
    parameters: int,
    minutes: float,
    size: int = 256,
    batch: int = 12,
    weights: dict[str, float] | None = None,
    peak_rate: float = 1e-3,
    seed: int = 0,
    workers: int = 1,
    device: str = "cpu",
    stem_weights: str | None = None,
    max_steps: int | None = None,
) -> dict[str, Any]:
    """Train until `minutes` are spent (or `max_steps` done) and return the checkpoint that lies in `out`.

    Raises:
        DataError: `out` holds a run with other settings.
    """
    settings = {
        "channels": list(channels),
        "width": width_for(parameters, len(channels)),
        "size": size,
        "batch": batch,
        "seed": seed,
        "data": str(store.path),
        "stem_weights": stem_weights,
    }
    torch.manual_seed(seed)
    network = UNet(width_for(parameters, len(channels)), len(channels))
    if stem_weights:
        network.load_imagenet_weights(stem_weights)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), peak_rate, weight_decay=0.02)
    step, seconds, loss_mean = 0, 0.0, float("nan")
    if out.exists():
        state: dict[str, Any] = torch.load(out, weights_only=True, map_location=device)
        if state["settings"] != settings:
            raise DataError(f"{out} holds a run with other settings: {state['settings']}; give another --out")
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, loss_mean = state["step"], state["seconds"], state["loss"]
        if seconds >= minutes * 60:
            return state

    def checkpoint() -> dict[str, Any]:
        state = {
            "settings": settings,
            "step": step,
            "seconds": seconds,
            "loss": loss_mean,
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
        }
        with atomic_write(out) as file:
            torch.save(state, file)
        return state

    loader = iter(
        DataLoader(
            Targets(store, channels, size, seed, weights or {}),
            batch_size=batch,
            sampler=range(step * batch, 2**31),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=collate,
        )
    )
    network.train()
    saved = seconds
    while seconds < minutes * 60 and (max_steps is None or step < max_steps):
        began = time.monotonic()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(peak_rate, seconds / (minutes * 60))
        batch_of: Target = next(loader)
        pixels = batch_of.image.to(device, memory_format=torch.channels_last)
        # as the model itself is trained: channels last, and bf16 where the device computes in it
        with autocast("bf16", torch.device(device)):
            logits = network(pixels)
        known = batch_of.known.to(device)
        loss = mask_loss(logits.float()[known], batch_of.masks.to(device)[known])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        now = loss.item()
        loss_mean = now if math.isnan(loss_mean) else 0.98 * loss_mean + 0.02 * now
        seconds += time.monotonic() - began
        if seconds - saved > CHECKPOINT_SECONDS:
            checkpoint()
            saved = seconds
            print(f"step {step}  {seconds / 60:.1f} min  loss {loss_mean:.4f}", file=sys.stderr, flush=True)
    return checkpoint()


def load(path: Path, device: str = "cpu") -> tuple[UNet, dict[str, Any]]:
    """The trained network in evaluation mode, and its checkpoint."""
    state = torch.load(path, weights_only=True, map_location=device)
    network = UNet(state["settings"]["width"], len(state["settings"]["channels"])).to(device)
    network.load_state_dict(state["network"])
    return network.eval(), state


@click.command()
@click.argument("data", type=click.Path(exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint; continued if there.")
@click.option("--concept", "concepts", multiple=True, help="Channels. [default: gland, nucleus]")
@click.option("--parameters", type=float, required=True, help="As many as the model has.")
@click.option("--minutes", type=float, required=True, help="Wall time of training in all.")
@click.option("--batch", type=int, default=12, show_default=True)
@click.option("--recipe", type=click.Path(exists=True), help="The model's recipe, for the weights of its sources.")
@click.option("--stem-weights", type=click.Path(exists=True), help="EfficientNet-Lite0 of ImageNet, for the encoder.")
@click.option("--size", type=int, default=256, show_default=True, help="Side of a view: the model's tiles.")
@click.option("--threads", type=int, help="CPU threads of torch. [default: torch's]")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that cut views.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    data: str,
    out: Path,
    concepts: tuple[str, ...],
    parameters: float,
    minutes: float,
    batch: int,
    recipe: str | None,
    stem_weights: str | None,
    size: int,
    threads: int | None,
    workers: int,
    device: str,
    seed: int,
) -> None:
    """Train the U-Net on the training split of DATA."""
    if threads:
        torch.set_num_threads(threads)
    state = train(
        QuadrupletStore.open(data),
        out,
        channels=concepts or ("gland", "nucleus"),
        parameters=int(parameters),
        minutes=minutes,
        size=size,
        batch=batch,
        weights=load_recipe(SftRecipe, recipe).source_weights if recipe else None,
        seed=seed,
        workers=workers,
        device=device,
        stem_weights=stem_weights,
    )
    network, _ = load(out)
    print(f"{count_parameters(network):,} parameters, {state['step']} steps, {state['seconds'] / 60:.1f} min")


if __name__ == "__main__":
    main()
