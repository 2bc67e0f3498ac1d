"""How many requests a model understands, as people type them.

    python -m benchmarks.quality.typed open.zarr --model tiny --write docs/wordings.md

`typed.json` holds 397 requests, by structure, and of things that the pictures do not hold. They were written by a
language model that was told to think of pathologists, technicians and students at a keyboard, and that saw neither this
code nor its tables of wordings. Never train on them.

Each is asked of the middles of a few images in which the plain request ("outline the glands") finds the structure, at
the scale that its own words choose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import numpy as np

from benchmarks.quality.structure import drawn, samples_with, view
from wsiseg.inference import Segmenter
from wsiseg.model import load_model
from wsiseg.training.data.queries import plain_query
from wsiseg.training.data.store import QuadrupletStore, Sample
from wsiseg.training.metrics import dice, overlap

TYPED = Path(__file__).with_suffix(".json")
# Where each structure is looked for. The set with necrosis has one field, of which training saw a part.
SOURCES = {
    "gland": ("ebhi_seg", "val"), "malignant": ("ebhi_seg", "val"), "dysplastic": ("ebhi_seg", "val"),
    "nucleus": ("nuinsseg", "val"), "necrosis": ("necrosis_sbu", "train"), "stroma": ("ebhi_seg", "val"),
    "lumen": ("ebhi_seg", "val"), "tissue": ("ebhi_seg", "val"), "glass": ("ebhi_seg", "val"),
}  # fmt: skip
ABSENT = "absent"  # asked of the images of glands and of nuclei
FOUND = 0.5  # least Dice of an outline that answers the request

HEADER = """# What people type

Do people get what they ask for, in their own words? 397 requests ([`typed.json`](../benchmarks/quality/typed.json))
were written by a language model that was told to think of pathologists, technicians and students at a keyboard, and
that saw neither the code nor its tables of wordings. No model is trained on them, and the words by
which `tiny` reads half of them plainly ([model.md](model.md)) were chosen without a look at them.

`python -m benchmarks.quality.typed open.zarr --write docs/wordings.md`: each request is asked of the middles of up
to {images} images (of patients and organs kept back; of necrosis, of which there is one field, of training) in
which "outline the glands" and the like find the structure, at the scale that its own words choose. Understood is
what brings an outline with a Dice above 0.5; what is not there is asked of the images of glands and of nuclei, and
understood is silence. The model is {model}.

"""

Views = Callable[[float], tuple[np.ndarray, np.ndarray]]  # at µm per pixel: tiles (N, S, S, 3), truth (N, S, S)


@dataclass(frozen=True)
class Answered:
    """What a request was for, and in which share of the tiles it was answered as it should be."""

    structure: str  # or ABSENT
    share: float


@click.command(help=__doc__.splitlines()[0])
@click.argument("store", type=click.Path(exists=True, path_type=Path))
@click.option("--model", "name", default="tiny", show_default=True)
@click.option("--images", default=4, show_default=True, help="Images of each structure.")
@click.option("--write", type=click.Path(path_type=Path), help="The page that is written.")
def main(store: Path, name: str, images: int, write: Path | None) -> None:
    requests, data, model = json.loads(TYPED.read_text()), QuadrupletStore.open(store), load_model(name, device="cpu")
    answered: list[Answered] = []
    for structure, (source, split) in SOURCES.items():
        samples = samples_with(data, source, split, structure, 3 * images)
        views = views_of(samples, structure, model.tile_size)
        absent = requests[ABSENT] if structure in ("gland", "nucleus") else []
        answered += ask(model, views, structure, requests[structure], absent, images)
    text = page(answered)
    click.echo(text)
    if write:
        write.write_text(HEADER.format(model=f"{model.name} ({model.fingerprint[:8]})", images=images) + text + "\n")


def views_of(samples: list[Sample], structure: str, size: int) -> Views:
    """The middles of the images, at any scale."""

    @cache
    def views(mpp: float) -> tuple[np.ndarray, np.ndarray]:
        tiles, truth = zip(*(view(sample, structure, mpp, size) for sample in samples), strict=True)
        return np.stack(tiles), np.stack(truth)

    return views


def ask(
    model: Segmenter, views: Views, structure: str, present: list[str], absent: list[str], images: int
) -> Iterator[Answered]:
    """Ask for what is `present` and `absent` in the first `images` tiles in which the plain request finds it."""
    plain = plain_query(structure)
    tiles, truth = views(model.mpp_for(plain))
    can = np.flatnonzero(_found(model, tiles, truth, plain))[:images]
    for request in present:
        tiles, truth = views(model.mpp_for(request))
        yield Answered(structure, float(np.mean(_found(model, tiles[can], truth[can], request))))
    for request in absent:
        tiles, _ = views(model.mpp_for(request))
        yield Answered(ABSENT, float(np.mean(~_masks(model, tiles[can], request).any(axis=(1, 2)))))


def _found(model: Segmenter, tiles: np.ndarray, truth: np.ndarray, request: str) -> list[bool]:
    masks = _masks(model, tiles, request)
    return [dice(overlap(mask, there)) > FOUND for mask, there in zip(masks, truth, strict=True)]


def _masks(model: Segmenter, tiles: np.ndarray, request: str) -> np.ndarray:
    return drawn(model.segment_tiles(tiles, request, model.mpp_for(request)), tiles.shape[1])


def page(answered: list[Answered]) -> str:
    """A table by structure. Which requests failed it does not say: who knew could train for them."""
    shares: dict[str, list[float]] = {}
    for one in answered:
        shares.setdefault(one.structure, []).append(one.share)
    absent = shares.pop(ABSENT, [])
    shares["all of these"] = [one.share for one in answered if one.structure != ABSENT]
    if absent:
        shares["what is not there"] = absent
    rows = [f"| {name} | {len(mine)} | {np.mean(mine):.3f} |" for name, mine in shares.items()]
    return "\n".join(["| asked for | requests | understood |", "|---|---|---|", *rows])


if __name__ == "__main__":
    main()
