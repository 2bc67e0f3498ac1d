"""Chains that `wsiseg data annotate` wrote reach training: on whole views, and only as far as they hold of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.model.small import small_model
from wsiseg.errors import DataError
from wsiseg.training.batch import collate
from wsiseg.training.data.chains import CHAINS, Chain, Statement, read_chains, write_chains
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.examples import Example, ExampleStream, Question, whole_view
from wsiseg.training.sft import SftRecipe, train

SAID = ("The glands are lined by tall dark cells.", "Ninety-two glands fill it.", "They are round.")
CLOSING = "They are outlined."


def chain(image: str, *said: str, concept: str = "gland", present: bool = True) -> Chain:
    statements = tuple(Statement(text, "holds") for text in said)
    return Chain(image, concept, present, " ".join((*said, CLOSING)), CLOSING, statements, "seer", "thinker")


@pytest.fixture
def annotated(store: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(store, tmp_path / "discs.zarr"))
    said = ("The discs are dark.", "The glands are round.", "They are 24–44 µm wide.")
    write_chains(copy, [chain(f"discs {i}", *said) for i in range(12)])
    return copy


def stream(path: Path, share: float) -> ExampleStream:
    config = small_model().config
    return ExampleStream(
        QuadrupletStore.open(path), config, split="train", seed=1, questions=3, length=40, chain_share=share
    )


def test_stored_chains_answer_for_whole_views_and_the_template_for_others(annotated: Path) -> None:
    store = QuadrupletStore.open(annotated)
    whole = {i: whole_view(store.sample(i), 128, False) for i in store.indices(split="train")}
    views = stream(annotated, 0.5)
    seen = [views[i] for i in range(40)]
    described = 0
    for example in seen:
        is_whole = any(view is not None and np.array_equal(view.image, example.image) for view in whole.values())
        for question in example.questions:
            assert question.answer.startswith("The discs are dark.") == is_whole, question
            assert not is_whole or question.concept == "gland"
        described += is_whole
    assert 8 < described < 32
    said = {(e.mpp is None, q.answer) for e in seen for q in e.questions if q.answer.startswith("The discs are dark.")}
    assert (False, "The discs are dark. The glands are round. They are 24–44 µm wide. They are outlined.") in said
    assert all("µm" not in answer for untold, answer in said if untold)


def test_without_chains_or_share_training_sees_what_it_saw(annotated: Path, store: Path) -> None:
    for share, path in ((0.0, annotated), (0.5, store)):
        before, now = stream(store, 0.0)[3], stream(path, share)[3]
        np.testing.assert_array_equal(before.image, now.image)
        assert [(q.query, q.answer) for q in before.questions] == [(q.query, q.answer) for q in now.questions]


def test_what_the_view_refutes_is_left_out(annotated: Path) -> None:
    """Chains may be edited by hand, and a mask corrected after its chain was written."""
    write_chains(annotated, [chain(f"discs {i}", *SAID, "The glands are round.") for i in range(12)])
    views = stream(annotated, 1.0)
    answers = {q.answer for i in range(20) for q in views[i].questions}
    assert answers
    assert not any("Ninety" in answer for answer in answers)
    kept = [answer for answer in answers if answer.startswith(SAID[0])]
    assert kept
    assert all(answer.endswith("cells. The glands are round. They are outlined.") for answer in kept)


def test_a_view_is_the_image_as_it_is_padded_with_glass(store: Path) -> None:
    sample = QuadrupletStore.open(store).sample(0)
    layers = {"gland": sample.layers["gland"][:80], "glass": np.ones((80, 160), np.uint16)}
    wide = dataclasses.replace(sample, image=sample.image[:80], layers=layers)
    view = whole_view(wide, 160, False)
    assert view is not None
    np.testing.assert_array_equal(view.image[40:120], wide.image)
    np.testing.assert_array_equal(view.layers["gland"][40:120], layers["gland"])
    assert (view.image[:40] == 255).all()
    assert view.layers["glass"].all()
    assert view.mpp == 1.0
    assert whole_view(sample, 80, False) is None  # 2 µm per pixel: no view of training is so coarse


def test_a_token_inside_a_chain_is_text() -> None:
    model = small_model()
    image, mask = np.zeros((128, 128, 3), np.uint8), np.ones((128, 128), bool)
    batch = collate(
        [Example(image, 0.5, (Question("glands", "A <SEG> b <|image_pad|> c.", mask),))], model.config, model.tokenizer
    )
    labels = batch.labels[0][batch.labels[0] >= 0].tolist()
    assert labels.count(model.tokenizer.seg) == 1
    assert labels[-1] == model.tokenizer.seg
    assert model.tokenizer.image_pad not in labels


def test_training_runs_on_an_annotated_store(annotated: Path, start: Path, tmp_path: Path) -> None:
    recipe = SftRecipe(
        data=str(annotated), model=str(start), steps=2, batch_images=2, queries_per_image=2, precision="fp32",
        workers=0, validation_images=2, validate_every=2, checkpoint_every=2, chain_share=1.0,
    )  # fmt: skip
    train(recipe, tmp_path / "run")
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["cot"]) for line in losses if line["kind"] == "train")


def test_a_damaged_file_of_chains_is_named(annotated: Path) -> None:
    path = annotated / CHAINS
    path.write_bytes(path.read_bytes() + b'{"image": "discs 0"}\n')
    with pytest.raises(DataError, match=r"chains\.jsonl, line 13, is no chain"):
        read_chains(annotated)
