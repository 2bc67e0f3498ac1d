"""The model on tiles of a slide: ours beside the LISA way and beside transformers' `generate`, above the floor.

On the CPU the bundled model, in CPU seconds. Where there is a CUDA device also there, and random weights of the paper's
size, drawn on the device (speed does not depend on their values), in seconds of wall time; the table names the device.
Both peers get the same prompt and the same stops. On trained weights they give the same answers (tests); with random
ones all are made to stop where trained ones would.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LogitsProcessor, StoppingCriteria
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks.speed.rows import Row, Setup, measure_cost, with_ratios
from wsiseg.inference import IMAGE_TOKENS, MASK_FEATURES, REFILLS, TileMask, engine
from wsiseg.inference import decode as decoding
from wsiseg.inference.answers import CUDA_BATCH
from wsiseg.inference.decode import decode, encode_prefix
from wsiseg.inference.devices import in_turn
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.recorded import Chosen
from wsiseg.model import BUNDLED, load_model, model_folder
from wsiseg.model.config import PRESETS, PathChatConfig
from wsiseg.model.folder import TOKENIZER, build_model, filled, stored_keys
from wsiseg.model.pathchat import PathChatSegR1, tiles_to_tensor
from wsiseg.model.prompt import PromptTokenizer
from wsiseg.slide import open_slide
from wsiseg.tiles import GridSpec, SlideTiles, plan_grid

OURS, LISA, GENERATE = "wsiseg", "the LISA way: generate tile by tile, SAM for each", "generate, batch as ours"
PLAIN = "wsiseg, steps one by one"  # where a GPU records them
LARGE = f"wsiseg, batches of {CUDA_BATCH}, as `segment` on a GPU"
QUERY, BATCH = "outline the nuclei", 16
LISA_TILES = 8  # on a GPU, of seconds each
TILES = 32  # different ones; a GPU is asked about them again and again, as if they were a slide's
_STOPS = 2.3  # with random weights, chains of all lengths: 4.9 σ is the largest of 152,064 logits
_FLOAT32 = "positional_encoding_gaussian_matrix"


def measure(setup: Setup) -> list[Row]:
    rows = _rows(setup, "tiny", "cpu")
    if torch.cuda.is_available():
        rows += _rows(setup, "tiny", "cuda") + _rows(setup, "paper", "cuda")
    return rows


def _rows(setup: Setup, preset: str, device: str) -> list[Row]:
    cost = measure_cost(run, setup.slide, preset, device, setup.repeat)
    name, seconds, floor = cost.result
    part = f"model {preset}, {name}"
    rows = [Row(part, way, s, "tile", cost.peak_mb) for way, s in seconds.items()]
    return with_ratios(rows, LISA) + [Row(part, f"floor: {what}", s, "tile", 0.0) for what, s in floor.items()]


def run(slide: Path, preset: str, device: str, repeat: int) -> tuple[str, dict[str, float], dict[str, float]]:
    """Name of the device, seconds per tile of every way, and of every part at the device's own rates."""
    if device == "cpu":
        torch.set_num_threads(1)
    if preset == "tiny":
        loaded = load_model(device=device)
        assert isinstance(loaded, PathChatSegmenter)
        segmenter = loaded
    else:
        config = dataclasses.replace(PRESETS[preset](), max_new_tokens=128)
        segmenter = PathChatSegmenter(random_model(config, device), name="random", fingerprint="random")
    name = "1 CPU thread" if device == "cpu" else torch.cuda.get_device_name()
    tiles, mpp = some_tiles(slide, segmenter, TILES), segmenter.mpp_for(QUERY)
    # Random weights stop anywhere, and what they write hangs on the last bit of their logits, which is another at
    # another batch size: every way is made to write chains of the lengths that the bundled model's have.
    chains = None if preset == "tiny" else some_chains(segmenter.model.tokenizer, len(tiles))
    told = "" if chains is None else f", {np.mean([len(c) for c in chains]):.0f} tokens a tile"

    def peer(batch: int, look: bool) -> Callable[[np.ndarray], Any]:
        return lambda some: generated(segmenter, some, QUERY, mpp, batch, always_look=look, chains=chains)

    def wsiseg(batch: int, times: int) -> Callable[[np.ndarray], Any]:
        return lambda some: ours(segmenter, some, mpp, chains, batch, times)

    ways = {OURS: (wsiseg(BATCH, 1), 1), GENERATE: (peer(BATCH, False), 1), LISA: (peer(1, True), 1)}
    if device != "cpu":
        ways |= {OURS: (wsiseg(BATCH, 8), 8), LARGE: (wsiseg(CUDA_BATCH, 32), 32)}
        ways[PLAIN] = lambda some: unrecorded(segmenter, some, mpp, chains), 1
    seconds = dict.fromkeys(ways, math.inf)
    for answer, _ in ways.values():
        answer(tiles[:2])  # what is done once, at the first use
    for _ in range(repeat):
        for way, (answer, times) in ways.items():
            some = tiles[:LISA_TILES] if way == LISA and device != "cpu" else tiles
            seconds[way] = min(seconds[way], clock(partial(answer, some), device) / (times * len(some)))
    return name + told, seconds, floor_of(segmenter, tiles, mpp, chains)


def ours(
    segmenter: PathChatSegmenter,
    tiles: np.ndarray,
    mpp: float,
    chains: Sequence[list[int]] | None = None,
    batch: int = BATCH,
    times: int = 1,
) -> list[TileMask]:
    """About the tiles, so many times, as `wsiseg.inference.answers` asks about a large slide's: on a CPU in one thread.

    With `chains`, those that are written end where these do, whatever the logits say.
    """
    on_gpu = segmenter.device.type == "cuda"
    which = np.arange(len(tiles) * times) % len(tiles)
    together = REFILLS * batch if on_gpu else batch
    asked = (tiles[which[i : i + together]] for i in range(0, len(which), together))

    def ask(copy: PathChatSegmenter, some: np.ndarray) -> list[TileMask]:
        return copy.answer(copy.look(np.arange(len(some)), some.shape[1:3], lambda: some), QUERY, mpp, batch)

    copies = segmenter.copies if on_gpu else [segmenter]
    with nullcontext() if chains is None else ending(list(chains) * times, segmenter.model.tokenizer):
        return [answer for answers in in_turn(ask, copies, asked) for answer in answers]


def unrecorded(
    segmenter: PathChatSegmenter, tiles: np.ndarray, mpp: float, chains: Sequence[list[int]] | None = None
) -> list[TileMask]:
    with patch.object(decoding, "can_record", lambda _: False), patch.object(engine, "can_record", lambda _: False):
        return ours(segmenter, tiles, mpp, chains)


def some_chains(tokenizer: PromptTokenizer, count: int) -> list[list[int]]:
    """Chains of 34 to 57 tokens, as the bundled model's are of nuclei; every other one ends in `<SEG>`."""
    (word,) = tokenizer.encode_plain("a")
    return [[word] * (33 + 7 * k % 24) + [(tokenizer.seg, tokenizer.end)[k % 2]] for k in range(count)]


@contextmanager
def ending(chains: Sequence[list[int]], tokenizer: PromptTokenizer) -> Iterator[None]:
    """While it lasts, what `decode` writes about the next tiles ends at the lengths, and with the tokens, of `chains`.

    The device does all that it would do: only what it has chosen is taken for another token.
    """
    write, to_come = decoding._write, iter(chains)

    def planned(model: PathChatSegR1, steps: Any, batch: int, hear: Any) -> list[decoding.Completion]:
        told = _Planned(steps, list(islice(to_come, batch)), {tokenizer.seg, tokenizer.end})
        return write(model, told, batch, hear)  # type: ignore[arg-type]

    with patch.object(decoding, "_write", planned):
        yield


class _Planned:
    def __init__(self, steps: Any, chains: list[list[int]], stops: set[int]) -> None:
        self.steps, self.stops = steps, stops
        self.to_come = dict(enumerate(chains))  # of each sample

    def choose(self) -> Chosen:
        chosen: Chosen = self.steps.choose()
        token = []
        for sample, own in zip(chosen.samples, chosen.token, strict=True):
            planned, self.to_come[sample] = self.to_come[sample], self.to_come[sample][1:]
            is_told = planned and (len(planned) == 1 or own in self.stops)
            token.append(planned[0] if is_told else own)
        return dataclasses.replace(chosen, token=token)

    def go_on(self, waiting: list[int]) -> None:
        self.steps.go_on(waiting)


@torch.inference_mode()
def generated(
    segmenter: PathChatSegmenter,
    tiles: np.ndarray,
    query: str,
    mpp: float,
    batch: int,
    *,
    always_look: bool = False,
    chains: Sequence[list[int]] | None = None,
) -> list[TileMask]:
    """The peers: transformers' `generate` with all hidden states, `batch` tiles at a time.

    The encoders, which are no part of it, see as many at once as ours do.

    Args:
        always_look: SAM's encoder runs for every tile, as in LISA (arXiv:2308.00692, `evaluate`), not only where
            `<SEG>` came.
        chains: the tokens that are written about each tile, whatever the logits say.
    """
    model = segmenter.model
    answers: list[TileMask] = []
    for start in range(0, len(tiles), batch):
        some = tiles[start : start + batch]
        (tokens,) = segmenter._encode(IMAGE_TOKENS, some)
        forced = None if chains is None else chains[start : start + len(some)]
        written, states = _generate(model, tokens, query, mpp, forced)
        emitted = [i for i, state in enumerate(states) if state is not None]
        looked = list(range(len(some))) if always_look else emitted
        masks: dict[int, np.ndarray] = {}
        if looked:
            embedding, *finer = segmenter._encode(MASK_FEATURES, some[looked])
        if emitted:
            rows = [looked.index(i) for i in emitted]
            prompts = torch.stack([states[i] for i in emitted])  # type: ignore[misc]
            logits = model.decode_masks(embedding[rows], [f[rows] for f in finer], prompts, some.shape[1:3])
            masks = dict(zip(emitted, logits.sigmoid().float().cpu().numpy(), strict=True))
        answers += [TileMask(masks.get(i), model.tokenizer.decode(chain), math.nan) for i, chain in enumerate(written)]
    return answers


def _generate(
    model: PathChatSegR1, tokens: torch.Tensor, query: str, mpp: float, forced: Sequence[list[int]] | None
) -> tuple[list[list[int]], list[torch.Tensor | None]]:
    """Chains, and the states of `<SEG>`, to image tokens (B, n, H)."""
    tokenizer, config = model.tokenizer, model.config
    prompt = model.prompt(query, round(mpp, 1))
    images: Any = tuple(tokens)  # one for each, as transformers itself fills it
    whole = [*prompt.before, *[tokenizer.image_pad] * config.image_token_count, *prompt.after]
    ids = torch.tensor([whole] * len(tokens), device=model.device)
    output: Any = model.vlm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=images)},
        image_grid_thw=torch.tensor([[1, config.pathology.grid, config.pathology.grid]] * len(tokens)),
        mm_token_type_ids=(ids == tokenizer.image_pad).int(),
        max_new_tokens=config.max_new_tokens + 1,  # one more step reads the state of <SEG>
        do_sample=False,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.end,
        suppress_tokens=tokenizer.suppressed,
        stopping_criteria=[_AfterSeg(tokenizer.seg)],
        logits_processor=[] if forced is None else [_Forced(forced, len(whole), tokenizer.end, model.device)],
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    chains, states = [], []
    for row, written in enumerate(output.sequences[:, len(whole) :].tolist()):
        written = written[: config.max_new_tokens]
        stops = [i for i, token in enumerate(written) if token in (tokenizer.seg, tokenizer.end)]
        chain = written[: stops[0] + 1] if stops else written
        chains.append(chain)
        read_at = len(chain) if chain[-1] == tokenizer.seg else None  # step whose input is <SEG>
        states.append(None if read_at is None else output.hidden_states[read_at][-1][row, -1])
    return chains, states


class _AfterSeg(StoppingCriteria):  # type: ignore[misc]
    """A row is done one token after `<SEG>`."""

    def __init__(self, seg: int) -> None:
        self.seg = seg

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return input_ids[:, -2] == self.seg


class _Forced(LogitsProcessor):  # type: ignore[misc]
    """Each row writes its chain, and `end` behind it."""

    def __init__(self, chains: Sequence[list[int]], prompt: int, end: int, device: torch.device) -> None:
        longest = max(map(len, chains)) + 2
        padded = [chain + [end] * (longest - len(chain)) for chain in chains]
        self.tokens, self.prompt = torch.tensor(padded, device=device), prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at = min(input_ids.shape[1] - self.prompt, self.tokens.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, self.tokens[:, at, None], 0.0)


def random_model(config: PathChatConfig, device: str, dtype: torch.dtype = torch.bfloat16) -> PathChatSegR1:
    """A model of this size with random weights, drawn on the device. It knows nothing."""
    tokenizer = PromptTokenizer.from_file(model_folder(BUNDLED) / TOKENIZER)
    with torch.device("meta"):
        model = build_model(config, tokenizer)
    state = {}
    for key, value in stored_keys(model).items():
        kind = torch.float32 if key.endswith(_FLOAT32) else dtype if value.is_floating_point() else value.dtype
        tensor = torch.zeros(value.shape, dtype=kind, device=device)
        if value.ndim > 1:
            tensor.normal_(std=0.02)
        elif value.is_floating_point() and not key.endswith("bias"):
            tensor.fill_(1)  # norms and scales
        state[key] = tensor
    head = state.get("vlm.lm_head.weight")
    if head is not None:
        head[[tokenizer.seg, tokenizer.end]] *= _STOPS
    return filled(model, state, device, "random weights")


def some_tiles(slide: Path, segmenter: PathChatSegmenter, count: int) -> np.ndarray:
    """Tiles (count, S, S, 3) uint8, spread evenly over the slide's tissue."""
    with open_slide(slide) as opened:
        spec = GridSpec(segmenter.mpp_for(QUERY), segmenter.tile_size, segmenter.overlap)
        grid = plan_grid(opened, spec)
        wanted = set(np.linspace(0, len(grid) - 1, count).round().astype(int).tolist())
        found = [
            tile
            for indices, tiles in SlideTiles(opened, grid).batches(BATCH)
            for i, tile in zip(indices.tolist(), tiles, strict=True)
            if i in wanted
        ]
    return np.stack(found)


def clock(function: Callable[[], Any], device: str) -> float:
    """CPU seconds of this process; on a GPU, wall seconds until it is idle again."""
    now = time.process_time if device == "cpu" else time.perf_counter
    _wait(device)
    began = now()
    function()
    _wait(device)
    return now() - began


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


@torch.inference_mode()
def floor_of(
    segmenter: PathChatSegmenter, tiles: np.ndarray, mpp: float, planned: Sequence[list[int]] | None = None
) -> dict[str, float]:
    """Seconds per tile that the device needs at the rate of its own large matrix products: each part's operations,
    and for the language model, whose weights are read anew at every step, the copying of its bytes."""
    model, tile = segmenter.model, tiles[:1]
    device = model.device.type
    kind = model.vlm.lm_head.weight.dtype
    seen = model.image_tokens(tiles_to_tensor(tiles[:BATCH], model.device))
    with nullcontext() if planned is None else ending(planned, model.tokenizer):
        chains = decode(model, seen, encode_prefix(model, model.prompt(QUERY, mpp)))
    share = float(np.mean([chain.seg_state is not None for chain in chains]))
    length = round(np.mean([len(chain.ids) for chain in chains]))
    pixels, tokens = tiles_to_tensor(tile, model.device), seen[:1]
    embedding, finer = model.image_encoder(model.image_pixels(pixels))
    state = tokens[:, 0]
    prompt = model.prompt(QUERY, mpp)
    text = torch.tensor([[*prompt.after, *[model.tokenizer.end] * length]], device=model.device)
    read = torch.cat([tokens.to(kind), model.embed(text)], dim=1)
    language = model.vlm.model.language_model
    positions = model.positions(0, text.shape[1])[:, None]

    def chain() -> None:  # every token passes the layers once, and each of the answer's the head
        states = language(inputs_embeds=read, position_ids=positions, use_cache=False).last_hidden_state
        model.vlm.lm_head(states[:, -length:])

    parts: Sequence[tuple[str, float, Callable[[], Any]]] = (
        ("pathology encoder", 1.0, lambda: model.image_tokens(pixels)),
        ("prompt and chain", 1.0, chain),
        ("SAM encoder where asked", share, lambda: model.image_encoder(model.image_pixels(pixels))),
        ("mask decoder where asked", share, lambda: model.decode_masks(embedding, finer, state, tile.shape[1:3])),
    )
    rate = matmul_rate(device, kind)
    floor = {}
    for name, weight, call in parts:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # which counts no other with GQA
            call()
        operations = weight * counter.get_total_flops()
        floor[f"{name}, {operations / 1e9:.2f} GFLOP at {rate / 1e9:.0f} GFLOP/s"] = operations / rate
    whole = sum(floor.values())
    size = sum(p.numel() * p.element_size() for p in language.layers.parameters())
    copying = copy_rate(device)
    floor["all parts"] = whole
    floor[f"weights of the chain, {size / 1e6:.0f} MB a step at {copying / 1e9:.1f} GB/s"] = (
        size * length / BATCH / copying
    )
    return floor


def matmul_rate(device: str, kind: torch.dtype) -> float:
    """Operations per second of a large square matrix product."""
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return 2 * side**3 / min(clock(lambda: a @ b, device) for _ in range(5))


def copy_rate(device: str) -> float:
    """Bytes per second read and written by a copy that no cache holds."""
    source = torch.zeros(64 << 20 if device == "cpu" else 1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / min(clock(lambda: target.copy_(source), device) for _ in range(5))
