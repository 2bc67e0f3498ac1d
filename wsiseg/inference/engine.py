"""PathChat-SegR1 as a `Segmenter`: encode, decode, and draw masks only for tiles that asked for one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import chain
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakMethod

import numpy as np
import torch

from wsiseg.errors import ModelError, QueryError
from wsiseg.inference import IMAGE_TOKENS, MASK_FEATURES, REFILLS, TileMask
from wsiseg.inference.decode import Completion, Prefix, computes_nan, decode, encode_prefix
from wsiseg.inference.devices import cpu_threads
from wsiseg.inference.features import TileFeatures
from wsiseg.inference.recorded import can_record, give_back, has_idle
from wsiseg.inference.room import Room
from wsiseg.inference.shots import Shot
from wsiseg.inference.told import with_outlines, without_outlines
from wsiseg.model import is_out_of_memory, no_memory
from wsiseg.model.pathchat import PathChatSegR1, layout, tiles_to_tensor
from wsiseg.model.prototypes import Prototypes, prototypes
from wsiseg.tiles import Embeddings

T = TypeVar("T")
_log = logging.getLogger(__name__)
# What convolutions make of more tiles than this overflows a CPU's caches: 16 at once cost 2.7 times as much as 4 by 4.
_CPU_TILES = 4
# Weights of a model whose every operation is work enough for all threads of a CPU. Those of a smaller one wait for each
# other, and the longer the more else is at work on the machine: there each thread takes a batch of its own.
_LARGE = 100e6
_AT_ONCE = 8  # batches at most: each takes 0.2 GB; more threads are shared out among them
# Batches at once on a GPU: while one is decoded, which reads weights and computes little, another is looked at.
_STREAMS = 2
_CUDA_PIXELS = 8 * 1024**2  # that an encoder sees at once there: more are no quicker, and take more memory


def most_at_once(side: int) -> int:
    """Images of side × side pixels that an encoder is given at once on a GPU."""
    return max(1, _CUDA_PIXELS // side**2)


class PathChatSegmenter:
    """A loaded model with its name and fingerprint. Batches are halved when the device runs out of memory.

    What it sees of a tile does not depend on `shots`, the examples that it was shown: neither does `fingerprint`.
    """

    def __init__(
        self,
        model: PathChatSegR1,
        *,
        name: str,
        fingerprint: str,
        caution: str = "",
        shots: Sequence[Shot] = (),
        tell: Callable[[list[str]], None] | None = None,
    ) -> None:
        self.model: PathChatSegR1 = model.eval()
        self.model.to(memory_format=layout(model.device))  # type: ignore[call-overload]
        self.name, self.fingerprint, self._caution = name, fingerprint, caution
        self.tile_size, self.overlap = model.config.tile_size, model.config.overlap
        self._room = Room()
        self._prefix = _remembered(self._encode_prefix, 16)
        self.shots, self._tell = tuple(shots), tell
        self._views = _remembered(self._view_shots, 4)
        self._prototypes = _remembered(self._compare_shots, 4)
        self._trust = _remembered(self._try_on_shots, 16)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process, as the workers of a cluster, go the weights and examples; who listens stays here."""
        again = partial(
            PathChatSegmenter, name=self.name, fingerprint=self.fingerprint, caution=self._caution, shots=self.shots
        )
        return again, (self.model,)

    def with_shots(self, shots: Sequence[Shot]) -> PathChatSegmenter:
        """See `InContext`. The weights are shared."""
        return self._like(shots, self._tell)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def refills(self) -> int:
        """See `Encoder`: where steps are recorded, the next tile takes the place of one that is done."""
        return REFILLS if can_record(self.model) else 1

    @property
    def copies(self) -> Sequence[PathChatSegmenter]:
        """See `Copied`: one for each thread of a CPU, of which there may be more, or each of the streams of a GPU.
        Whoever listens hears all of them."""
        at_once = self._at_once()
        if self._tell is None or at_once == 1:
            return [self] * at_once
        return [self._like(self.shots, tell) for tell in _parted(self._tell, at_once)]

    def _at_once(self) -> int:
        if self.device.type == "cuda":
            return 1 if torch.are_deterministic_algorithms_enabled() else _STREAMS
        is_large = sum(weight.numel() for weight in self.model.parameters()) > _LARGE
        return 1 if is_large or self.device.type != "cpu" else min(_AT_ONCE, cpu_threads())

    def heard_by(self, tell: Callable[[list[str]], None]) -> PathChatSegmenter:
        """See `Audible`. The weights are shared."""
        return self._like(self.shots, tell)

    def _like(self, shots: Sequence[Shot], tell: Callable[[list[str]], None] | None) -> PathChatSegmenter:
        other = PathChatSegmenter(
            self.model, name=self.name, fingerprint=self.fingerprint, caution=self._caution, shots=shots, tell=tell
        )
        other._room = self._room
        return other

    def asks_for_cells(self, query: str) -> bool:
        """See `KnowsCells`."""
        config = self.model.config
        return config.asks_for_cells(config.plain(query))

    def caution_for(self, query: str) -> str:
        """See `KnowsLimits`. The folder's caution is about tissue."""
        told = with_outlines(self.model.config, query, shown=bool(self.shots))
        limits = "" if self.asks_for_cells(query) else self._caution
        return " ".join(filter(None, (told, limits)))

    def hint_for(self, query: str) -> str:
        """See `KnowsNames`."""
        return without_outlines(self.model.config, query, shown=bool(self.shots))

    def mpp_for(self, query: str) -> float:
        """Cells are looked at closer up than tissue, as a pathologist changes the objective."""
        return self.model.config.cell_mpp if self.asks_for_cells(query) else self.model.config.mpp

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        """See `Segmenter`.

        Raises:
            QueryError: the query is too long for the model.
            ModelError: its device has no memory for a single tile, or it computes NaN.
        """
        features = self.look(np.arange(len(tiles)), tiles.shape[1:3], lambda: tiles)
        return self.answer(features, query, mpp)

    def look(
        self,
        indices: np.ndarray,
        size: tuple[int, int],
        read: Callable[[], np.ndarray | torch.Tensor],
        kept: Embeddings | None = None,
    ) -> TileFeatures:
        """See `Encoder`."""
        return TileFeatures(self._encode, indices, size, read, kept, self.model.device)

    def answer(
        self, features: TileFeatures, query: str, mpp: float, at_once: int | None = None
    ) -> list[TileMask]:
        """See `Encoder`. Raises QueryError, ModelError as `segment_tiles`."""
        answers: list[TileMask] = []
        if self.shots and self.model.config.shot_weight and len(features):
            self._trust(query, mpp)  # remembered; not below, where room is taken
        given_back = False
        while len(answers) < len(features):
            with self._room.taken() as attempt:
                slots, refills = self._room.fitting(at_once or len(features)), self.refills
                rows = range(len(features))[len(answers) :][: refills * slots if slots > 1 else 1]
                size = slots if refills > 1 else min(slots, len(rows))  # steps are recorded over all slots
                try:
                    answers += self._answer(features, rows, query, mpp, [a.reasoning for a in answers], slots)
                    continue
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    given_back = attempt.alone and not given_back and has_idle(self.model)
                    if attempt.alone and size == 1 and not given_back:
                        raise ModelError(no_memory(self.device, "one tile beside the model")) from error
                # Only here: the error, while it is handled, holds what the batch had in memory.
                give_back(self.model)
                if not given_back and (told := self._room.less(attempt, size)):
                    _log.warning("%s", told)
        if self._tell:
            self._tell([])
        return answers

    def _encode(self, part: str, tiles: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
        """One part of what is seen of tiles (B, H, W, 3) uint8; each array (B, …)."""
        at_once = self._seen_at_once(part, tiles)
        groups = [self._encode_group(part, tiles[i : i + at_once]) for i in range(0, len(tiles), at_once)]
        return [torch.cat(arrays) for arrays in zip(*groups, strict=True)]

    def _seen_at_once(self, part: str, tiles: np.ndarray | torch.Tensor) -> int:
        if self.device.type == "cpu":
            return _CPU_TILES
        config = self.model.config
        side = config.pathology.image_size if part == IMAGE_TOKENS else config.image.image_size
        return self._room.fitting(most_at_once(side or tiles.shape[1]))

    @torch.inference_mode()
    def _encode_group(self, part: str, tiles: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
        pixels = tiles_to_tensor(tiles, self.model.device)  # (B, 3, H, W)
        if part == IMAGE_TOKENS:
            return [self.model.image_tokens(pixels)]  # (B, n, hidden)
        embedding, finer = self.model.image_encoder(self.model.image_pixels(pixels))
        return [embedding, *finer]

    @torch.inference_mode()
    def _answer(
        self, features: TileFeatures, rows: Sequence[int], query: str, mpp: float, said: Sequence[str], slots: int
    ) -> list[TileMask]:
        """About these rows of the batch, `slots` of them at once; `said` was written about those before."""
        model = self.model
        (tokens,) = features.part(IMAGE_TOKENS, rows)
        completions = self._complete(tokens, query, mpp, said, slots)
        probability: list[np.ndarray | None] = [None] * len(rows)
        emitted = [i for i, completion in enumerate(completions) if completion.seg_state is not None]
        for start in range(0, len(emitted), slots):
            some = emitted[start : start + slots]
            states = torch.stack([state for i in some if (state := completions[i].seg_state) is not None])
            masks = self._masks(features, [rows[i] for i in some], states, query, mpp)
            for i, mask in zip(some, masks.sigmoid().float().cpu().numpy(), strict=True):
                if np.isnan(mask).any():  # no pixel of it would pass a threshold
                    raise computes_nan(model, "masks")
                probability[i] = mask
        return [
            TileMask(
                mask,
                model.tokenizer.decode(completion.ids),
                completion.seg_probability,
                None if mask is None else len(completion.ids) - 1,
            )
            for mask, completion in zip(probability, completions, strict=True)
        ]

    def _masks(
        self, features: TileFeatures, rows: Sequence[int], states: torch.Tensor, query: str, mpp: float
    ) -> torch.Tensor:
        """Logits (b, H, W) of the rows whose `<SEG>` has these states (b, hidden)."""
        model, seen = self.model, features.part(MASK_FEATURES, rows)
        embedding, *finer = (array.to(states.dtype) for array in seen)
        masks = model.decode_masks(embedding, finer, states, features.size)
        if self.shots and (weight := model.config.shot_weight):
            trust = self._trust(query, mpp)
            shown = self._prototypes(mpp).log_odds([embedding, *finer], features.size)
            masks = trust * masks + (1 - trust) * weight * shown
        return masks

    def _complete(
        self, tokens: torch.Tensor, query: str, mpp: float, said: Sequence[str], slots: int
    ) -> list[Completion]:
        tell, text = self._tell, self.model.tokenizer.decode
        hear = None if tell is None else lambda ids: tell([*said, *map(text, ids)])
        return decode(self.model, tokens, self._prefix(query, mpp), slots=slots, hear=hear)

    def _encode_prefix(self, query: str, mpp: float) -> Prefix:
        model = self.model
        query = model.config.plain(query)
        asked = model.prompt(query, mpp)
        length, most = len(asked.before), model.config.max_query_tokens
        if length > most:
            around = len(model.prompt("", mpp).before)  # what no shortening takes away
            raise QueryError(
                f"the query is too long for the model {self.name} ({length} tokens, it reads {most}): shorten it to "
                f"{100 * (most - around) // (length - around)} % or less"
            )
        if not self.shots or not model.config.shots_in_context:
            return encode_prefix(model, asked)
        prompt, read_at_once = model.prompt(query, mpp, len(self.shots)), model.config.text.max_position_embeddings
        shown = sum(map(len, prompt.shared)) + (len(self.shots) + 1) * model.config.image_token_count
        if shown + len(prompt.after) + model.config.max_new_tokens > read_at_once:
            raise QueryError(f"{len(self.shots)} examples are too many for the {read_at_once} tokens of the model")
        tiles, _ = self._views(mpp)
        return encode_prefix(model, prompt, model.image_tokens(tiles_to_tensor(tiles, model.device)))

    def _view_shots(self, mpp: float) -> tuple[np.ndarray, np.ndarray]:
        """The examples as tiles (K, S, S, 3) uint8 with masks (K, S, S) bool."""
        tiles, masks = zip(*(shot.view(mpp, self.tile_size) for shot in self.shots), strict=True)
        return np.stack(tiles), np.stack(masks)

    def _compare_shots(self, mpp: float) -> Prototypes:
        tiles, masks = self._views(mpp)
        return prototypes(self._encode(MASK_FEATURES, tiles), torch.from_numpy(masks).to(self.model.device))

    def _try_on_shots(self, query: str, mpp: float) -> float:
        """How far the model is to be trusted without examples: the mean Dice of its masks for theirs."""
        tiles, masks = self._views(mpp)
        answers = self._like((), None).segment_tiles(tiles, query, mpp)
        drawn = [
            0 * mask if a.probability is None else a.probability > 0.5 for a, mask in zip(answers, masks, strict=True)
        ]
        return float(np.mean([_dice(a, b) for a, b in zip(drawn, masks, strict=True)]))


def _parted(tell: Callable[[list[str]], None], parts: int) -> list[Callable[[list[str]], None]]:
    """`tell` for so many who write at the same time: it hears what all of them have written, one after the other."""
    written: list[list[str]] = [[] for _ in range(parts)]
    lock = Lock()

    def told(part: int, texts: list[str]) -> None:
        with lock:
            written[part] = texts
            tell(list(chain.from_iterable(written)))

    return [partial(told, part) for part in range(parts)]


def _remembered(method: Callable[..., T], size: int) -> Callable[..., T]:
    """`method`, its last `size` results kept. Its object does not hold itself: its memory is free at once."""
    weak = WeakMethod(method)

    def call(*key: Any) -> T:
        alive: Any = weak()
        assert alive is not None
        result: T = alive(*key)
        if (device := alive.__self__.device).type == "cuda":  # what is remembered is taken on other streams, too
            torch.cuda.current_stream(device).synchronize()
        return result

    return lru_cache(size)(call)


def _dice(drawn: np.ndarray, marked: np.ndarray) -> float:
    return float(2 * (drawn & marked).sum() / (drawn.sum() + marked.sum()))
