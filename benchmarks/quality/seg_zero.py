"""Seg-Zero's way as a method to train and measure: the model writes boxes, and the mask decoder sees nothing else.

The chain is as ever and ends in boxes, "Boxes: 5 20 75 95." (left, top, right, bottom in per cent of the tile, to the
nearest 5), one for each part of the structure, or one around all where there are more than `MOST` parts. `<SEG>` is
left as the full stop of an answer: its state goes nowhere. The boxes are read back from the text and embedded by SAM's
prompt encoder; a text without a box draws nothing (research/lineage.md §1.3). Seg-Zero prompts a frozen SAM 2, which
knows boxes; our mask decoder learns them here, from the true ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from benchmarks.quality.changed import fit_changed
from wsiseg.inference import IMAGE_TOKENS, MASK_FEATURES, TileMask
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.features import TileFeatures
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.batch import Batch, read
from wsiseg.training.examples import Example, Question
from wsiseg.training.losses import mask_loss, token_loss
from wsiseg.training.mix import training_store
from wsiseg.training.sft import SftRecipe
from wsiseg.training.start import answers, begin
from wsiseg.training.trainable import set_trainable

MOST = 4
_STEP = 5  # per cent
_BOX = re.compile(r"(\d+) +(\d+) +(\d+) +(\d+)")
Box = tuple[int, int, int, int]  # left, top, right, bottom in per cent of the tile


def boxes_of(mask: np.ndarray) -> list[Box]:
    """Boxes around the connected parts of `mask` (S, S) bool, the largest first; one around all if there are many."""
    parts, count = ndimage.label(mask)
    if count > MOST:
        parts, count = mask.astype(np.intp), 1
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    found = ndimage.find_objects(parts)
    return [_rounded(found[k], len(mask)) for k in np.argsort(-sizes, kind="stable")]


def _rounded(place: tuple[slice, slice], size: int) -> Box:
    rows, columns = place
    low = [_STEP * int(100 * at / size / _STEP) for at in (columns.start, rows.start)]
    high = [_STEP * -int(-100 * at / size // _STEP) for at in (columns.stop, rows.stop)]
    return low[0], low[1], high[0], high[1]


def write_boxes(boxes: Sequence[Box]) -> str:
    """The words that a chain ends in.

    >>> write_boxes([(5, 20, 75, 95), (0, 0, 10, 10)])
    'Boxes: 5 20 75 95, 0 0 10 10.'
    """
    return f"Boxes: {', '.join(' '.join(map(str, box)) for box in boxes)}."


def read_boxes(text: str) -> list[Box]:
    """The boxes that `text` ends in; what is no box of the tile is left out.

    >>> read_boxes("There are about 10 glands. Boxes: 5 20 75 95, 50 0 40 10, 0 0 10 10.")
    [(5, 20, 75, 95), (0, 0, 10, 10)]
    """
    _, found, said = text.rpartition("Boxes:")
    boxes = [(int(a), int(b), int(c), int(d)) for a, b, c, d in _BOX.findall(said if found else "")]
    return [box for box in boxes if box[0] < box[2] <= 100 and box[1] < box[3] <= 100]


def box_logits(
    model: PathChatSegR1,
    embedding: torch.Tensor,
    finer: list[torch.Tensor],
    boxes: Sequence[Sequence[Box]],
    size: tuple[int, int] | torch.Size,
) -> torch.Tensor:
    """Mask logits (B, H, W) of images whose features (B, …) are given: at every pixel the surest of its boxes."""
    encoder = model.mask_head.prompt_encoder
    of = torch.tensor([row for row, of_row in enumerate(boxes) for _ in of_row], device=embedding.device)
    flat = torch.tensor([box for of_row in boxes for box in of_row], device=embedding.device)
    prompts = encoder._embed_boxes(flat.float() / 100 * encoder.input_image_size[0])  # (N, 2, D)
    embedding, *finer = (array[of].to(prompts.dtype) for array in (embedding, *finer))
    low = model.mask_head(embedding, finer, prompts)  # (N, h, w)
    logits = F.interpolate(low[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
    return torch.stack([logits[of == row].amax(0) for row in range(len(boxes))])


class SegZeroModel(nn.Module):
    """Cross-entropy of chain and boxes, and the mask loss of what the decoder draws in the true boxes."""

    def __init__(self, model: PathChatSegR1, recipe: SftRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        reading = read(self.model, batch)
        cot = token_loss(reading.logits, reading.labels)
        logits = batch.masks.new_zeros(0, *batch.masks.shape[1:])
        if len(batch.masks):
            of = batch.image_of[batch.present]
            used, inverse = of.unique(return_inverse=True)
            embedding, finer = self.model.image_encoder(self.model.image_pixels(batch.tiles[used]))
            boxes = [boxes_of(mask > 0) for mask in batch.masks.cpu().numpy()]
            finer = [f[inverse] for f in finer]
            logits = box_logits(self.model, embedding[inverse], finer, boxes, batch.masks.shape[1:])
        seg = mask_loss(logits, batch.masks)
        loss = self.recipe.lambda_cot * cot + self.recipe.lambda_seg * seg
        return {
            "loss": loss, "cot": cot.detach(), "seg": seg.detach(), "token_accuracy": reading.token_accuracy
        }  # fmt: skip


def boxed(example: Example) -> Example:
    """Chains that end in boxes."""
    return replace(example, questions=tuple(map(_boxed, example.questions)))


def _boxed(question: Question) -> Question:
    if question.mask is None:
        return question
    return replace(question, answer=f"{question.answer} {write_boxes(boxes_of(question.mask))}")


def train(
    recipe: SftRecipe, out: Path, *, resume: bool = False, report: Callable[[int, dict[str, float]], None] | None = None
) -> Path:
    """As `wsiseg.training.sft.train`, with boxes. The recipe's probes and examples have no part in it."""
    store = training_store(recipe)
    model = begin(recipe, out, resume, lambda config: answers(store, config, recipe.seed))
    # Room for the boxes behind the longest chain.
    model.config = replace(model.config, untrained=(), max_new_tokens=model.config.max_new_tokens + 6 * MOST)
    torch.manual_seed(recipe.seed)
    set_trainable(model, recipe)
    module = SegZeroModel(model, recipe)
    return fit_changed(module, model, store, recipe, boxed, out, resume=resume, report=report)


class SegZero(PathChatSegmenter):
    """Draws in the boxes that the model wrote."""

    @torch.inference_mode()
    def _answer(
        self, features: TileFeatures, rows: Sequence[int], query: str, mpp: float, said: Sequence[str], slots: int
    ) -> list[TileMask]:
        (tokens,) = features.part(IMAGE_TOKENS, rows)
        completions = self._complete(tokens, query, mpp, said, slots)
        texts = [self.model.tokenizer.decode(completion.ids) for completion in completions]
        boxes = [read_boxes(text) for text in texts]
        drawn = [i for i, of_tile in enumerate(boxes) if of_tile]
        probability: dict[int, np.ndarray] = {}
        if drawn:
            embedding, *finer = features.part(MASK_FEATURES, [rows[i] for i in drawn])  # kept in half precision
            logits = box_logits(self.model, embedding, finer, [boxes[i] for i in drawn], features.size)
            probability = dict(zip(drawn, logits.sigmoid().float().cpu().numpy(), strict=True))
        return [
            TileMask(probability.get(i), text, completion.seg_probability)
            for i, (text, completion) in enumerate(zip(texts, completions, strict=True))
        ]
