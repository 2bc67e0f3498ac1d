"""Supervised fine-tuning: the right targets, the right losses, a run that resumes exactly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.small import small_config, small_model
from wsiseg.errors import DataError
from wsiseg.model.folder import load_folder, save_model
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.batch import Collate, collate
from wsiseg.training.data.concepts import concept_of
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import Example, ExampleStream, Question
from wsiseg.training.losses import mask_loss, soft_dice
from wsiseg.training.mix import SourceMix, training_store
from wsiseg.training.recipe import load_recipe
from wsiseg.training.sft import SftModel, SftRecipe, build, train

RECIPE = SftRecipe(
    steps=6,
    batch_images=3,
    queries_per_image=2,
    warmup_steps=2,
    precision="fp32",
    workers=0,
    validate_every=3,
    checkpoint_every=3,
    validation_images=3,
    wordings_per_image=6,
    probe_batches=2,
)


def test_targets_begin_with_the_answer_and_end_with_seg_or_the_end() -> None:
    model = small_model()
    tokenizer = model.tokenizer
    mask = np.ones((128, 128), bool)
    image = np.zeros((128, 128, 3), np.uint8)
    batch = collate(
        [
            Example(
                image, 0.5, (Question("glands", "Two glands.", mask), Question("a longer question", "None.", None))
            ),
            Example(image, None, (Question("x", "Yes.", mask),)),
        ],
        model.config,
        tokenizer,
    )
    assert batch.image_of.tolist() == [0, 0, 1]
    assert batch.present.tolist() == [True, False, True]
    for row, (answer, stop) in enumerate(
        (("Two glands.", tokenizer.seg), ("None.", tokenizer.end), ("Yes.", tokenizer.seg))
    ):
        targets = batch.labels[row][batch.labels[row] >= 0].tolist()
        assert targets == [*tokenizer.encode(answer), stop]
        first = int(torch.nonzero(batch.labels[row] >= 0)[0])
        assert first == batch.answer_at[row]  # the last prompt token predicts the first answer token
        assert batch.ids[row, first + 1] == targets[0]
    rows = torch.nonzero(batch.present)[:, 0]
    assert batch.ids[rows, batch.seg_at].tolist() == [tokenizer.seg, tokenizer.seg]


def test_padding_and_neighbours_do_not_change_a_row() -> None:
    model = small_model()
    sft = SftModel(model, RECIPE).eval()
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    one = Example(image, 0.5, (Question("glands", "Two.", image[..., 0] > 128),))
    long = Example(image[::-1].copy(), 0.5, (Question("a very long question " * 4, "No " * 20, None),))
    with torch.inference_mode():
        alone = sft(collate([one], model.config, model.tokenizer))
        beside = sft(collate([one, long], model.config, model.tokenizer))
    torch.testing.assert_close(alone["seg"], beside["seg"], atol=1e-5, rtol=1e-5)


def test_dice_by_hand() -> None:
    big = 50.0
    logits = torch.tensor([[[big, big], [-big, -big]]])
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # overlap 1, sizes 2 and 2: (2 + 1) / (4 + 1)
    assert soft_dice(logits, target).item() == pytest.approx(3 / 5)
    assert mask_loss(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4)) == 0


def test_a_resumed_run_is_the_uninterrupted_run(store: Path, start: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, data=str(store), model=str(start))
    torch.set_num_threads(1)
    whole = train(recipe, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(step: int, values: dict[str, float]) -> None:
        if step == 5:  # two steps after the checkpoint
            raise Killed

    with pytest.raises(Killed):
        train(recipe, tmp_path / "cut", report=kill)
    with pytest.raises(DataError, match="--resume"):
        train(recipe, tmp_path / "cut")
    asked = (tmp_path / "cut" / "recipe.yaml").read_bytes()
    with pytest.raises(DataError, match="another recipe"):
        train(dataclasses.replace(recipe, frozen=("image_encoder.",)), tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "recipe.yaml").read_bytes() == asked
    again = train(recipe, tmp_path / "cut", resume=True)

    def losses(run: Path) -> dict[int, float]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}

    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, two = load_folder(whole).state_dict(), load_folder(again).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    state = tmp_path / "cut" / "state"
    for name in ("state.safetensors", "state.json"):  # as an incomplete copy leaves them
        (state / name).write_bytes((state / name).read_bytes()[:10])
        with pytest.raises(DataError, match="damaged, or was not copied whole"):
            train(dataclasses.replace(recipe, steps=9), tmp_path / "cut", resume=True)


def test_training_learns_the_discs(store: Path, start: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        RECIPE, data=str(store), model=str(start), steps=12, learning_rate=3e-3, validate_every=12, checkpoint_every=12
    )
    train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    loss = [line["loss"] for line in lines if line["kind"] == "train"]
    assert np.mean(loss[-5:]) < 0.75 * np.mean(loss[:5])


def test_examples_are_the_same_in_every_run_and_ask_for_what_is_absent(store: Path) -> None:
    config = small_config()
    streams = [
        ExampleStream(QuadrupletStore.open(store), config, split="train", seed=3, questions=3, length=40) for _ in "ab"
    ]
    asked = []
    for i in (0, 17, 39):
        first, second = streams[0][i], streams[1][i]
        np.testing.assert_array_equal(first.image, second.image)
        assert [q.query for q in first.questions] == [q.query for q in second.questions]
    for i in range(40):
        asked += streams[0][i].questions
    absent = sum(q.mask is None for q in asked)
    assert absent / len(asked) >= 1 / 3
    assert all(q.mask is None or q.mask.any() for q in asked)


def test_weights_that_leave_nothing_to_draw_or_name_nothing_are_said(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="0 for all sources with train images: discs"):
        SourceMix(QuadrupletStore.open(store), "train", {"discs": 0.0})
    training_store(dataclasses.replace(RECIPE, data=str(store), source_weights={"disks": 2.0, "discs": 1.0}))
    assert "source_weights names disks, of which" in caplog.text
    with pytest.raises(DataError, match="at least 0, not -1"):
        load_recipe(SftRecipe, None, ("source_weights={discs: -1}",))


def test_a_single_question_is_now_and_then_about_what_is_there(store: Path) -> None:
    stream = ExampleStream(
        QuadrupletStore.open(store), small_config(), split="train", seed=3, questions=1, length=60, augment=False
    )
    asked = [question.mask is not None for i in range(60) for question in stream[i].questions]
    assert len(asked) == 60
    assert 0.5 < np.mean(asked) < 0.8


def test_what_is_held_moves_less_while_language_is_learned(store: Path, start: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        RECIPE, data=str(store), model=str(start), steps=6, validate_every=6, lambda_seg=0.0, learning_rate=2e-3
    )

    def moved(run: str, lambda_hold: float) -> float:
        train(dataclasses.replace(recipe, lambda_hold=lambda_hold), tmp_path / run)
        trained = load_folder(tmp_path / run / "model")
        views = ExampleStream(QuadrupletStore.open(store), trained.config, split="val", seed=1, questions=2, length=4)
        batch = collate([views[i] for i in range(4)], trained.config, trained.tokenizer)
        with torch.no_grad():
            return float(SftModel(trained, dataclasses.replace(recipe, lambda_hold=1.0)).eval()(batch)["held"])

    assert 0 < moved("held", 30.0) < 0.5 * moved("free", 1e-9)
    lines = [json.loads(line) for line in (tmp_path / "held" / "metrics.jsonl").read_text().splitlines()]
    assert not any("seg" in line for line in lines if line["kind"] == "train")  # drawn in validation only
    assert all(line["seg"] > 0 for line in lines if line["kind"] == "validation")
    assert lines[0]["held"] == pytest.approx(0, abs=1e-6)  # at step 0 the model is the one it is compared with
    with pytest.raises(DataError, match="lambda_hold"):
        train(dataclasses.replace(recipe, lambda_hold=1.0, model=None), tmp_path / "none")


def test_other_words_learn_to_be_answered_as_plain_ones_and_nothing_else_moves(
    store: Path, start: Path, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        RECIPE, data=str(store), model=str(start), steps=20, validate_every=20, learning_rate=3e-3, ema=0.5,
        frozen=("vlm.model.visual", "seg_adapter", "image_encoder", "mask_head"),
        lambda_cot=0.0, lambda_seg=0.0, lambda_presence=0.0, lambda_wording=0.0, lambda_plain=1.0,
    )  # fmt: skip
    train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line["plain"] for line in lines if line["kind"] == "validation")
    assert 0 < last < 0.8 * first
    before, after = load_folder(start), load_folder(tmp_path / "run" / "model")
    moved = [
        name
        for (name, was), now in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(was, now)
    ]
    assert moved
    assert all(name.startswith(("vlm.model.language_model", "vlm.lm_head")) for name in moved)
    with pytest.raises(DataError, match="lambda_plain"):
        train(dataclasses.replace(recipe, model=None), tmp_path / "none")


def test_a_model_that_reads_plainly_learns_the_names_of_what_it_is_trained_on(
    store: Path, start: Path, tmp_path: Path
) -> None:
    model = load_folder(start)
    assert model.config.plain("Find the crypts") == "find the crypts"
    known = {"rims": {"rims": "rims"}, "glands": {"glands": "glands"}}
    model.config = dataclasses.replace(model.config, words="gland", names=known, outlines=("rims",))
    save_model(model, tmp_path / "reads")
    recipe = dataclasses.replace(RECIPE, data=str(store), model=str(tmp_path / "reads"), steps=1, validate_every=1)
    trained = load_folder(train(recipe, tmp_path / "run"))
    unknown = dataclasses.replace(recipe, model=str(start))
    assert load_folder(train(unknown, tmp_path / "unknown")).config.outlines == ()
    assert trained.config.plain("Find the cyrpts") == "outline the crypts"
    assert trained.config.plain("Find every rim") == "outline the rims"  # of an earlier training
    shown = {key for record in QuadrupletStore.open(store).records if record.split == "train" for key in record.present}
    assert trained.config.outlines == ("rims", *sorted(concept_of(key).name for key in shown))


def test_a_plain_question_is_no_farther_from_itself(start: Path) -> None:
    module = build(load_folder(start), dataclasses.replace(RECIPE, model=str(start), lambda_plain=1.0)).eval()
    made_up = Question("where are the wugs?", "No such thing is seen.", None, "nonsense")  # has no plainer words
    glands = Question("outline the glands", "Two.", np.ones((128, 128), bool), "gland")
    examples = [Example(np.zeros((128, 128, 3), np.uint8), 0.5, (glands, made_up))]
    collate_plain = Collate(module.model.config, module.model.tokenizer, plain=True)
    assert float(module(collate_plain(examples))["plain"]) == pytest.approx(0, abs=1e-6)
    asked = dataclasses.replace(glands, query="show me each of the crypts in this picture")
    assert float(module(collate_plain([dataclasses.replace(examples[0], questions=(asked,))]))["plain"]) > 1e-4


@pytest.mark.parametrize(
    ("mask", "taught", "nothing"),
    [(np.ones((128, 128), bool), False, {"cot", "token_accuracy"}), (None, True, {"seg", "dice"})],
    ids=["no answer is taught", "nothing is outlined"],
)
def test_a_batch_has_a_loss_and_no_figure_of_what_it_has_none_of(
    start: Path, mask: np.ndarray | None, taught: bool, nothing: set[str]
) -> None:
    """As 0 they took a mean of batches down to where no batch was."""
    module = build(load_folder(start), dataclasses.replace(RECIPE, model=str(start), lambda_hold=1.0))
    question = Question("glands", "Two.", mask, "gland", taught=taught)
    example = Example(np.zeros((128, 128, 3), np.uint8), 0.5, (question,))
    values = module(collate([example], module.model.config, module.model.tokenizer))
    assert {name for name, value in values.items() if value.isnan()} == nothing
    assert values["loss"].isfinite()


@pytest.mark.parametrize(("frozen", "looks"), [(("vlm.model.visual.",), 1), ((), 2)])
def test_what_is_held_looks_again_only_with_an_encoder_that_learns(
    store: Path, start: Path, monkeypatch: pytest.MonkeyPatch, frozen: tuple[str, ...], looks: int
) -> None:
    recipe = dataclasses.replace(RECIPE, model=str(start), lambda_hold=1.0, frozen=frozen)
    module = build(load_folder(start), recipe).eval()
    views = ExampleStream(QuadrupletStore.open(store), module.model.config, split="val", seed=1, questions=2, length=2)
    looked, look = [], PathChatSegR1.image_tokens
    monkeypatch.setattr(PathChatSegR1, "image_tokens", lambda model, tiles: looked.append(1) or look(model, tiles))
    figures = module(collate([views[i] for i in range(2)], module.model.config, module.model.tokenizer))
    assert float(figures["held"]) == pytest.approx(0, abs=1e-6)
    assert len(looked) == looks
