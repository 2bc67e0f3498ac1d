"""How many ways to ask a model understands: question frames that it never saw, around names that it knows.

    python -m benchmarks.quality.wordings STORE.zarr --source ebhi_seg --concept gland --model tiny

The middles of a few images that show the structure are asked with every frame of validation and the structure's
first names; and, as a check, with words that do not exist, to which the answer is silence.
"""

from __future__ import annotations

import numpy as np

from benchmarks.quality.structure import drawn, parser_for, samples_with, view
from wsiseg.inference import Segmenter
from wsiseg.model import load_model
from wsiseg.training.data.chatter import no_word
from wsiseg.training.data.concepts import concept_of
from wsiseg.training.data.queries import FRAMES, VERBS, in_frame
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.data.terms import Noun
from wsiseg.training.metrics import dice, overlap

NAMES, FOUND = 3, 0.5  # names of the structure; least Dice of an outline that answers the question


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--model")
    parser.add_argument("--images", type=int, default=4)
    arguments = parser.parse_args()
    store = QuadrupletStore.open(arguments.store)
    model = load_model(arguments.model, device="cpu")
    nouns = concept_of(arguments.concept).names[:NAMES]
    mpp = model.mpp_for(nouns[0].text)
    samples = samples_with(store, arguments.source, arguments.split, arguments.concept, arguments.images)
    views = (view(sample, arguments.concept, mpp, model.tile_size) for sample in samples)
    tiles, truth = zip(*views, strict=True)
    print(ask(model, np.stack(tiles), np.stack(truth), nouns, mpp))


def ask(model: Segmenter, tiles: np.ndarray, truth: np.ndarray, nouns: tuple[Noun, ...], mpp: float) -> str:
    """Lines of text: the share of tiles (N, S, S, 3) in which each frame finds `truth` (N, S, S), then the means."""
    rng = np.random.default_rng(0)
    found, silent, lines = [], [], []
    for frame in FRAMES["val"]:
        verb = VERBS["val"][int(rng.integers(len(VERBS["val"])))]
        nonsense = Noun(f"{no_word(rng)}{no_word(rng)}s", "plural")
        said = [
            model.segment_tiles(tiles, in_frame(frame, verb, noun, f"the {noun.text}"), mpp)
            for noun in (*nouns, nonsense)
        ]
        masks = np.stack([drawn(answers, tiles.shape[1]) for answers in said])  # (names + 1, N, S, S)
        hits = [dice(overlap(m, t)) > FOUND for row in masks[:-1] for m, t in zip(row, truth, strict=True)]
        found.append(np.mean(hits))
        silent.append(np.mean(~masks[-1].any(axis=(1, 2))))
        lines.append(f"{found[-1]:.2f}  {frame}")
    heads = f"{len(lines)} frames × {', '.join(noun.text for noun in nouns)}, {len(tiles)} tiles"
    return "\n".join([*lines, f"{heads}: found {np.mean(found):.3f}, silent to nonsense {np.mean(silent):.3f}"])


if __name__ == "__main__":
    main()
