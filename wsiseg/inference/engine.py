"""PathChat-SegR1 as a `Segmenter`: encode, decode, and draw masks only for tiles that asked for one."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
import torch

from wsiseg.errors import QueryError
from wsiseg.inference import TileMask
from wsiseg.inference.decode import Prefix, decode, encode_prefix
from wsiseg.model.pathchat import PathChatSegR1, tiles_to_tensor

_log = logging.getLogger(__name__)
_MAX_QUERY_TOKENS = 256


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
        answers: list[TileMask] = []
        while len(answers) < len(tiles):
            size = self._largest or len(tiles)
            part = tiles[len(answers) : len(answers) + size]
            try:
                answers += self._segment(part, query, mpp)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._largest = len(part) // 2
                torch.cuda.empty_cache()
                _log.warning("out of memory with %d tiles at once; going on with %d", len(part), self._largest)
        return answers

    @torch.inference_mode()
    def _segment(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        model = self.model
        pixels = tiles_to_tensor(tiles, model.device)  # (B, 3, H, W)
        completions = decode(model, model.image_tokens(pixels), self._prefix(query, round(mpp, 1)))
        probability: list[np.ndarray | None] = [None] * len(tiles)
        emitted = [i for i, completion in enumerate(completions) if completion.seg_state is not None]
        if emitted:
            states = torch.stack([c.seg_state for c in completions if c.seg_state is not None])
            masks = model.masks(pixels[emitted], states).sigmoid().float().cpu().numpy()
            for i, mask in zip(emitted, masks, strict=True):
                probability[i] = mask
        return [
            TileMask(mask, model.tokenizer.decode(completion.ids), completion.seg_probability)
            for mask, completion in zip(probability, completions, strict=True)
        ]

    def _encode_prefix(self, query: str, mpp: float) -> Prefix:
        prompt = self.model.prompt(query, mpp)
        if len(prompt.before) > _MAX_QUERY_TOKENS:
            raise QueryError(f"the query takes {len(prompt.before)} tokens; shorten it to {_MAX_QUERY_TOKENS} or fewer")
        return encode_prefix(self.model, prompt)
