"""What was drawn is what is learned from: rollouts, teacher-forced passes, probes and reference agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.training.rl.conftest import RECIPE, disc_example, talkative_model
from wsiseg.inference.decode import Sampling, decode, encode_prefix
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.reference import Reference
from wsiseg.training.rl.experience import Judged, Lesson, gather, lessons, log_probabilities
from wsiseg.training.rl.lyapunov import kl_to_final, save_policy
from wsiseg.training.rl.policy import read_answers, read_prompt
from wsiseg.training.rl.probes import probe_places, probe_states
from wsiseg.training.rl.prompts import Views, encode_views, prompts_of
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.rewards import Ending
from wsiseg.training.rl.train import build
from wsiseg.training.rl.update import Learner, accumulate, group_losses, shares

Draw = Callable[..., tuple]  # type: ignore[type-arg]
ALONE = SimpleNamespace(reduce=lambda values, reduction: values)  # one process


def test_sampling_is_repeatable_and_cold_sampling_is_greedy() -> None:
    model = talkative_model()
    tokens = encode_views(model, [disc_example()]).image_tokens
    prefix = encode_prefix(model, model.prompt("discs", 0.5))

    def ids(temperature: float, seed: int) -> list[list[int]]:
        sampling = Sampling(5, torch.Generator().manual_seed(seed), temperature)
        return [completion.ids for completion in decode(model, tokens, prefix, sampling)]

    assert ids(1.0, 0) == ids(1.0, 0) != ids(1.0, 1)
    assert ids(1e-6, 0) == 5 * [decode(model, tokens, prefix)[0].ids]


@pytest.mark.parametrize("fixed_seg", [False, True])
def test_probabilities_of_the_rollout_are_those_of_training(drawn: Draw, fixed_seg: bool) -> None:
    model, recipe = talkative_model(), dataclasses.replace(RECIPE, answers=8, fixed_seg=fixed_seg, temperature=0.8)
    views, groups = drawn(model, recipe)
    endings = {ending for group in groups for ending in group.endings}
    assert endings == {Ending.SEG} if fixed_seg else len(endings) > 1, "choose another seed: endings are all alike"
    for group in groups:
        prompt = read_prompt(model, group.prompt.tokens, views.image_tokens[0])
        logp = log_probabilities(model, read_answers(model, prompt, group.fed), group, recipe)
        torch.testing.assert_close(logp * group.mask, group.logp, atol=1e-4, rtol=1e-4)
        last = group.fed[torch.arange(8), group.lengths - 1]
        assert torch.equal(last == model.tokenizer.seg, group.asked)


def test_reading_a_group_behind_one_prompt_is_reading_each_answer_whole(drawn: Draw) -> None:
    model = talkative_model()
    views, (group, _) = drawn(model, RECIPE)
    tokens = group.prompt.tokens
    states = read_answers(model, read_prompt(model, tokens, views.image_tokens[0]), group.fed)
    for row in range(RECIPE.answers):
        answer = group.fed[row, : group.lengths[row]].tolist()
        head, tail = (model.embed(torch.tensor([ids])) for ids in (tokens.before, tokens.after + answer))
        whole = model.vlm.model.language_model(
            inputs_embeds=torch.cat([head, views.image_tokens[:1], tail], 1),
            position_ids=model.positions(len(tokens.before), tail.shape[1])[:, None],
        ).last_hidden_state[0]
        torch.testing.assert_close(states[row, : len(answer) + 1], whole[-len(answer) - 1 :], atol=1e-4, rtol=1e-4)


def test_packed_probes_are_answers_cut_short(drawn: Draw) -> None:
    model = talkative_model()
    views, (group, _) = drawn(model, RECIPE)
    prompt = read_prompt(model, group.prompt.tokens, views.image_tokens[0])
    places = probe_places(group, 3)
    packed = probe_states(model, prompt, group.fed, places)
    for row in range(RECIPE.answers):
        for k, place in enumerate(places[row].tolist()):
            cut = torch.tensor([[*group.fed[row, :place].tolist(), model.tokenizer.seg]])
            alone = read_answers(model, prompt, cut)[0, -1]
            torch.testing.assert_close(packed[row, k], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_reference_stays_the_policy_that_rl_began_with(drawn: Draw, start: Path, tuning: str) -> None:
    recipe = dataclasses.replace(RECIPE, model=str(start), tuning=tuning)
    model = talkative_model()
    learner = build(model, recipe)
    reference = Reference(model, recipe)
    views, (group, _) = drawn(model, recipe)

    def read(policy: PathChatSegR1) -> torch.Tensor:
        prompt = read_prompt(policy, group.prompt.tokens, views.image_tokens[0])
        return log_probabilities(policy, read_answers(policy, prompt, group.fed), group, recipe)

    def read_reference() -> torch.Tensor:
        with reference.unchanged() as policy:
            return read(policy)

    with torch.no_grad():
        before = read(model)
        assert torch.equal(read_reference(), before)  # KL is exactly 0 at step 0
        for parameter in learner.policy_parameters:
            parameter.add_(0.3 * torch.randn_like(parameter))
        assert not torch.allclose(read(model), before, atol=1e-2)
        assert torch.equal(read_reference(), before)
    assert learner.policy_parameters, "switching adapters off and on must leave them trainable"


def test_a_look_at_the_reference_thaws_nothing(start: Path) -> None:
    first = "vlm.model.language_model.layers.0."
    recipe = dataclasses.replace(RECIPE, model=str(start), tuning="lora", frozen=(first,))
    model = talkative_model()
    build(model, recipe)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with Reference(model, recipe).unchanged():
        pass
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    assert any("lora_A" in name for name in trained)
    assert any(name.startswith(first) and "lora_A" in name for name, _ in model.named_parameters())


def test_the_pathwise_term_reaches_the_mask_and_the_language_model_only_by_the_switch(drawn: Draw, start: Path) -> None:
    for to_llm in (True, False):
        recipe = dataclasses.replace(RECIPE, model=str(start), answers=8, pathwise_to_llm=to_llm, kl=0.0)
        model = talkative_model()
        learner = build(model, recipe)
        views, _ = drawn(model, recipe)
        prompts = prompts_of(model, [disc_example()])
        generator = torch.Generator().manual_seed(0)
        judged = gather(model, learner.critic, Reference(model, recipe), prompts, views, recipe, generator, probe=True)
        taught = lessons(judged, recipe, 0.6)
        still = dataclasses.replace(taught[0], advantage=torch.zeros_like(taught[0].advantage))
        assert judged[0].group.asked.any(), "choose another seed: no answer has a mask"
        values = group_losses(learner, views, judged[0], still, recipe, shares(judged, ALONE))
        values["loss"].backward()
        reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert any(n.startswith("seg_adapter") for n in reached)
        assert any(n.startswith("mask_head") for n in reached)
        assert any("language_model.layers" in n for n in reached) == to_llm
        assert not any(n.startswith(("vlm.model.visual", "image_encoder", "vlm.lm_head")) for n in reached)
        assert judged[0].regret is not None
        assert (judged[0].regret >= 0).all()
        assert judged[1].regret is None  # no stop is right where nothing is there


def two_groups(drawn: Draw, start: Path) -> tuple[Learner, Views, list[Judged], list[Lesson], RlRecipe]:
    """Answers to a question about what is there and to one about what is not, and what they teach."""
    recipe: RlRecipe = dataclasses.replace(RECIPE, model=str(start))
    model = talkative_model()
    learner = build(model, recipe)
    views, _ = drawn(model, recipe)
    prompts = prompts_of(model, [disc_example()])
    reference, generator = Reference(model, recipe), torch.Generator().manual_seed(1)
    judged = gather(model, learner.critic, reference, prompts, views, recipe, generator)
    taught = lessons(judged, recipe, 0.6)
    return learner, views, judged, taught, recipe


def test_gradient_by_groups_is_that_of_the_batch_and_its_variance_that_of_the_groups(drawn: Draw, start: Path) -> None:
    learner, views, judged, taught, recipe = two_groups(drawn, start)
    figures = accumulate(learner, views, judged, taught, recipe, ALONE)
    parts = []
    for one, lesson in zip(judged, taught, strict=True):
        loss = group_losses(learner, views, one, lesson, recipe, shares(judged, ALONE))["loss"]
        gradients = torch.autograd.grad(loss, learner.policy_parameters, allow_unused=True)
        parts.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    whole = torch.cat([p.grad.flatten() for p in learner.policy_parameters if p.grad is not None])
    torch.testing.assert_close(whole, parts[0] + parts[1], atol=1e-6, rtol=1e-4)
    expected = 2 * torch.stack(parts).var(0).sum()  # of a sum of two independent parts
    assert figures["gradient_variance"] == pytest.approx(float(expected), rel=1e-3)


def test_processes_with_unequal_shares_have_the_gradient_of_all_their_answers(drawn: Draw, start: Path) -> None:
    learner, views, judged, taught, recipe = two_groups(drawn, start)
    figures = accumulate(learner, views, judged, taught, recipe, ALONE)
    whole = torch.cat([p.grad.flatten() for p in learner.trained_parameters if p.grad is not None])
    learner.zero_grad()
    each = torch.tensor([[float(part.tokens), float(part.masks)] for part in (shares([j], ALONE) for j in judged)])
    assert each[0, 0] != each[1, 0], "choose another seed: both have as many tokens"
    assert (each[:, 1] > 0).tolist() == [True, False]  # the second asks about what is absent
    two = SimpleNamespace(reduce=lambda values, reduction: each.mean(0) if len(values) == 2 else values)
    parts = [accumulate(learner, views, [j], [lesson], recipe, two) for j, lesson in zip(judged, taught, strict=True)]
    mean = torch.cat([p.grad.flatten() / 2 for p in learner.trained_parameters if p.grad is not None])
    torch.testing.assert_close(mean, whole, atol=1e-6, rtol=1e-4)
    for name in parts[0]:
        assert (parts[0][name] + parts[1][name]) / 2 == pytest.approx(figures[name], abs=1e-6), name


def test_the_distance_of_a_saved_policy_is_the_same_in_bf16(drawn: Draw, tmp_path: Path) -> None:
    model = talkative_model()
    learner = build(model, RECIPE)
    views, groups = drawn(model, RECIPE)
    own = [parameter.detach().clone() for parameter in learner.policy_parameters]
    with torch.no_grad():
        for parameter in learner.policy_parameters:
            parameter.add_(0.02 * torch.randn_like(parameter))
        save_policy(model, tmp_path, 0)
        for parameter, value in zip(learner.policy_parameters, own, strict=True):
            parameter.copy_(value)
    save_policy(model, tmp_path, 1)
    exact = kl_to_final(model, tmp_path, groups, views, RECIPE)
    with torch.autocast("cpu", torch.bfloat16):  # which keeps the weights that it has cast
        rounded = kl_to_final(model, tmp_path, groups, views, RECIPE)
    assert exact[1] == rounded[1] == 0.0 < exact[0]
    assert rounded[0] == pytest.approx(exact[0], rel=0.1)
