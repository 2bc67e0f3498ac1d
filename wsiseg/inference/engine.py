"""PathChat-SegR1 as a `Segmenter`: encode, decode, and draw masks only for tiles that asked for one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from wsiseg.errors import QueryError
from wsiseg.inference import IMAGE_TOKENS, MASK_FEATURES, TileMask
from wsiseg.inference.decode import Prefix, decode, encode_prefix
from wsiseg.inference.features import TileFeatures
from wsiseg.model.pathchat import PathChatSegR1, tiles_to_tensor
from wsiseg.tiles import Embeddings

_log = logging.getLogger(__name__)
_MAX_QUERY_TOKENS = 256
# What convolutions make of more tiles than this overflows a CPU's caches: 16 at once cost 2.7 times as much as 4 by 4.
_CPU_TILES = 4


class PathChatSegmenter:
    """A loaded model with its name and fingerprint. Batches are halved when the device runs out of memory."""

    def __init__(self, model: PathChatSegR1, *, name: str, fingerprint: str) -> None:
        self.model: PathChatSegR1 = model.eval()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name, self.fingerprint = name, fingerprint
        self.tile_size, self.overlap = model.config.tile_size, model.config.overlap
        self._largest: int | None = None  # batch size that is known to fit
        self._prefix = lru_cache(maxsize=16)(self._encode_prefix)

    def mpp_for(self, query: str) -> float:
        """Cells are looked at closer up than tissue, as a pathologist changes the objective."""
        config = self.model.config
        words = query.casefold()
        return config.cell_mpp if any(word in words for word in config.cell_words) else config.mpp

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        """See `Segmenter`.

        Raises:
            QueryError: the query is too long for the model.
        """
        features = self.look(np.arange(len(tiles)), tiles.shape[1:3], lambda: tiles)
        return self.answer(features, query, mpp)

    def look(
        self,
        indices: np.ndarray,
        size: tuple[int, int],
        read: Callable[[], np.ndarray],
        kept: Embeddings | None = None,
    ) -> TileFeatures:
        """See `Encoder`."""
        return TileFeatures(self._encode, indices, size, read, kept, self.model.device)

    def answer(self, features: TileFeatures, query: str, mpp: float) -> list[TileMask]:
        """See `Encoder`. Raises QueryError as `segment_tiles`."""
        answers: list[TileMask] = []
        while len(answers) < len(features):
            rows = range(len(features))[len(answers) :][: self._largest]
            try:
                answers += self._answer(features, rows, query, mpp)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                self._largest = len(rows) // 2
                torch.cuda.empty_cache()
                _log.warning("out of memory with %d tiles at once; going on with %d", len(rows), self._largest)
        return answers

    def _encode(self, part: str, tiles: np.ndarray) -> list[torch.Tensor]:
        """One part of what is seen of tiles (B, H, W, 3) uint8; each array (B, …)."""
        at_once = _CPU_TILES if self.model.device.type == "cpu" else len(tiles)
        groups = [self._encode_group(part, tiles[i : i + at_once]) for i in range(0, len(tiles), at_once)]
        return [torch.cat(arrays) for arrays in zip(*groups, strict=True)]

    @torch.inference_mode()
    def _encode_group(self, part: str, tiles: np.ndarray) -> list[torch.Tensor]:
        pixels = tiles_to_tensor(tiles, self.model.device)  # (B, 3, H, W)
        if part == IMAGE_TOKENS:
            return [self.model.image_tokens(pixels)]  # (B, n, hidden)
        embedding, finer = self.model.image_encoder(self.model.image_pixels(pixels))
        return [embedding, *finer]

    @torch.inference_mode()
    def _answer(self, features: TileFeatures, rows: Sequence[int], query: str, mpp: float) -> list[TileMask]:
        model = self.model
        (tokens,) = features.part(IMAGE_TOKENS, rows)
        completions = decode(model, tokens, self._prefix(query, round(mpp, 1)))
        probability: list[np.ndarray | None] = [None] * len(rows)
        emitted = [i for i, completion in enumerate(completions) if completion.seg_state is not None]
        if emitted:
            states = torch.stack([c.seg_state for c in completions if c.seg_state is not None])
            seen = features.part(MASK_FEATURES, [rows[i] for i in emitted])
            embedding, *finer = (array.to(states.dtype) for array in seen)
            masks = model.decode_masks(embedding, finer, states, features.size)
            for i, mask in zip(emitted, masks.sigmoid().float().cpu().numpy(), strict=True):
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

    def _encode_prefix(self, query: str, mpp: float) -> Prefix:
        prompt = self.model.prompt(query, mpp)
        if len(prompt.before) > _MAX_QUERY_TOKENS:
            raise QueryError(f"the query takes {len(prompt.before)} tokens; shorten it to {_MAX_QUERY_TOKENS} or fewer")
        return encode_prefix(self.model, prompt)
