"""Examples in training and evaluation: of another patient, read in context, joined with the mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.small import small_config, small_model
from tests.training.test_evaluate import Darkness, picture
from tests.training.test_sft import RECIPE
from wsiseg.errors import DataError
from wsiseg.inference.shots import Shot
from wsiseg.model.folder import load_folder
from wsiseg.training.batch import collate, read
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample, SourceInfo, write_quadruplets
from wsiseg.training.evaluate import evaluate
from wsiseg.training.examples import Example, ExampleStream, Question
from wsiseg.training.sft import SftModel, train
from wsiseg.training.shots import ShotPool, ShotView, draw_shots


def square(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((128, 128), bool)
    y, x = rng.integers(10, 70, 2)
    mask[y : y + 40, x : x + 40] = True
    return np.where(mask[..., None], 90, 220).astype(np.uint8) + rng.integers(0, 20, (128, 128, 3), np.uint8), mask


def example(seed: int, shot: bool) -> Example:
    (image, mask), shown = square(seed), ShotView(*square(seed + 50)) if shot else None
    return Example(
        image,
        0.5,
        (Question("glands", "Two.", mask, "gland", shown), Question("are there squares", "None.", None, "x", shown)),
    )


def test_a_row_with_an_example_reads_both_images_in_place() -> None:
    model = small_model()
    tokenizer, n = model.tokenizer, model.config.image_token_count
    batch = collate([example(0, False), example(1, True)], model.config, tokenizer)
    assert batch.images.tolist() == [0, 0, 2, 1, 3, 1]  # views first, then the examples
    assert batch.shot_of.tolist() == [-1, 0]
    for row, shots in enumerate([0, 0, 1, 1]):
        prompt = model.prompt(("glands", "are there squares")[row % 2], 0.5, shots)
        line = [token for text in prompt.shared for token in (*text, *[tokenizer.image_pad] * n)] + prompt.after
        assert batch.ids[row, : len(line)].tolist() == line
        assert batch.answer_at[row] == len(line) - 1
    with torch.inference_mode():
        states = read(model, batch).states
        # The prompt of inference, put together from its own parts.
        prompt = model.prompt("glands", 0.5, 1)
        shown, tile = model.image_tokens(torch.cat([batch.shots[:1], batch.tiles[1:]]))
        first, before, after = (model.embed(torch.tensor(text)) for text in (*prompt.shared, prompt.after))
        whole = torch.cat([first, shown, before, tile, after])
        positions = model.positions(len(first), len(before), len(after))
        expected = model.vlm.model.language_model(inputs_embeds=whole[None], position_ids=positions[:, None])
    torch.testing.assert_close(states[2, : len(whole)], expected.last_hidden_state[0], atol=2e-5, rtol=1e-4)


def test_neighbours_with_examples_do_not_change_a_row() -> None:
    model = small_model()
    sft = SftModel(model, RECIPE).eval()
    with torch.inference_mode():
        alone = sft(collate([example(0, True)], model.config, model.tokenizer))
        plain = sft(collate([example(3, False)], model.config, model.tokenizer))
        beside = sft(collate([example(3, False), example(0, True)], model.config, model.tokenizer))
        without = sft(collate([example(0, False)], model.config, model.tokenizer))
    torch.testing.assert_close(beside["seg"], (alone["seg"] + plain["seg"]) / 2, atol=1e-5, rtol=1e-5)
    assert abs(alone["seg"] - without["seg"]) > 1e-3


def test_a_model_trained_with_examples_reads_them_in_context(store: Path, start: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        RECIPE, data=str(store), model=str(start), steps=2, example_share=1.0, validate_every=2
    )
    trained = load_folder(train(recipe, tmp_path / "run"))
    assert trained.config.shots_in_context
    assert not load_folder(start).config.shots_in_context


def test_half_precision_does_not_reach_the_prototypes() -> None:
    model = small_model()
    batch, sft = collate([example(0, True)], model.config, model.tokenizer), SftModel(model, RECIPE)
    with torch.autocast("cpu", torch.bfloat16):
        half = sft(batch)["loss"]
    half.backward()
    torch.testing.assert_close(half, sft(batch)["loss"], atol=0.1, rtol=0.1)


def test_examples_are_of_other_patients_and_leave_other_draws_alone(store: Path) -> None:
    opened = QuadrupletStore.open(store)
    plain, shown = (
        ExampleStream(opened, small_config(), split="train", seed=3, questions=2, length=30, example_share=share)
        for share in (0.0, 0.5)
    )
    with_shot = 0
    for i in range(30):
        one, two = plain[i], shown[i]
        np.testing.assert_array_equal(one.image, two.image)
        assert [q.query for q in one.questions] == [q.query for q in two.questions]
        for question in two.questions:
            if question.shot is not None:
                with_shot += 1
                assert question.shot.image.shape == two.image.shape
                assert 0 < question.shot.mask.mean() < 1
                # The discs are dark: image and mask belong together.
                assert question.shot.image[question.shot.mask].mean() < question.shot.image[~question.shot.mask].mean()
    assert 5 < with_shot < 40
    pool, rng = ShotPool(opened, "train"), np.random.default_rng(0)
    for _ in range(20):
        drawn = pool.draw("gland", "discs", "p3", rng)
        assert drawn is not None
        assert drawn.group != "p3"
    assert pool.draw("necrosis", "discs", "p3", rng) is None


class Shown(Darkness):
    """Counts what it was shown."""

    def __init__(self, shots: Sequence[Shot] = (), log: list[list[str]] | None = None) -> None:
        super().__init__()
        self.shots, self.log = shots, [] if log is None else log

    def with_shots(self, shots: Sequence[Shot]) -> Shown:
        self.log.append([shot.name for shot in shots])
        return Shown(shots, self.log)


@pytest.fixture
def patients(tmp_path: Path) -> QuadrupletStore:
    """Images of three patients; one without the structure, one all of it."""
    samples, questions = [], {}
    for name, group, kind in (("a1", "a", 1), ("a2", "a", 1), ("b1", "b", 1), ("c1", "c", 0), ("d1", "d", 2)):
        mask = np.zeros((70, 70), bool)
        mask[10:40, 20:50] = kind > 0
        mask[:] |= kind > 1
        layers = {"gland": mask.astype(np.uint16)} if kind else {}
        absent = ("necrosis",) if kind else ("necrosis", "gland")
        samples.append(Sample(picture(mask), layers, tuple(layers), absent, 0.5, "s", group, "val", name))
        questions[name] = [
            Quadruplet(0, "gland", "glands", "", bool(kind)),
            Quadruplet(0, "necrosis", "necrosis", "", False),
        ]
    sources = {"s": SourceInfo("s", "CC0", "us", "made", "by patient")}
    return write_quadruplets(tmp_path / "p.zarr", samples, sources, questions)


def test_each_question_is_asked_after_examples_of_its_structure_from_other_patients(patients: QuadrupletStore) -> None:
    model = Shown()
    report = evaluate(model, patients, shots=2)
    # b1 and d1 have two images of `a` to show, `a` only b1 (d1 marks all), and nobody has necrosis.
    assert [sorted(names) for names in model.log[:3]] == [["b1"], ["b1"], ["a1", "a2"]]
    assert [case.shots for case in report.cases] == [1, 0, 1, 0, 2, 0, 2, 0, 2, 0]
    assert report.shots == 2
    again = Shown()
    evaluate(again, patients, shots=2)
    assert again.log == model.log
    zero = evaluate(Darkness(), patients)
    assert [case.shots for case in zero.cases] == 10 * [0]
    with pytest.raises(DataError, match="takes no examples"):
        evaluate(Darkness(), patients, shots=1)


def test_the_same_example_can_be_shown_before_every_question(patients: QuadrupletStore) -> None:
    shot = draw_shots(ShotPool(patients, "val"), "gland", patients.sample(0), 1)
    model = Shown()
    report = evaluate(model, patients, examples=shot)
    assert model.log == 10 * [["b1"]]
    assert report.shots == 1
