"""`wsiseg train --stage rl`: it runs, every switch runs, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from wsiseg.errors import DataError
from wsiseg.model.config import load_config, save_config
from wsiseg.model.folder import CONFIG, load_folder
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import ExampleStream
from wsiseg.training.recipe import load_recipe
from wsiseg.training.reference import Reference
from wsiseg.training.rl.prompts import AskedExamples
from wsiseg.training.rl.recipe import RlRecipe
from wsiseg.training.rl.train import build, parameter_groups, take_step, train
from wsiseg.training.run import Figures, read_figures

RECIPE = RlRecipe(
    steps=4,
    batch_images=2,
    answers=3,
    learning_rate=1e-3,
    critic_warmup=2,
    length_low=4,
    length_high=16,
    validation_images=2,
    validate_every=4,
    checkpoint_every=2,
    probe_every=2,
)
LOGGED = (
    "reward reward_soft reward_sparse reward_spatial reward_format reward_length hard_dice emission false_emission "
    "kl entropy clip_fraction explained_variance gradient_variance policy value pathwise norm rate mixture length cut"
)


def test_a_resumed_run_is_the_uninterrupted_run(discs: Path, start: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, data=str(discs), model=str(start))
    torch.set_num_threads(1)
    whole = train(recipe, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(step: int, values: dict[str, float]) -> None:
        if step == 3:  # one step after the checkpoint
            raise Killed

    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", report=kill)
    with pytest.raises(DataError, match="--resume"):
        train(recipe, tmp_path / "cut")
    (tmp_path / "cut/policies/step-000003.safetensors").write_bytes(b"of a run that ended before its checkpoint")
    begun = load_config(start / CONFIG)
    save_config(dataclasses.replace(begun, name="another"), start / CONFIG)
    with pytest.raises(DataError, match="is another one than when the run"):
        train(recipe, tmp_path / "cut", resume=True)
    save_config(begun, start / CONFIG)
    again = train(recipe, tmp_path / "cut", resume=True)

    def steps(run: Path) -> dict[float, dict[str, float]]:
        clock = ("seconds", "drawing")
        return {v["step"]: {k: x for k, x in v.items() if k not in clock} for v in read_figures(run, "train")}

    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")
    one, two = load_folder(whole).state_dict(), load_folder(again).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)

    # What a run writes down.
    lines = read_figures(tmp_path / "whole", "train")
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert {name for line in lines for name in line} >= {*LOGGED.split()}
    assert lines[0]["kl"] == 0.0  # step 0: the policy is its own reference
    assert lines[-1]["kl"] > 0.0
    assert [line["mixture"] for line in lines] == [0.0, 0.0, 0.6, 0.6]
    assert lines[0]["clip_fraction"] == 0.0  # one pass over fresh answers
    assert any("stop_regret" in line for line in lines[::2])
    assert not any("stop_regret" in line for line in lines[1::2])
    distance, of_resumed = (
        {int(line["step"]): line["kl_to_final"] for line in read_figures(tmp_path / run, "lyapunov")}
        for run in ("whole", "cut")
    )
    assert distance == of_resumed
    assert set(distance) == {0, 2, 4}
    assert distance[4] == 0.0 < distance[0]
    assert any((tmp_path / "whole" / "tensorboard").iterdir())


def test_distances_to_the_end_that_a_run_had_are_forgotten_when_it_goes_on(tmp_path: Path) -> None:
    """They stood beside those to the new end, of the same steps."""
    lines = [{"step": 4, "kind": "train", "loss": 1.0}, {"step": 0, "kind": "lyapunov", "kl_to_final": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Figures(tmp_path, 4, RECIPE).close()
    assert len(read_figures(tmp_path, "train")) == 1
    assert not read_figures(tmp_path, "lyapunov")


@pytest.mark.parametrize(
    "switches",
    [
        {"mixture": 0.0, "pathwise": 0.0},  # standard GRPO, no pathwise term
        {"per_token": "returns", "inner_epochs": 2},  # no GAE
        {"fixed_seg": True, "pathwise_to_llm": False},  # LISA
        {"tuning": "lora", "lora_rank": 2},
    ],
)
def test_every_switch_runs(discs: Path, start: Path, tmp_path: Path, switches: dict[str, object]) -> None:
    recipe = dataclasses.replace(
        RECIPE, data=str(discs), model=str(start), steps=2, critic_warmup=0, validation_images=0, **switches
    )
    model = load_folder(train(recipe, tmp_path / "run"))
    lines = read_figures(tmp_path / "run", "train")
    assert all(math.isfinite(value) for line in lines for value in line.values())
    if recipe.fixed_seg:
        assert {line[name] for line in lines for name in ("emission", "false_emission") if name in line} == {1.0}
    if recipe.pathwise == 0:
        assert {line["pathwise"] for line in lines} == {0.0}
    before = load_folder(start).state_dict()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "vlm" in changed
    assert "image_encoder" not in changed


def test_the_critic_starts_at_the_mean_of_the_first_rewards(discs: Path, start: Path) -> None:
    recipe = dataclasses.replace(RECIPE, data=str(discs), model=str(start), learning_rate=0.0)
    learner = build(load_folder(start), recipe)
    optimizer = torch.optim.AdamW(parameter_groups(learner, recipe), weight_decay=0.0)
    stream = ExampleStream(
        QuadrupletStore.open(discs), learner.model.config, split="train", seed=0, questions=6, length=2
    )
    reference, world = Reference(learner.model, recipe), Accelerator(cpu=True)
    values = take_step(0, [stream[0], stream[1]], learner, reference, optimizer, recipe, world)
    expected = learner.critic(torch.randn(5, learner.model.config.text.hidden_size))
    assert expected.tolist() == pytest.approx([values["reward"]] * 5)
    assert values["reward"] != 0
    assert values.get("explained_variance", 0.0) == pytest.approx(0.0, abs=1e-6)  # a constant explains nothing


@pytest.mark.parametrize("count", [1, 2, 3])
def test_half_of_the_questions_are_about_what_is_there(discs: Path, start: Path, count: int) -> None:
    """Two thirds of those of fine-tuning are not: a policy that hears no reward but for silence falls silent."""
    data = QuadrupletStore.open(discs)
    stream = ExampleStream(
        data, load_folder(start).config, split="train", seed=0, questions=3 * count, length=40, augment=False
    )
    examples = AskedExamples(stream, count)
    asked = [[question.mask is not None for question in examples[i].questions] for i in range(len(examples))]
    assert {sum(there) for there in asked} <= {0, 1}  # discs have one structure to ask for
    assert max(map(len, asked)) <= count
    share = sum(map(sum, asked)) / sum(map(len, asked))
    assert share == pytest.approx(0.5 if count < 3 else 0.4, abs=0.1)


def test_recipes_that_cannot_run_are_refused() -> None:
    for override, message in (
        ("answers=1", "2 or more"),
        ("temperature=0", "above 0"),
        ("length_low=99", "above length_high"),
        ("gradient_checkpointing=true", "rules out"),
        ("eta=-0.5", "eta"),
        ("mixtrue=0", "did you mean mixture"),
    ):
        with pytest.raises(DataError, match=message):
            load_recipe(RlRecipe, None, (override,))
    with pytest.raises(DataError, match="continues a model"):
        train(RlRecipe(model=None), Path("nowhere"))
    recipes = Path(__file__).parents[3] / "training" / "recipes"
    for name in ("tiny-rl.yaml", "paper-rl.yaml"):
        assert load_recipe(RlRecipe, recipes / name).stage == "rl"
