"""Supervised fine-tuning: λ_CoT·CE on the chain + λ_seg·(Dice + BCE) on the mask that `<SEG>` prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from wsiseg.errors import DataError
from wsiseg.model import model_folder
from wsiseg.model.config import PRESETS, PathChatConfig
from wsiseg.model.folder import build_model, load_folder, save_model
from wsiseg.model.pathchat import PathChatSegR1, chat_prompt, mrope_positions, tiles_to_tensor
from wsiseg.model.prompt import PromptTokenizer
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.data.queries import sample_query
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import Example, ExampleStream
from wsiseg.training.losses import mask_loss, token_loss
from wsiseg.training.recipe import Amount, Count, Natural, Recipe, Share, data_of, save_recipe
from wsiseg.training.run import Average, load_state, save_state
from wsiseg.training.tokenizer import train_tokenizer

_IGNORE = -100


@dataclass(frozen=True)
class SftRecipe(Recipe):
    """Supervised fine-tuning (DESIGN §4.3).

    `model: null` starts from fresh weights of `preset`, with `stem_weights` (EfficientNet-Lite0, ImageNet) in
    the stems. `tuning` is `full`, or `lora` (rank and dropout of the paper: 16, 0.1) on the language model and,
    where it is a transformer, the pathology encoder; Seg-Adapter, mask head and projector always train in full.
    Loss: λ_CoT·CE + λ_seg·(Dice + BCE), plus `lambda_presence` times the BCE of a training-only probe that reads
    "is it there?" off the last prompt token, which makes the decision learnable from few images, plus
    `lambda_wording` times the CE of another that reads which concept is meant off the text before the image:
    `wordings_per_image` further wordings for every image, at the price of their few tokens, so that language is
    learned from more than the images' own questions.
    """

    stage: Literal["sft"] = "sft"
    preset: Literal["tiny", "paper"] = "tiny"
    stem_weights: str | None = None
    tuning: Literal["full", "lora"] = "full"
    lora_rank: Count = 16
    lora_dropout: Share = 0.1
    queries_per_image: Count = 3
    lambda_cot: Amount = 1.0
    lambda_seg: Amount = 1.0
    lambda_presence: Amount = 0.5
    lambda_wording: Amount = 0.5
    wordings_per_image: Natural = 0


@dataclass
class Batch:
    """B views and R questions about them, as tensors; rows are padded on the right to L tokens."""

    tiles: torch.Tensor  # (B, 3, S, S) in [0, 1]
    image_of: torch.Tensor  # (R,) index of the row's view
    ids: torch.Tensor  # (R, L)
    labels: torch.Tensor  # (R, L) next-token targets, -100 where unsupervised
    positions: torch.Tensor  # (3, R, L)
    answer_at: torch.Tensor  # (R,) last token of the prompt
    present: torch.Tensor  # (R,) bool: the answer ends in <SEG>
    seg_at: torch.Tensor  # (P,) place of <SEG> in the P present rows
    masks: torch.Tensor  # (P, S, S) float
    wordings: torch.Tensor  # (W, K) further queries, padded on the right
    wording_at: torch.Tensor  # (W,) last token of each
    concepts: torch.Tensor  # (W,) what each means

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def collate(examples: list[Example], config: PathChatConfig, tokenizer: PromptTokenizer) -> Batch:
    """Examples → one `Batch`. Targets begin with the first token of the answer and end with `<SEG>` or the end."""
    rows, image_of, present, masks, prompts = [], [], [], [], []
    for index, example in enumerate(examples):
        for question in example.questions:
            prompt = chat_prompt(config, tokenizer, question.query, example.mpp)
            there = question.mask is not None
            answer = [*tokenizer.encode(question.answer), tokenizer.seg if there else tokenizer.end]
            rows.append((prompt.before, prompt.after, answer))
            prompts.append(len(prompt.before) + config.image_token_count + len(prompt.after))
            image_of.append(index)
            present.append(there)
            if question.mask is not None:
                masks.append(question.mask)
    count = config.image_token_count
    length = max(prompt + len(row[2]) for prompt, row in zip(prompts, rows, strict=True))
    ids = torch.full((len(rows), length), tokenizer.end)
    labels = torch.full((len(rows), length), _IGNORE)
    positions = torch.zeros((3, len(rows), length), dtype=torch.long)
    for r, (before, after, answer) in enumerate(rows):
        line = torch.tensor([*before, *[tokenizer.image_pad] * count, *after, *answer])
        ids[r, : len(line)] = line
        start = prompts[r]
        labels[r, start - 1 : start - 1 + len(answer)] = line[start:]
        positions[:, r] = mrope_positions(len(before), config.pathology.grid // 2, length - len(before) - count)
    seg_at = [p + len(row[2]) - 1 for p, row, there in zip(prompts, rows, present, strict=True) if there]
    size = examples[0].image.shape[0]
    said = [(chat_prompt(config, tokenizer, q, e.mpp).before, c) for e in examples for q, c in e.wordings]
    wordings = torch.full((len(said), max((len(text) for text, _ in said), default=0)), tokenizer.end)
    for w, (text, _) in enumerate(said):
        wordings[w, : len(text)] = torch.tensor(text)
    return Batch(
        tiles=tiles_to_tensor(np.stack([example.image for example in examples])),
        image_of=torch.tensor(image_of),
        ids=ids,
        labels=labels,
        positions=positions,
        answer_at=torch.tensor(prompts) - 1,
        present=torch.tensor(present),
        seg_at=torch.tensor(seg_at, dtype=torch.long),
        masks=torch.from_numpy(np.stack(masks)).float() if masks else torch.zeros(0, size, size),
        wordings=wordings,
        wording_at=torch.tensor([len(text) - 1 for text, _ in said], dtype=torch.long),
        concepts=torch.tensor([concept for _, concept in said], dtype=torch.long),
    )


class SftModel(nn.Module):
    """The model with its training-only probes; `forward` gives the losses of a batch."""

    def __init__(self, model: PathChatSegR1, recipe: SftRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.presence = nn.Linear(model.config.text.hidden_size, 1)
        self.wording = nn.Linear(model.config.text.hidden_size, len(CONCEPTS))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        model, recipe = self.model, self.recipe
        image_tokens = model.image_tokens(batch.tiles)[batch.image_of]  # (R, n, H)
        embeds = model.embed(batch.ids)
        place = (batch.ids == model.tokenizer.image_pad)[..., None]
        embeds = embeds.masked_scatter(place, image_tokens.to(embeds.dtype))
        states = model.vlm.model.language_model(
            inputs_embeds=embeds, position_ids=batch.positions, use_cache=False
        ).last_hidden_state  # (R, L, H); right padding is never attended to by a real token
        supervised = batch.labels != _IGNORE
        logits = model.vlm.lm_head(states[supervised])  # (T, V)
        cot = token_loss(logits, batch.labels[supervised])
        rows = torch.arange(len(batch.ids), device=batch.ids.device)
        probe = self.presence(states[rows, batch.answer_at])[:, 0].float()
        presence = F.binary_cross_entropy_with_logits(probe, batch.present.float())

        wording, understood = self._wordings(batch) if len(batch.concepts) else (cot.new_zeros(()), cot.new_zeros(()))

        asked = rows[batch.present]
        at = batch.seg_at if model.config.seg_state == "self" else batch.seg_at - 1
        seg_states = states[asked, at]  # (P, H)
        if len(asked):
            used, inverse = batch.image_of[asked].unique(return_inverse=True)
            embedding, finer = model.image_encoder(model.image_pixels(batch.tiles[used]))
            mask_logits = model.decode_masks(
                embedding[inverse], [f[inverse] for f in finer], seg_states, batch.masks.shape[-2:]
            )
        else:
            mask_logits = seg_states.new_zeros(0, *batch.masks.shape[-2:])
        seg = mask_loss(mask_logits, batch.masks)
        loss = recipe.lambda_cot * cot + recipe.lambda_seg * seg + recipe.lambda_presence * presence
        loss = loss + recipe.lambda_wording * wording
        with torch.no_grad():
            hard = (mask_logits > 0).float().flatten(1)
            truth = batch.masks.flatten(1)
            dice = (2 * (hard * truth).sum(1) + 1) / (hard.sum(1) + truth.sum(1) + 1)
            return_ = {
                "cot": cot.detach(),
                "seg": seg.detach(),
                "presence": presence.detach(),
                "wording": wording.detach(),
                "understood": understood.detach(),
                "dice": dice.mean() if len(dice) else dice.sum(),
                "presence_accuracy": ((probe > 0) == batch.present).float().mean(),
                "token_accuracy": (logits.argmax(-1) == batch.labels[supervised]).float().mean(),
            }
        return {"loss": loss, **return_}

    def _wordings(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy and accuracy of the concept that is read off the text alone."""
        model = self.model
        positions = torch.arange(batch.wordings.shape[1], device=batch.wordings.device)
        states = model.vlm.model.language_model(
            inputs_embeds=model.embed(batch.wordings),
            position_ids=positions.expand(3, len(batch.wordings), -1),
            use_cache=False,
        ).last_hidden_state  # (W, K, H)
        rows = torch.arange(len(states), device=states.device)
        logits = self.wording(states[rows, batch.wording_at]).float()
        return F.cross_entropy(logits, batch.concepts), (logits.argmax(-1) == batch.concepts).float().mean()


def start_model(recipe: SftRecipe, store: QuadrupletStore) -> PathChatSegR1:
    """The model that the run begins with: a folder, or a preset with a tokenizer trained on the data's language."""
    if recipe.model:
        return load_folder(model_folder(recipe.model))
    torch.manual_seed(recipe.seed)
    config = PRESETS[recipe.preset]()
    # Every concept's wordings, so that no word of a query is foreign; answers from a few hundred views.
    rng = np.random.default_rng(recipe.seed)
    texts = [sample_query(concept, rng, "train") for concept in CONCEPTS for _ in range(60)]
    stream = ExampleStream(store, config, split="train", seed=recipe.seed + 1, questions=4, length=300, augment=False)
    texts += [question.answer for i in range(len(stream)) for question in stream[i].questions]
    model = build_model(config, train_tokenizer(texts, config.text.vocab_size))
    if recipe.stem_weights:
        visual: Any = model.vlm.model.visual
        visual.encoder.backbone.load_imagenet_weights(recipe.stem_weights)
        image: Any = model.image_encoder.vit.patch_embed
        image.backbone.load_imagenet_weights(recipe.stem_weights)
    return model


def set_trainable(model: PathChatSegR1, recipe: SftRecipe) -> None:
    """Freeze what the recipe freezes; with `tuning: lora`, put low-rank adapters on the frozen transformers."""
    frozen = list(recipe.frozen)
    if recipe.tuning == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        frozen += ["vlm.model.language_model", "vlm.lm_head", "vlm.model.visual.encoder"]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))
        kept = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        # A regex, because stock vision towers use the same names for their MLPs (lineage.md §2.3).
        targets = r".*(language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        targets += r"|visual\.encoder\.backbone\.encoder\.layer\..*\.(query|key|value|dense|fc1|fc2))"
        lora = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=2 * recipe.lora_rank,
            lora_dropout=recipe.lora_dropout,
            target_modules=targets,
        )
        inject_adapter_in_model(lora, model.vlm)
        for name, parameter in model.named_parameters():  # injection freezes all that it does not add
            parameter.requires_grad_(name in kept or "lora_" in name)
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen)) if frozen else True)


def train(
    recipe: SftRecipe,
    out: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Run the recipe in the folder `out`; returns the folder of the trained model (moving average of weights).

    `out` holds recipe.yaml, metrics.jsonl, TensorBoard scalars, `state/` (exact resume: the next loss is the
    same number as without the interruption) and `model/`.

    Raises:
        DataError: no training images; `out` holds a run and `resume` is off, or the other way round.
    """
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter

    if (out / "state").exists() and not resume:
        raise DataError(f"{out} holds an unfinished run; add --resume to continue it, or choose another --out")
    if resume and not (out / "state").exists():
        raise DataError(f"{out} holds no run to resume")
    store = QuadrupletStore.open(data_of(recipe))
    if not store.indices(split="train"):
        raise DataError(f"{recipe.data} has no images in its train split")
    out.mkdir(parents=True, exist_ok=True)
    model = load_folder(out / "state" / "model") if resume else start_model(recipe, store)
    save_recipe(recipe, out / "recipe.yaml")
    set_trainable(model, recipe)

    # On a CPU every weight lives where it is; accelerate brings precision, devices and gradient exchange.
    accelerator = Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no",
        gradient_accumulation_steps=recipe.accumulation,
    )
    torch.manual_seed(recipe.seed)
    sft = SftModel(model, recipe)
    optimizer = torch.optim.AdamW(parameter_groups(sft, recipe), betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    sft.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    prepared, optimizer = accelerator.prepare(sft, optimizer)
    average = Average(sft, recipe.ema)
    step = load_state(out / "state", sft, optimizer, average) if resume else 0
    loader = _loader(store, model, recipe, start=step * recipe.accumulation, world=accelerator)
    validation = _validation_batches(store, model, recipe)
    writer = SummaryWriter(str(out / "tensorboard")) if accelerator.is_main_process else None

    def log(at: int, kind: str, values: dict[str, float]) -> None:
        if writer is None:
            return
        with open(out / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": at, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            writer.add_scalar(f"{kind}/{name}", value, at)

    _train_mode(prepared, recipe)
    clock = time.monotonic()
    for batch in loader:
        torch.manual_seed(recipe.seed + 1_000_003 * (step + 1) + accelerator.process_index)
        with accelerator.accumulate(prepared), accelerator.autocast():
            losses = prepared(batch.to(accelerator.device))
        with accelerator.accumulate(prepared):
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(sft.parameters(), recipe.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = group["start_lr"] * schedule(step, recipe)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not accelerator.sync_gradients:
            continue
        step += 1
        average.update(sft)
        values = {name: float(value.detach()) for name, value in losses.items()}
        values |= {"norm": float(norm), "rate": optimizer.param_groups[0]["lr"], "seconds": time.monotonic() - clock}
        clock = time.monotonic()
        log(step, "train", values)
        if report:
            report(step, values)
        last = step >= recipe.steps
        if step % recipe.validate_every == 0 or last:
            with average.swapped(sft):
                log(step, "validation", validate(sft, validation, accelerator))
            _train_mode(prepared, recipe)
        if accelerator.is_main_process and (step % recipe.checkpoint_every == 0 or last):
            save_state(out / "state", step, sft, optimizer, average)
            with average.swapped(sft):
                save_model(merged(model), out / "model")
        if last:
            break
    return out / "model"


def schedule(step: int, recipe: SftRecipe) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the start value."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return float(0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1.0, progress))))


def parameter_groups(sft: SftModel, recipe: SftRecipe) -> list[dict[str, Any]]:
    """Pretrained stems learn at `encoder_rate` of the rate; norms, biases and tables are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in sft.named_parameters():
        if parameter.requires_grad:
            pretrained = "backbone" in name and (bool(recipe.stem_weights) or bool(recipe.model))
            decayed = parameter.ndim > 1 and "embed" not in name and "rel_pos" not in name
            groups.setdefault((pretrained, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.learning_rate * (recipe.encoder_rate if pretrained else 1.0),
            "start_lr": recipe.learning_rate * (recipe.encoder_rate if pretrained else 1.0),
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (pretrained, decayed), parameters in groups.items()
    ]


@torch.no_grad()
def validate(sft: SftModel, batches: list[Batch], accelerator: Any) -> dict[str, float]:
    """Mean losses and teacher-forced figures over the validation views (wordings and patients never trained on)."""
    sft.eval()
    sums: dict[str, float] = {}
    for batch in batches:
        with accelerator.autocast():
            for name, value in sft(batch.to(accelerator.device)).items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    return sums


def merged(model: PathChatSegR1) -> PathChatSegR1:
    """The model with low-rank adapters folded into their weights (itself where there are none)."""
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        return model
    import copy

    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, module.get_base_layer())
    return plain


def _train_mode(sft: nn.Module, recipe: SftRecipe) -> None:
    sft.train()
    # Running statistics of frozen stems stay as they are.
    for module in sft.modules():
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def _loader(
    store: QuadrupletStore, model: PathChatSegR1, recipe: SftRecipe, *, start: int, world: Any
) -> torch.utils.data.DataLoader[Batch]:
    count, per_batch = world.num_processes, recipe.batch_images
    length = recipe.steps * recipe.accumulation * per_batch * count
    stream = ExampleStream(
        store,
        model.config,
        split="train",
        seed=recipe.seed,
        questions=recipe.queries_per_image,
        length=length,
        source_weights=recipe.source_weights,
        cache=recipe.cached_images,
        wordings=recipe.wordings_per_image,
    )
    # Process p takes batches p, p + count, … of one common order.
    batches = [
        list(range(b * per_batch, (b + 1) * per_batch))
        for b in range(start * count + world.process_index, length // per_batch, count)
    ]
    return torch.utils.data.DataLoader(
        stream,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=recipe.workers,
        persistent_workers=recipe.workers > 0,
        prefetch_factor=4 if recipe.workers else None,
        collate_fn=_Collate(model.config, model.tokenizer),
    )


@dataclass
class _Collate:
    config: PathChatConfig
    tokenizer: PromptTokenizer

    def __call__(self, examples: list[Example]) -> Batch:
        return collate([example for example in examples if example.questions], self.config, self.tokenizer)


def _validation_batches(store: QuadrupletStore, model: PathChatSegR1, recipe: SftRecipe) -> list[Batch]:
    if not store.indices(split="val"):
        return []
    stream = ExampleStream(
        store,
        model.config,
        split="val",
        seed=7,
        questions=recipe.queries_per_image,
        length=recipe.validation_images,
        source_weights=recipe.source_weights,
        augment=False,
    )
    fold = _Collate(model.config, model.tokenizer)
    size = recipe.batch_images
    return [fold([stream[i] for i in range(b, min(b + size, len(stream)))]) for b in range(0, len(stream), size)]
