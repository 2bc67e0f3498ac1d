"""What may be asked where, and in which words."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from wsiseg.training.data.concepts import CONCEPTS, MASKED, concept_named, known_absent
from wsiseg.training.data.places import PLACES
from wsiseg.training.data.queries import CLINICAL, FRAMES, VERBS, WHERE, sample_query


def _words(concept_nouns: tuple) -> set[str]:
    return {noun.text.lower() for noun in concept_nouns}


def test_validation_wordings_never_occur_in_training() -> None:
    for table in (FRAMES, VERBS, WHERE):
        assert not set(table["train"]) & set(table["val"])
    every_train_name: set[str] = set()
    for concept in CONCEPTS.values():
        if not concept.held_back:
            every_train_name |= _words(concept.names + concept.descriptions)
    for key, concept in CONCEPTS.items():
        kept = _words(concept.val_names + concept.val_descriptions)
        if concept.held_back:
            kept |= _words(concept.names)
        assert not kept & every_train_name, key
        assert not set(CLINICAL["train"].get(key, ())) & set(CLINICAL["val"].get(key, ())), key


def test_there_is_variety_to_learn_from() -> None:
    assert len(set(FRAMES["train"])) >= 40
    assert len(FRAMES["val"]) >= 12
    rng = np.random.default_rng(0)
    drawn = [sample_query("gland", rng, "train") for _ in range(1000)]
    assert len(set(drawn)) > 700
    assert all(text.strip() == text and text for text in drawn)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_concept_can_be_asked_for(split: Literal["train", "val"]) -> None:
    rng = np.random.default_rng(1)
    for key in CONCEPTS:
        for _ in range(20):
            text = sample_query(key, rng, split)
            assert text.isprintable()
            assert "{" not in text
            assert "  " not in text


def test_what_is_known_absent() -> None:
    assert {"malignant", "dysplastic", "necrosis", "cat", "glomeruli"} <= set(
        known_absent("ebhi_seg", "normal")
    )
    assert "glomeruli" not in known_absent("nuinsseg", "mouse kidney")
    assert "alveoli" not in known_absent("nuinsseg", "human lung")
    assert "gland" not in known_absent("nuinsseg", "human rectum")
    assert "gland" in known_absent("nuinsseg", "mouse heart")
    # a lesion short of cancer is never asked as malignant, neither way
    for grade in ("low_grade_in", "high_grade_in", "adenocarcinoma"):
        assert "malignant" not in known_absent("ebhi_seg", grade)
    # where the organ is not stated, only things of no body at all are ruled out
    assert all(CONCEPTS[key].thing for key in known_absent("somebody's", "folder"))


def test_held_back_concepts_are_not_asked_in_training() -> None:
    for source, label in PLACES:
        assert not any(CONCEPTS[key].held_back for key in known_absent(source, label, split="train"))


def test_a_structure_is_found_by_any_of_its_names(caplog: pytest.LogCaptureFixture) -> None:
    assert concept_named("Glands") == "gland"
    assert not caplog.text
    assert concept_named("Tumor") == "malignant"
    assert "Tumor is taken for malignant" in caplog.text
    assert concept_named("cell nuclei") == "nucleus"
    assert concept_named("Apoptotic bodies") == "apoptotic_bodies"  # a user's own
    assert len(MASKED) == 9
