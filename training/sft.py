"""Supervised fine-tuning: λ_CoT·CE on the chain + λ_seg·(Dice + BCE) on the mask that `<SEG>` prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from wsiseg.errors import DataError
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.model.prototypes import prototypes
from wsiseg.training.batch import Batch, Collate, Reading, look, read
from wsiseg.training.data.concepts import CONCEPTS, concept_of
from wsiseg.training.data.names import names_of
from wsiseg.training.data.queries import training_words, with_words_of
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import ExampleStream
from wsiseg.training.loop import Report, Say, Stage, fit, plan, this_process
from wsiseg.training.losses import mask_loss, token_loss
from wsiseg.training.mix import training_store
from wsiseg.training.probes import fit_linear
from wsiseg.training.recipe import Amount, Count, Natural, Share
from wsiseg.training.reference import Reference
from wsiseg.training.start import answers, begin, outline
from wsiseg.training.trainable import TuningRecipe, set_trainable


@dataclass(frozen=True)
class SftRecipe(TuningRecipe):
    """Supervised fine-tuning (DESIGN §4.3).

    Loss: λ_CoT·CE + λ_seg·(Dice + BCE), plus `lambda_presence` times the BCE of a training-only probe that reads
    "is it there?" off the last prompt token, which makes the decision learnable from few images, plus
    `lambda_wording` times the CE of another that reads which concept is meant off the text before the image:
    `wordings_per_image` further wordings for every image, at the price of their few tokens, so that language is
    learned from more than the images' own questions.

    `example_share` of the views are asked after an example of the structure, of another patient (of the same
    source where that has one), which stands in the context and joins the mask as in inference. The model then
    reads users' examples in context too.

    `chain_share` of the views of annotated images are whole, and answered by the chains that `wsiseg data annotate`
    wrote; see `wsiseg.training.examples.whole_view`.

    `misled_share` of the outlines are drawn after a chain that is wrong about where, how many and how large, and is
    not learned: the mask then comes from the picture, not from a chain that is always right in training only.

    `probe_batches`: on the examples of so many batches both probes are fitted before the first step, for a model
    that knows something already; see `wsiseg.training.probes`.

    `lambda_hold` weighs how far the answers (KL of their tokens) and the states of `<SEG>` (mean square) have moved
    from those of the model that training starts from (Li and Hoiem 2016, "Learning without forgetting"). With
    `lambda_seg: 0` masks are drawn in validation only, which is cheaper.

    `lambda_plain` weighs how far they are from those of the start when that is asked in plain words ("outline the
    glands"), whatever the words here: a model learns further wordings, and nothing else about pictures.
    """

    stage: Literal["sft"] = "sft"
    queries_per_image: Count = 3
    lambda_cot: Amount = 1.0
    lambda_seg: Amount = 1.0
    lambda_presence: Amount = 0.5
    lambda_wording: Amount = 0.5
    wordings_per_image: Natural = 0
    example_share: Share = 0.0
    chain_share: Share = 0.5
    misled_share: Share = 0.0
    probe_batches: Natural = 0
    lambda_hold: Amount = 0.0
    lambda_plain: Amount = 0.0

    @property
    def reads_start(self) -> bool:
        return self.tuning == "full" and bool(self.lambda_hold or self.lambda_plain)


class SftModel(nn.Module):
    """The model with its training-only probes; `forward` gives the losses of a batch."""

    def __init__(self, model: PathChatSegR1, recipe: SftRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.reference = Reference(model, recipe) if recipe.lambda_hold or recipe.lambda_plain else None
        self.presence = nn.Linear(model.config.text.hidden_size, 1)
        self.wording = nn.Linear(model.config.text.hidden_size, len(CONCEPTS))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        model, recipe = self.model, self.recipe
        seen = look(model, batch)
        reading = read(model, batch, seen)
        states, cot = reading.states, token_loss(reading.logits, reading.labels)
        rows = torch.arange(len(batch.ids), device=batch.ids.device)
        probe = self.presence(states[rows, batch.answer_at])[:, 0].float()
        presence = F.binary_cross_entropy_with_logits(probe, batch.present.float())

        told = len(batch.concepts) > 0  # validation has no further wordings
        wording, understood = self._wordings(batch) if told else (cot.new_zeros(()), cot.new_zeros(()))

        asked = rows[batch.present]
        seg_states = self._seg_states(states, batch)  # (P, H)
        held = self._held(reading, seen, batch, batch) if recipe.lambda_hold else cot.new_zeros(())
        plain = self._held(reading, seen, batch, batch.plain) if batch.plain else cot.new_zeros(())
        drawn = asked if recipe.lambda_seg or not self.training else asked[:0]
        masks = batch.masks[: len(drawn)]
        mask_logits = self._mask_logits(batch, drawn, seg_states[: len(drawn)])
        seg = mask_loss(mask_logits, masks)
        loss = recipe.lambda_cot * cot + recipe.lambda_seg * seg + recipe.lambda_presence * presence
        loss = loss + recipe.lambda_wording * wording
        loss = loss + recipe.lambda_hold * held + recipe.lambda_plain * plain
        with torch.no_grad():
            hard = (mask_logits > 0).float().flatten(1)
            truth = masks.flatten(1)
            dice = (2 * (hard * truth).sum(1) + 1) / (hard.sum(1) + truth.sum(1) + 1)
            nothing = cot.new_tensor(torch.nan)  # a mean over what the batch has none of
            figures = {
                "cot": cot.detach() if len(reading.labels) else nothing,
                "seg": seg.detach() if len(masks) else nothing,
                "presence": presence.detach(),
                "held": held.detach(),
                "plain": plain.detach(),
                "dice": dice.mean(),
                "presence_accuracy": ((probe > 0) == batch.present).float().mean(),
                "token_accuracy": reading.token_accuracy,
            }
            if told:
                figures |= {"wording": wording.detach(), "understood": understood.detach()}
        return {"loss": loss, **figures}

    def _seg_states(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The states (P, H) that prompt the masks, among all states (R, L, H)."""
        at = batch.seg_at if self.model.config.seg_state == "self" else batch.seg_at - 1
        return states[batch.present.nonzero()[:, 0], at]

    def _held(self, reading: Reading, seen: torch.Tensor, batch: Batch, asked: Batch) -> torch.Tensor:
        """How far the answers' tokens (KL, in nats) and the states of `<SEG>` (mean square) are from the start's.

        `asked` has the questions to the start: those of `batch`, or others with the same answers.
        """
        assert self.reference is not None
        with torch.no_grad(), self.reference.unchanged() as start:
            sees_as_ever = not any(weight.requires_grad for weight in self.model.vlm.model.visual.parameters())
            before = read(start, asked, seen if sees_as_ever else None)
        said, was = (logits.float().log_softmax(-1) for logits in (reading.logits, before.logits))  # (T, V)
        apart = F.kl_div(said, was, reduction="sum", log_target=True) / max(1, len(said))  # no token may be taught
        now, then = self._seg_states(reading.states, batch), self._seg_states(before.states, asked)
        return apart + (now - then).square().mean() if len(now) else apart

    def _mask_logits(self, batch: Batch, asked: torch.Tensor, seg_states: torch.Tensor) -> torch.Tensor:
        """Mask logits (P, S, S) of the rows `asked` (P,), prompted by their states of `<SEG>` (P, H)."""
        model, size = self.model, batch.masks.shape[-2:]
        if not len(asked):
            return seg_states.new_zeros(0, *size)
        used, inverse = batch.image_of[asked].unique(return_inverse=True)
        pixels = torch.cat([batch.tiles[used], batch.shots])
        embedding, finer = model.image_encoder(model.image_pixels(pixels))
        mask_logits = model.decode_masks(embedding[inverse], [f[inverse] for f in finer], seg_states, size)
        if len(batch.shots):
            mask_logits = self._with_shots(mask_logits, [embedding, *finer], inverse, batch)
        return mask_logits

    def _with_shots(
        self, mask_logits: torch.Tensor, features: list[torch.Tensor], inverse: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """Mask logits (P, S, S) joined with what the rows' examples say, as inference joins them.

        There the share depends on how well the model does on the example; here, where that would take another
        pass, it is a half. `features` are those of the views that `inverse` (P,) points at, and of the examples.
        """
        views = len(features[0]) - len(batch.shots)
        joined = list(mask_logits)
        for row, (view, shot) in enumerate(zip(inverse.tolist(), batch.shot_of.tolist(), strict=True)):
            if shot < 0:
                continue
            with torch.no_grad():
                shown = [f[views + shot : views + shot + 1] for f in features]
                seen = [f[view : view + 1] for f in features]
                odds = prototypes(shown, batch.shot_masks[shot, None]).log_odds(seen, mask_logits.shape[-2:])[0]
            joined[row] = 0.5 * mask_logits[row] + 0.5 * self.model.config.shot_weight * odds
        return torch.stack(joined)

    def _wordings(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy and accuracy of the concept that is read off the text alone."""
        logits = self.wording(self._wording_states(batch)).float()
        return F.cross_entropy(logits, batch.concepts), (logits.argmax(-1) == batch.concepts).float().mean()

    def _wording_states(self, batch: Batch) -> torch.Tensor:
        """The states (W, H) of the last tokens of further queries."""
        model = self.model
        positions = torch.arange(batch.wordings.shape[1], device=batch.wordings.device)
        states = model.vlm.model.language_model(
            inputs_embeds=model.embed(batch.wordings),
            position_ids=positions.expand(3, len(batch.wordings), -1),
            use_cache=False,
        ).last_hidden_state  # (W, K, H)
        return states[torch.arange(len(states), device=states.device), batch.wording_at]

    @torch.no_grad()
    def fit_probes(self, batches: Iterable[Batch]) -> None:
        """Fit the probes to the model as it is, on the questions and wordings of `batches`."""
        self.eval()
        answers, present, wordings, concepts = [], [], [], []
        for batch in batches:
            states = read(self.model, batch).states
            answers.append(states[torch.arange(len(states), device=states.device), batch.answer_at])
            present.append(batch.present)
            if len(batch.concepts):
                wordings.append(self._wording_states(batch))
                concepts.append(batch.concepts)
        fit_linear(self.presence, torch.cat(answers), torch.cat(present).long())
        if concepts:
            fit_linear(self.wording, torch.cat(wordings), torch.cat(concepts))


def build(model: PathChatSegR1, recipe: SftRecipe) -> SftModel:
    """`model` with the recipe's adapters and probes, frozen where the recipe says so."""
    torch.manual_seed(recipe.seed)
    set_trainable(model, recipe)
    return SftModel(model, recipe)


def train(
    recipe: SftRecipe,
    out: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    report: Report | None = None,
    say: Say | None = None,
) -> Path:
    """Run the recipe in the folder `out`; see `wsiseg.training.loop.fit` for what it holds.

    Args:
        dry_run: only say what would train.
        report: called with step and losses after every step.
        say: called with the table of parameters, and with what validation gained.

    Returns:
        The folder of the trained model (moving average of the weights).

    Raises:
        DataError: no training images; `lambda_hold` or `lambda_plain` without a model to start from; `out` holds a run
            and `resume` is off, or the other way round.
    """
    for key in ("lambda_hold", "lambda_plain"):
        if getattr(recipe, key) and not recipe.model:
            raise DataError(f"{key} holds what the model does that training starts from, and `model` names none")
    if dry_run:
        return plan(build(outline(recipe), recipe), recipe, out, say)
    store = training_store(recipe)
    model = begin(recipe, out, resume, lambda config: answers(store, config, recipe.seed))
    # This stage trains every part that a model built from published weights has fresh.
    reads_shots = model.config.shots_in_context or recipe.example_share > 0
    asked_for = {concept for record in store.records for concept in (*record.present, *record.absent)}
    words = model.config.words and with_words_of(f"{model.config.words} {training_words()}", asked_for)
    own = sorted(asked_for - CONCEPTS.keys())  # before ours, of which "cells" may be another
    names = model.config.names and names_of(own) | model.config.names | names_of(CONCEPTS)
    drawn = (one for one in store.records if one.split == "train" and recipe.source_weights.get(one.source, 1))
    shown = {concept_of(key).name for record in drawn for key in record.present}
    outlines = model.config.outlines
    if outlines or model.config.untrained or not recipe.model:  # else nobody knows what the model learnt before
        outlines = tuple(dict.fromkeys((*outlines, *sorted(shown))))
    model.config = replace(
        model.config, untrained=(), shots_in_context=reads_shots, words=words, names=names, outlines=outlines
    )
    module = build(model, recipe)
    if recipe.probe_batches and not resume:
        module.to(this_process().device)
        module.fit_probes(_probe_batches(store, model, recipe))
    stage = Stage(
        module=module,
        model=model,
        examples=lambda length: stream(store, model, recipe, "train", recipe.seed, length),
        validation=lambda length: stream(store, model, recipe, "val", 7, length),
        collate=Collate(model.config, model.tokenizer, plain=recipe.lambda_plain > 0),
    )
    return fit(stage, recipe, out, resume=resume, report=report, say=say)


def _probe_batches(store: QuadrupletStore, model: PathChatSegR1, recipe: SftRecipe) -> Iterator[Batch]:
    """Batches for the probes: not those of the first steps, of which the probes would know the answers."""
    size, collate = recipe.batch_images, Collate(model.config, model.tokenizer)
    views = stream(store, model, recipe, "train", recipe.seed + 1, recipe.probe_batches * size)
    for start in range(0, len(views), size):
        yield collate([views[k] for k in range(start, start + size)]).to(model.device)


def stream(
    store: QuadrupletStore, model: PathChatSegR1, recipe: SftRecipe, split: str, seed: int, length: int
) -> ExampleStream:
    """`length` examples of a split as the recipe draws them; none where the split has no images."""
    training = split == "train"
    return ExampleStream(
        store,
        model.config,
        split=split,
        seed=seed,
        questions=recipe.queries_per_image,
        length=length,
        source_weights=recipe.source_weights,
        augment=training,
        cache=recipe.cached_images if training else 0,
        wordings=recipe.wordings_per_image if training else 0,
        example_share=recipe.example_share,
        chain_share=recipe.chain_share,
        misled_share=recipe.misled_share if training else 0.0,
    )
