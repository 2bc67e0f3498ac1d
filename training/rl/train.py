"""SO-GRPO, one step after another (docs/so-grpo.md §5): draw, judge, learn, write down; exactly resumable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wsiseg.errors import DataError
from wsiseg.model.pathchat import PathChatSegR1, layout
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import Example, ExampleStream
from wsiseg.training.loop import (
    Report,
    Say,
    autocast,
    check_finite,
    checkpoint,
    loader,
    plan,
    save_averaged,
    table,
    this_process,
    warn_of_precision,
)
from wsiseg.training.mix import training_store
from wsiseg.training.recipe import save_recipe
from wsiseg.training.reference import Reference
from wsiseg.training.rl.experience import Judged, gather, lessons
from wsiseg.training.rl.loss import step_size
from wsiseg.training.rl.lyapunov import forget_policies, kl_to_final, save_policy
from wsiseg.training.rl.prompts import AskedExamples, encode_views, prompts_of
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.rewards import Ending
from wsiseg.training.rl.rollout import roll_out
from wsiseg.training.rl.update import Learner, accumulate
from wsiseg.training.rl.value import explained_variance
from wsiseg.training.run import Average, Figures, full_disk_told, load_state, sole_run
from wsiseg.training.start import begin, keep_make, outline
from wsiseg.training.trainable import set_trainable

_ENCODERS = ("vlm.model.visual", "image_encoder")  # not trained here: their features are computed once per view
_PROBE_VIEWS = 4  # held-out views whose answers measure how far earlier policies were from the final one


def train(
    recipe: RlRecipe,
    out: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    report: Report | None = None,
    say: Say | None = None,
) -> Path:
    """Run the recipe in the folder `out`.

    `out` holds recipe.yaml, metrics.jsonl and TensorBoard scalars, `state/` (from which a run resumes exactly),
    `policies/` (what the language model had learned at every checkpoint) and `model/`. Figures of kind `train` are
    of a step's drawn answers, `validation` of greedy ones to held-out wordings and images, `lyapunov` of saved
    policies against the final one.

    Args:
        dry_run: only say what would train.
        report: called with step and figures after every step.
        say: called with the table of parameters.

    Returns:
        The folder of the trained model.

    Raises:
        DataError: no training images; no model to start from; `out` holds a run and `resume` is off, or the other
            way round; the loss is no number.
    """
    if dry_run:
        return plan(build(outline(recipe), recipe), recipe, out, say)
    if recipe.model is None:
        raise DataError("rl continues a model that can answer already; name one with --model (`tiny` is bundled)")
    with sole_run(out, this_process().is_main_process):
        return _train(recipe, out, resume, report, say)


def _train(
    recipe: RlRecipe,
    out: Path,
    resume: bool,
    report: Report | None,
    say: Say | None,
) -> Path:
    from accelerate import Accelerator

    warn_of_precision(recipe.precision)
    world = Accelerator(mixed_precision="no")  # see `autocast`
    store = training_store(recipe)
    model = begin(recipe, out, resume, lambda config: ())
    torch.manual_seed(recipe.seed)
    learner = build(model, recipe).to(world.device)
    learner.to(memory_format=layout(world.device))  # type: ignore[call-overload]
    groups = parameter_groups(learner, recipe)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    average = Average(learner, recipe.ema)
    step = load_state(out / "state", learner, optimizer, average) if resume else 0
    reference = Reference(model, recipe)
    main = world.is_main_process
    if main and resume:
        save_averaged(out, learner, model, average)  # it may have been killed before it came to that
    figures = None
    if main:
        save_recipe(recipe, out / "recipe.yaml")
        keep_make(model, recipe, out)
        if say:
            say(table(learner, recipe, world.num_processes))
        figures = Figures(out, step, recipe)
        with full_disk_told(out):
            forget_policies(out / "policies", step)
            if not resume:
                save_policy(model, out / "policies", 0)
    held_out = _held_out(store, model, recipe)

    def validate() -> None:
        if figures and held_out:
            with autocast(recipe.precision, world.device), average.swapped(learner):
                figures.add(step, "validation", _ask(learner, reference, held_out, recipe))

    if not resume:
        validate()
    size = recipe.batch_images * recipe.accumulation
    views = partial(_stream, store, model, recipe, "train")
    for examples in loader(views, list, recipe, size, range(step, recipe.steps), world):
        values = take_step(step, examples, learner, reference, optimizer, recipe, world)
        step += 1
        check_finite(step, values, recipe, out)
        average.update(learner)
        if figures:
            figures.add(step, "train", values)
        if report and main:
            report(step, values)
        last = step == recipe.steps
        if step % recipe.validate_every == 0 or last:
            validate()
        if main and (step % recipe.checkpoint_every == 0 or last):
            with full_disk_told(out):
                save_policy(model, out / "policies", step)
            checkpoint(out, step, learner, model, optimizer, average)
    if figures:
        for at, distance in _distances(learner, store, recipe, out / "policies", world).items():
            figures.add(at, "lyapunov", {"kl_to_final": distance})
        figures.close()
    world.wait_for_everyone()
    return out / "model"


def build(model: PathChatSegR1, recipe: RlRecipe) -> Learner:
    """`model` with the recipe's adapters and a critic. Always in evaluation mode: with dropout the policy that
    learns would not be the one that drew."""
    set_trainable(model, recipe, _ENCODERS)
    return Learner(model).eval()


def parameter_groups(learner: Learner, recipe: RlRecipe) -> list[dict[str, Any]]:
    """The model at the recipe's rate, the critic at `value_rate` times it."""
    critic = list(learner.critic.parameters())
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    return [{"params": trained, "share": 1.0}, {"params": critic, "share": recipe.value_rate}]


def take_step(
    step: int,
    examples: Sequence[Example],
    learner: Learner,
    reference: Reference,
    optimizer: torch.optim.Optimizer,
    recipe: RlRecipe,
    world: Any,
) -> dict[str, float]:
    """Draw, judge and learn once; all that is random follows from the seed, the step and the process."""
    model, began = learner.model, time.monotonic()
    number = step * world.num_processes + world.process_index
    generator = torch.Generator(world.device).manual_seed(recipe.seed + 1_000_003 * (number + 1))
    with autocast(recipe.precision, world.device):
        views, prompts = encode_views(model, examples), prompts_of(model, examples)
        probe = step % recipe.probe_every == 0
        judged = gather(model, learner.critic, reference, prompts, views, recipe, generator, probe=probe)
    if step == 0:
        level = float(world.reduce(torch.cat([j.total for j in judged]).mean(), reduction="mean"))
        learner.critic.start_at(level)
        judged = [replace(j, values=torch.full_like(j.values, level)) for j in judged]
    drawn = time.monotonic()
    c = recipe.mixture if step >= recipe.critic_warmup else 0.0
    taught = lessons(judged, recipe, c)
    eta = 9 / recipe.steps if recipe.eta is None else recipe.eta
    rate = step_size(recipe.learning_rate, eta, step) * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    epochs = []
    for _ in range(recipe.inner_epochs):
        with autocast(recipe.precision, world.device):
            values = accumulate(learner, views, judged, taught, recipe, world)
        if world.num_processes > 1:
            for parameter in learner.trained_parameters:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = world.reduce(gradient, reduction="mean")
        # The critic is clipped apart: its large first errors must not shorten the policy's step.
        norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], recipe.largest_norm)
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[1]["params"], recipe.largest_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        epochs.append(values | {"norm": float(norm)})
    learned = {name: sum(values[name] for values in epochs) / len(epochs) for name in epochs[0]}
    masks, targets = [j.group.mask for j in judged], [lesson.target for lesson in taught]
    flat = [torch.cat([part.flatten() for part in parts]) for parts in ([j.values for j in judged], targets, masks)]
    explained = explained_variance(*flat)
    seconds = time.monotonic() - began
    return {
        **learned,
        **summary(judged),
        **({} if explained is None else {"explained_variance": explained}),
        "mixture": c,
        "rate": rate,
        "prompts": float(len(judged)),
        "seconds": seconds,
        "drawing": (drawn - began) / seconds,
    }


def summary(judged: Sequence[Judged]) -> dict[str, float]:
    """Means over a step's answers. A figure over nothing is left out.

    Rewards are unweighted, `reward` is the weighted sum. `hard_dice` and `emission` are over prompts whose structure
    is there, `false_emission` over the others; `emission_at` is the token at which `<SEG>` came.
    """
    everything = {"reward": torch.cat([j.total for j in judged])}
    for name in vars(judged[0].earned.parts):
        everything[f"reward_{name}"] = torch.cat([getattr(j.earned.parts, name) for j in judged])
    everything["length"] = torch.cat([j.group.lengths for j in judged])
    everything["cut"] = torch.tensor([e is Ending.CUT for j in judged for e in j.group.endings])
    there, absent = ([j for j in judged if j.group.prompt.present is kind] for kind in (True, False))
    for name, parts in (
        ("hard_dice", [j.earned.hard_dice for j in there]),
        ("emission", [j.group.asked for j in there]),
        ("false_emission", [j.group.asked for j in absent]),
        ("emission_at", [j.group.lengths[j.group.asked] for j in judged]),
        ("stop_regret", [j.regret for j in there if j.regret is not None]),
    ):
        everything[name] = torch.cat(parts) if parts else torch.zeros(0)
    return {name: float(values.float().mean()) for name, values in everything.items() if len(values)}


def _stream(store: QuadrupletStore, model: PathChatSegR1, recipe: RlRecipe, split: str, length: int) -> AskedExamples:
    training = split == "train"
    return AskedExamples(
        ExampleStream(
            store,
            model.config,
            split=split,
            seed=recipe.seed if training else 7,
            questions=3 * recipe.queries_per_image,  # a third of them at least are refusals, and two thirds at most
            length=length,
            source_weights=recipe.source_weights,
            augment=training,
            cache=recipe.cached_images if training else 0,
        ),
        recipe.queries_per_image,
    )


def _held_out(store: QuadrupletStore, model: PathChatSegR1, recipe: RlRecipe) -> list[Example]:
    stream = _stream(store, model, recipe, "val", recipe.validation_images)
    return [stream[i] for i in range(len(stream))]


def _ask(learner: Learner, reference: Reference, examples: list[Example], recipe: RlRecipe) -> dict[str, float]:
    """Greedy answers to held-out questions."""
    model, judged = learner.model, []
    for at in range(0, len(examples), recipe.batch_images):
        part = examples[at : at + recipe.batch_images]
        views, prompts = encode_views(model, part), prompts_of(model, part)
        judged += gather(model, learner.critic, reference, prompts, views, recipe, None)
    return summary(judged)


def _distances(
    learner: Learner, store: QuadrupletStore, recipe: RlRecipe, policies: Path, world: Any
) -> dict[int, float]:
    """KL of every saved policy to the final one, on the final one's answers to a few held-out prompts."""
    model = learner.model
    split = "val" if store.indices(split="val") else "train"
    stream = _stream(store, model, recipe, split, _PROBE_VIEWS)
    examples = [stream[i] for i in range(_PROBE_VIEWS)]
    generator = torch.Generator(world.device).manual_seed(recipe.seed)
    with autocast(recipe.precision, world.device):
        views, prompts = encode_views(model, examples), prompts_of(model, examples)
        groups = [roll_out(model, prompt, views, recipe, generator) for prompt in prompts]
        return kl_to_final(model, policies, groups, views, recipe)
