"""What a first look at half the magnification saves, and loses: the price of `wsiseg segment --first-pass`.

    python -m benchmarks.quality.first_pass STORE.zarr --split val --source ebhi_seg --concept gland \
        --query "outline the glands"

Fields of four tiles, the middles of four images that follow each other in the store and so mostly are of one kind,
because an image of these sets is hardly larger than a tile. Each field is asked as four tiles, and once as one tile of
twice the µm per pixel. A quarter in which the coarse answer draws nothing would not be asked.
"""

from __future__ import annotations

import numpy as np

from benchmarks.quality.structure import drawn, parser_for, spread, view
from wsiseg.inference import Segmenter
from wsiseg.model import load_model
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.metrics import dice, overlap

THRESHOLDS = (0.5, 0.1)  # of the coarse answer; the fine one is cut at 0.5


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--query", required=True)
    parser.add_argument("--fields", type=int, default=40)
    arguments = parser.parse_args()
    store = QuadrupletStore.open(arguments.store)
    known = [
        i
        for i in store.indices(split=arguments.split, source=arguments.source)
        if arguments.concept in (*store.records[i].present, *store.records[i].absent)
    ]
    model = load_model(device="cpu")
    mpp = model.mpp_for(arguments.query)
    chosen = spread(known, 4 * arguments.fields)
    views = [view(store.sample(i), arguments.concept, mpp, model.tile_size) for i in chosen[: len(chosen) // 4 * 4]]
    tiles, truth = (np.stack(part) for part in zip(*views, strict=True))  # (4N, S, S, 3), (4N, S, S)
    print(compare(model, tiles, truth, arguments.query, mpp))


def compare(model: Segmenter, tiles: np.ndarray, there: np.ndarray, query: str, mpp: float) -> str:
    """Lines of text: what is found in tiles (4N, S, S, 3), and what is left of it behind a coarse look at each four."""
    size = there.shape[1]
    fine = drawn(model.segment_tiles(tiles, query, mpp), size)  # (4N, S, S)
    asked = np.asarray(fine.any(axis=(1, 2)))
    lines = [f"{len(fine)} tiles, {there.any(axis=(1, 2)).sum()} with it; {_figures(fine, there)}"]
    looked = model.segment_tiles(from_afar(tiles), query, 2 * mpp)
    for threshold in THRESHOLDS:
        let_in = np.asarray(quarters(drawn(looked, size, threshold)).any(axis=(1, 2)))
        lines.append(
            f"coarse look cut at {threshold}: asks {let_in.mean():.2f} of the tiles (and a quarter as many coarse "
            f"ones), keeps {(let_in & asked).sum() / asked.sum():.3f} of those with an outline; "
            + _figures(fine & let_in[:, None, None], there)
        )
    return "\n".join(lines)


def from_afar(tiles: np.ndarray) -> np.ndarray:
    """(4N, S, S, 3) uint8, each four laid together -> (N, S, S, 3), a pixel the mean of four."""
    n, size = len(tiles) // 4, tiles.shape[1]
    laid = tiles.reshape(n, 2, 2, size, size, 3).swapaxes(2, 3)  # (N, row, y, column, x, 3)
    return laid.reshape(n, size, 2, size, 2, 3).mean(axis=(2, 4)).round().astype(np.uint8)


def quarters(fields: np.ndarray) -> np.ndarray:
    """(N, 2S, 2S, …) -> (4N, S, S, …)."""
    size = fields.shape[1] // 2
    parts = [fields[:, y : y + size, x : x + size] for y in (0, size) for x in (0, size)]
    return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def _figures(masks: np.ndarray, truth: np.ndarray) -> str:
    there = truth.any(axis=(1, 2))
    found = np.mean([dice(overlap(m, t)) for m, t in zip(masks[there], truth[there], strict=True)])
    return f"Dice {found:.3f}, area drawn in vain {masks[~there].mean() if (~there).any() else 0:.4f}"


if __name__ == "__main__":
    main()
