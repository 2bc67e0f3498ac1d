"""LISA's way as a method to measure: the model has no say in whether there is a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from wsiseg.inference.decode import Completion
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.training.rl.policy import read_answers, read_prompt, seg_states


class FixedSeg(PathChatSegmenter):
    """`<SEG>` stands in the place of the last token of every answer, as `fixed_seg` trains it."""

    def _complete(
        self, tokens: torch.Tensor, query: str, mpp: float, said: Sequence[str], slots: int
    ) -> list[Completion]:
        return [
            completion if completion.seg_state is not None else self._forced(completion, image, query, mpp)
            for completion, image in zip(super()._complete(tokens, query, mpp, said, slots), tokens, strict=True)
        ]

    def _forced(self, completion: Completion, image: torch.Tensor, query: str, mpp: float) -> Completion:
        model, ids = self.model, [*completion.ids[:-1], self.model.tokenizer.seg]
        fed = torch.tensor([ids], device=model.device)
        prompt = model.prompt(model.config.plain(query), mpp)
        states = read_answers(model, read_prompt(model, prompt, image), fed)  # (1, T + 1, H)
        (state,) = seg_states(states, torch.tensor([len(ids)], device=model.device), model.config.seg_state)
        return replace(completion, ids=ids, seg_state=state)
