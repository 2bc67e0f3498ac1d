"""How many steps of decoding tiles take when the next one takes the place of each that is done, and when none does.

    python -m benchmarks.speed.slots

Counted on the CPU, by the code that a GPU runs, with chains of given lengths: usual ones (34 to 57 tokens, as the
bundled model's of nuclei) and such as differ more (log-normal around 50, σ 0.5). The model is the bundled one's shape
with a single layer of random weights, as the number of steps does not depend on them. What a step takes on a GPU hardly
depends on what is in it: so seconds are steps times that.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.speed.model import QUERY, ending, random_model, some_chains
from wsiseg.inference import REFILLS, recorded
from wsiseg.inference import decode as decoding
from wsiseg.inference.decode import decode, encode_prefix
from wsiseg.model.config import PRESETS
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.model.prompt import PromptTokenizer


def steps_taken(model: PathChatSegR1, chains: Sequence[list[int]], slots: int, together: int) -> int:
    """Steps over `slots` rows each, for as many tiles as there are chains, `together` of them given at a time."""
    taken = 0

    def count(step: Callable[[], recorded.Read], device: torch.device) -> Callable[[], recorded.Read]:
        def replay() -> recorded.Read:
            nonlocal taken
            taken += 1
            return step()

        return replay

    recorded._idle.clear()
    prefix = encode_prefix(model, model.prompt(QUERY, 0.5))
    seen = torch.randn(together, model.config.image_token_count, model.config.text.hidden_size)
    with (
        patch.object(recorded, "_record", count),
        patch.object(decoding, "can_record", lambda _: True),
        ending(chains, model.tokenizer),
    ):
        for start in range(0, len(chains), together):
            decode(model, seen[: len(chains) - start], prefix, slots=slots)
    recorded._idle.clear()
    return taken


def long_tailed(tokenizer: PromptTokenizer, count: int) -> list[list[int]]:
    """Chains around 50 tokens, log-normal, σ 0.5, at most 127; every other one ends in `<SEG>`."""
    (word,) = tokenizer.encode_plain("a")
    lengths = np.clip(np.exp(np.random.default_rng(0).normal(np.log(50), 0.5, count)), 8, 127).astype(int)
    return [[word] * (n - 1) + [(tokenizer.seg, tokenizer.end)[k % 2]] for k, n in enumerate(lengths.tolist())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=256)
    arguments = parser.parse_args()
    config = PRESETS["tiny"]()
    text = dataclasses.replace(config.text, num_hidden_layers=1)
    model = random_model(dataclasses.replace(config, text=text, max_new_tokens=128), "cpu", torch.float32)
    tokenizer = model.tokenizer
    print("| chains | mean and longest | slots | a batch waits for its longest | the next tile takes its place |")
    print("|---|---|---|---|---|")
    for name, make in (("usual", some_chains), ("long tails", long_tailed)):
        chains = make(tokenizer, arguments.tiles)
        lengths = [len(chain) for chain in chains]
        for slots in (16, 64):
            plain, refilled = (steps_taken(model, chains, slots, slots * n) for n in (1, REFILLS))
            print(f"| {name} | {np.mean(lengths):.0f}, {max(lengths)} | {slots} | {plain} | {refilled} |")


if __name__ == "__main__":
    main()
