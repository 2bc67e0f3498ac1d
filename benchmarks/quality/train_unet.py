"""Train the closed-set U-Net on the same images, views and stain jitter as the model, for a given wall time.

    python -m benchmarks.quality.train_unet train.zarr --out runs/unet.pt --parameters 9e6 --minutes 60

Run again with the same --out it continues where it stopped; a finished run starts nothing. Minutes count
training only, over all starts. Views are addressed by position, so a resumed run sees the data it would have
seen; the learning rate follows the share of the minutes that is spent.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
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
from wsiseg.training.augment import jitter_stain, random_crop
from wsiseg.training.data.store import QuadrupletStore, Sample
from wsiseg.training.examples import _BLANK_SHARE, _CELL_MPP, _TISSUE_MPP, ExampleStream, blank_sample
from wsiseg.training.losses import mask_loss

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class View:
    """Pixels (3, S, S) in [0, 1], targets (C, S, S) of 0 and 1, and which channels have a truth (C,) bool."""

    image: torch.Tensor
    target: torch.Tensor
    known: torch.Tensor


class Views(Dataset):  # type: ignore[type-arg]
    """The images, views and blank glass that `ExampleStream` draws, with every channel's mask at once."""

    def __init__(self, store: QuadrupletStore, channels: tuple[str, ...], size: int, seed: int) -> None:
        self.stream = ExampleStream(store, tiny(), split="train", seed=seed, questions=1, length=1)
        self.channels, self.size = channels, size

    def __getitem__(self, position: int) -> View:
        stream = self.stream
        rng = np.random.default_rng((stream.seed, position))
        if rng.random() < _BLANK_SHARE:
            return make_view(blank_sample(self.size, rng), rng, self.channels, self.size, augment=False)
        source = stream.sources[int(rng.choice(len(stream.sources), p=stream.probability))]
        of_source = stream.groups[source]
        sample = stream.store.sample(of_source[int(rng.integers(len(of_source)))])
        return make_view(sample, rng, self.channels, self.size)


def make_view(
    sample: Sample, rng: np.random.Generator, channels: tuple[str, ...], size: int, *, augment: bool = True
) -> View:
    """As `wsiseg.training.examples.make_example` cuts and stains its view."""
    low, high = _CELL_MPP if "nucleus" in sample.layers and rng.random() < 0.9 else _TISSUE_MPP
    target_mpp = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    largest = 1.25 * min(sample.image.shape[:2]) / size
    scale = float(np.clip(target_mpp / (sample.mpp or 0.5), 0.4, largest))
    pixels, layers = random_crop(sample.image, sample.layers, size=size, scale=scale, rng=rng)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    if augment:
        image = jitter_stain(image, torch.Generator().manual_seed(int(rng.integers(2**31))))
    empty = np.zeros((size, size), bool)
    masks = np.stack([layers[name] > 0 if name in layers else empty for name in channels])
    known = [name in layers or name in sample.absent for name in channels]
    return View(image[0], torch.from_numpy(masks).float(), torch.tensor(known))


def collate(views: list[View]) -> View:
    return View(*(torch.stack([getattr(view, name) for view in views]) for name in View.__annotations__))


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
    peak_rate: float = 1e-3,
    seed: int = 0,
    workers: int = 1,
    device: str = "cpu",
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
    }
    torch.manual_seed(seed)
    network = UNet(settings["width"], len(channels)).to(device)  # type: ignore[arg-type]
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
            Views(store, channels, size, seed),
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
        views: View = next(loader)
        logits = network(views.image.to(device))
        known = views.known.to(device)
        loss = mask_loss(logits[known], views.target.to(device)[known])
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
        seed=seed,
        workers=workers,
        device=device,
    )
    network, _ = load(out)
    print(f"{count_parameters(network):,} parameters, {state['step']} steps, {state['seconds'] / 60:.1f} min")


if __name__ == "__main__":
    main()
