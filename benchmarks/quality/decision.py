"""How the decision to outline is balanced: what a `logit_bias` on the word that opens a refusal would do.

    python -m benchmarks.quality.decision open.zarr --split val --limit 300
    python -m benchmarks.quality.decision glas.zarr --split test

A chain is greedy, word by word. Where a refusal has one opening and an outline several, the refusal wins with less than
half of the probability. Every tile of the questions' images is asked; the margin of the refusal's word over the best
other one, where it stands, tells for every bias at once whether the tile would speak.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from wsiseg.inference import IMAGE_TOKENS
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model import load_model
from wsiseg.slide.resample import resample_region
from wsiseg.tiles.grid import m_length, tile_starts
from wsiseg.training.data.store import QuadrupletStore, Sample
from wsiseg.training.rl.policy import read_answers, read_prompt

BIASES = (0.0, -0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -4.0)
_POSSIBLE = 1e-4  # the word is weighed where it is at least this likely


@dataclass(frozen=True)
class Decision:
    """Of one tile: whether the structure is in it, and by how much the refusal beats the next best word."""

    there: bool
    margin: float


def decisions(segmenter: PathChatSegmenter, tiles: np.ndarray, query: str, mpp: float, word: int) -> list[float]:
    """Margins (log-odds) of `word` in the chains to tiles (B, H, W, 3) uint8; −inf where it was never possible."""
    model = segmenter.model
    (tokens,) = segmenter.look(np.arange(len(tiles)), tiles.shape[1:3], lambda: tiles).part(
        IMAGE_TOKENS, range(len(tiles))
    )
    prompt = model.prompt(query, round(mpp, 1))
    margins = []
    for completion, image in zip(segmenter._complete(tokens, query, mpp), tokens, strict=True):
        with torch.inference_mode():
            states = read_answers(model, read_prompt(model, prompt, image), torch.tensor([completion.ids]))[0]
            log_p = model.vlm.lm_head(states).float().log_softmax(-1)  # (T + 1, V)
        at = int(log_p[:, word].argmax())
        others = log_p[at].clone()
        others[word] = -torch.inf
        margin = float(log_p[at, word] - others.max())
        margins.append(margin if log_p[at, word].exp() > _POSSIBLE else -np.inf)
    return margins


def of_image(
    segmenter: PathChatSegmenter, sample: Sample, query: str, concept: str | None, word: int
) -> list[Decision]:
    """Of every tile of an image; those with a trace of the structure, neither a fair yes nor a fair no, left out."""
    size, mpp = segmenter.tile_size, segmenter.mpp_for(query)
    scale = mpp / (sample.mpp or mpp)
    height, width = sample.image.shape[:2]
    layer = sample.layers[concept] > 0 if concept else np.zeros((height, width), bool)
    corners = [
        (x, y)
        for y in tile_starts(m_length(height, 1.0, scale), size, segmenter.overlap)
        for x in tile_starts(m_length(width, 1.0, scale), size, segmenter.overlap)
    ]

    def read(x: int, y: int, w: int, h: int) -> np.ndarray:
        return sample.image[y : y + h, x : x + w]

    tiles = np.stack([resample_region(read, (width, height), (scale, scale), x, y, size, size) for x, y in corners])
    shares = [
        layer[int(y * scale) : int((y + size) * scale), int(x * scale) : int((x + size) * scale)].mean()
        for x, y in corners
    ]
    margins = decisions(segmenter, tiles, query, mpp, word)
    return [Decision(share > 0, m) for share, m in zip(shares, margins, strict=True) if share == 0 or share > 0.02]


def table(found: list[Decision]) -> str:
    """One line for each bias: the share of tiles that speak, with and without the structure."""
    there, margin = np.array([d.there for d in found]), np.array([d.margin for d in found])
    lines = ["| bias | speaks where due | where not due |", "|---|---|---|"]
    for bias in BIASES:
        speaks = margin + bias < 0
        lines.append(f"| {bias:g} | {speaks[there].mean():.3f} | {speaks[~there].mean():.3f} |")
    return "\n".join([f"{there.sum()} tiles with the structure, {(~there).sum()} without", "", *lines])


@click.command(help=__doc__.splitlines()[0])
@click.argument("data", type=click.Path(exists=True))
@click.option("--model", help="Name or folder. [default: the bundled one]")
@click.option("--word", default="ĠDark", show_default=True, help="Token with which a refusal opens.")
@click.option("--split", default="val", show_default=True)
@click.option("--limit", type=int, help="Questions, spread evenly.")
@click.option("--threads", type=int, help="CPU threads of torch.")
def main(data: str, model: str | None, word: str, split: str, limit: int | None, threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    segmenter, store = load_model(model, device="cpu"), QuadrupletStore.open(Path(data))
    assert isinstance(segmenter, PathChatSegmenter)
    (index,) = segmenter.model.tokenizer.biases({word: 0.0})
    questions = [q for q in store.quadruplets if store.records[q.image].split == split]
    chosen = np.linspace(0, len(questions) - 1, min(limit or len(questions), len(questions))).round().astype(int)
    found = []
    for q in (questions[i] for i in chosen):
        found += of_image(segmenter, store.sample(q.image), q.query, q.concept if q.present else None, index)
    print(table(found))


if __name__ == "__main__":
    main()
