"""What it would cost to let one tile speak for others: why `wsiseg segment` asks every tile.

    python -m benchmarks.quality.shared_state STORE.zarr --split val --source ebhi_seg --concept gland \
        --query "outline the glands"

Central tiles of a set's images, asked in full. Then the state of `<SEG>` of one tile (a few in turn) prompts the mask
decoder on all the others; and whether their structure is there is guessed without generating: is the speaker's chain
more likely for this tile than the chain of a silent one?
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.quality.structure import parser_for, spread, view
from wsiseg.inference import IMAGE_TOKENS, MASK_FEATURES
from wsiseg.inference.decode import decode, encode_prefix
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.model import load_model
from wsiseg.model.prompt import PromptTokens
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.metrics import dice, overlap

SPEAKERS, BATCH = 6, 16


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--query", required=True)
    parser.add_argument("--present", type=int, default=24)
    parser.add_argument("--absent", type=int, default=12)
    arguments = parser.parse_args()
    model = load_model(device="cpu")
    assert isinstance(model, PathChatSegmenter)
    store = QuadrupletStore.open(arguments.store)
    there, absent = (
        [i for i in store.indices(split=arguments.split, source=source) if arguments.concept in known(i)]
        for source, known in (
            (arguments.source, lambda i: store.records[i].present),
            (None, lambda i: store.records[i].absent if store.records[i].mpp else ()),
        )
    )
    indices = [*spread(there, arguments.present), *spread(absent, arguments.absent)]
    mpp = model.mpp_for(arguments.query)
    views = [view(store.sample(i), arguments.concept, mpp, model.tile_size) for i in indices]
    tiles, truth = (np.stack(part) for part in zip(*views, strict=True))
    print(compare(model, tiles, truth, arguments.query, mpp))


@torch.inference_mode()
def compare(segmenter: PathChatSegmenter, tiles: np.ndarray, truth: np.ndarray, query: str, mpp: float) -> str:
    """Lines of text: Dice where the structure is there, the share of area outlined where it is not."""
    model, size = segmenter.model, tiles.shape[1:3]
    there = np.asarray(truth.any(axis=(1, 2)))
    (tokens,) = segmenter._encode(IMAGE_TOKENS, tiles)
    embedding, *finer = segmenter._encode(MASK_FEATURES, tiles)
    prompt = model.prompt(query, round(mpp, 1))
    prefix = encode_prefix(model, prompt)
    said = [c for i in range(0, len(tiles), BATCH) for c in decode(model, tokens[i : i + BATCH], prefix)]
    asked = np.array([c.seg_state is not None for c in said])

    def masks(states: torch.Tensor) -> np.ndarray:
        return (model.decode_masks(embedding, finer, states, size) > 0).numpy()

    nothing = torch.zeros(model.config.text.hidden_size)
    own = masks(torch.stack([nothing if c.seg_state is None else c.seg_state for c in said])) & asked[:, None, None]
    lines = [f"{there.sum()} tiles with it ({asked[there].sum()} found), {(~there).sum()} without"]
    lines.append(f"own chain: {_figures(own, truth, there)}")
    speakers = spread(np.flatnonzero(there & asked).tolist(), SPEAKERS)
    silent = spread(np.flatnonzero(~asked).tolist(), SPEAKERS // 2)
    likely = {i: log_likelihood(segmenter, tokens, prompt, said[i].ids) for i in [*speakers, *silent]}
    for speaker in speakers:
        others = np.arange(len(tiles)) != speaker
        state = said[speaker].seg_state
        assert state is not None
        shared = masks(state.expand(len(tiles), -1))
        figures = _figures(shared[others], truth[others], there[others])
        agree = [
            f"{np.mean(((likely[speaker] > likely[quiet]) == asked)[others & (np.arange(len(tiles)) != quiet)]):.2f}"
            for quiet in silent
        ]
        lines.append(f"tile {speaker} speaks: {figures}; guesses presence as the model does: {', '.join(agree) or '-'}")
    return "\n".join(lines)


def log_likelihood(
    segmenter: PathChatSegmenter, tokens: torch.Tensor, prompt: PromptTokens, chain: list[int]
) -> np.ndarray:
    """log P(chain | tile, query) for image tokens (B, n, H): (B,), in one pass, nothing is generated."""
    model, count = segmenter.model, len(tokens)
    before, after = (model.embed(torch.tensor(ids)) for ids in (prompt.before, prompt.after + chain))
    read = torch.cat([before.expand(count, -1, -1), tokens, after.expand(count, -1, -1)], dim=1)
    positions = model.positions(len(before), len(after))[:, None].expand(-1, count, -1)
    language = model.vlm.model.language_model
    states = language(inputs_embeds=read, position_ids=positions, use_cache=False).last_hidden_state
    logits = model.vlm.lm_head(states[:, -len(chain) - 1 : -1]).float().log_softmax(-1)  # (B, T, V)
    return logits.gather(-1, torch.tensor(chain).expand(count, -1)[..., None])[..., 0].sum(1).numpy()


def _figures(masks: np.ndarray, truth: np.ndarray, there: np.ndarray) -> str:
    found = np.mean([dice(overlap(m, t)) for m, t in zip(masks[there], truth[there], strict=True)])
    return f"Dice {found:.3f}" + (f", area drawn in vain {masks[~there].mean():.3f}" if (~there).any() else "")


if __name__ == "__main__":
    main()
