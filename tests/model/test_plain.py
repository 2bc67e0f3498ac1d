"""A request is read plainly where it only asks for a structure that is known, and never as another one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.shots import Shot
from wsiseg.model import load_model, model_folder
from wsiseg.model.asking import ASKING
from wsiseg.model.config import PathChatConfig, load_config, paper
from wsiseg.model.plain import PLAIN, asked_for, known_names
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.data.names import names_of
from wsiseg.training.data.queries import CLINICAL, nouns, sample_noisy_query, sample_query

NAMES = names_of(CONCEPTS)


@pytest.fixture(scope="module")
def bundled() -> PathChatConfig:
    return load_config(model_folder(None) / "config.json")


@pytest.fixture(scope="module")
def model() -> PathChatSegmenter:
    return load_model(device="cpu")


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ("Could you please circle every crypt on this slide for me?", "outline the crypt"),
        ("check for glands", "outline the glands"),
        ("I'd like to see the gland’s outline", "outline the gland"),
        ("GLANDULAR TISSUE IN THIS H&E-STAINED COLON BIOPSY", "outline the glandular tissue"),
        ("which areas are glandular?", "outline the glands"),
        ("draw contours around the gladns", "outline the glands"),  # a slip of the pen, too
        ("count cells", "outline the nuclei"),
        ("H&E, crypts at 40x, so that I can compute their density", "outline the crypts"),
        ("gland morphometry: trace each gland", "outline the gland"),
        ("detect every single cell nucleus in the tissue", "outline the cell nucleus"),
        ("which areas are malignant?", "outline the malignant tissue"),
        ("show the tissue around the glands", "outline the tissue around the glands"),
        ("where is the tissue?", "outline the tissue"),
        ("any hyaline cartilage here?", "outline the hyaline cartilage"),
    ],
)
def test_what_only_asks_for_a_known_structure_is_read_plainly(bundled: PathChatConfig, asked: str, read: str) -> None:
    assert bundled.plain(asked) == read


@pytest.mark.parametrize(
    "asked",
    [
        "large glands", "normal glands", "no glands", "everything but the glands", "glands other than the malignant",
        "nuclei in the glands", "glands in tumour tissue", "glands and stroma", "which glands are malignant?",
        "what surrounds the glands?", "what lies between the crypts?", "blood cells", "epithelial cells",
        "atypical nuclei", "non-necrotic tissue", "the glands don't interest me", "mitoses", "show me", "", "Drüsen",
        "the glands at 40 degrees", "nuclei so that the small do not hide",
        "nuclei because I need the big ones",
    ],
)  # fmt: skip
def test_what_says_more_stays_as_it_is(bundled: PathChatConfig, asked: str) -> None:
    assert bundled.plain(asked) == asked.casefold()


def test_requests_for_less_or_for_something_else_stay_as_they_are(bundled: PathChatConfig) -> None:
    """Written by a language model that saw no code: each asks for another thing than all of a structure."""
    requests = json.loads((Path(__file__).parent / "narrowed.json").read_text())
    assert len(requests) == 200
    read_plainly = [request for request in requests if bundled.plain(request) != request.casefold()]
    assert read_plainly == ["show the stroma between the glands"]  # of which training knows no other


def test_of_the_requests_that_an_earlier_reading_got_wrong_few_are_left(bundled: PathChatConfig) -> None:
    """Found by a language model that read the code and was told to break it. A request must not come back."""
    requests = json.loads((Path(__file__).parent / "misread.json").read_text())
    assert len(requests) == 149
    assert sum(bundled.plain(request) != bundled.read(request) for request in requests) <= 15


def test_no_wording_of_any_concept_is_read_as_another(bundled: PathChatConfig) -> None:
    rng = np.random.default_rng(0)
    read = []
    for key, concept in CONCEPTS.items():
        asked = [sample_query(key, rng, "val") for _ in range(60)]
        asked += [noun.text for noun in nouns(concept, "val")]
        asked += [text for split in ("train", "val") for text in CLINICAL[split].get(key, ())]
        if not concept.held_back and concept.names:
            asked += [sample_query(key, rng) for _ in range(30)] + [sample_noisy_query(key, rng) for _ in range(10)]
        own = {PLAIN.format(noun.text) for noun in nouns(concept, "train")} | {PLAIN.format(concept.name)}
        for text in asked:
            assert bundled.plain(text) in {bundled.read(text), *own}, text
            read.append(bundled.plain(text) != bundled.read(text))
    assert np.mean(read) > 0.5


def test_every_name_is_read_as_one_of_training_for_the_same_structure(bundled: PathChatConfig) -> None:
    assert bundled.names == NAMES
    for key, concept in CONCEPTS.items():
        trained = {concept.name, *(noun.text for noun in nouns(concept, "train"))}
        for name in names_of([key]).get(concept.name, ()):
            read = bundled.plain(f"please find all {name} in this image")
            assert read.removeprefix(PLAIN.format("")) in trained, name


def test_words_that_only_ask_name_nothing() -> None:
    assert not ASKING & {name.casefold() for row in NAMES.values() for name in row}


def test_a_plain_reading_decides_the_scale_and_is_told(model: PathChatSegmenter) -> None:
    assert model.mpp_for("centres of the cells") == model.mpp_for("nuclei")
    assert model.caution_for("count cells") == '"count cells" was read as "outline the nuclei".'
    assert model.caution_for("Could you circle each colonic gland?").startswith("The bundled model learnt")
    assert model.caution_for("Mark every nucleus, please") == ""


@pytest.mark.parametrize(
    "query", ["non-malignant glands", "all but the tumour", "no stroma", "the largest gland", "lymphocyte nuclei"]
)
def test_who_says_more_than_a_name_is_told_to_check(model: PathChatSegmenter, query: str) -> None:
    """The model draws all of the structure, and of what is to be left out that."""
    told = f'"{query}" is more than the name of one structure that the model knows, or another. It may pass over words'
    assert model.caution_for(query).startswith(told)
    assert "is more than" not in model.caution_for("outline the malignant glands") + model.caution_for("glomeruli")


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ("outline the nuclei so that I can count mitoses", "nuclei"),
        ("mark the tumour because I need the invasive front", "tumour"),
        ("these glands", "glands"),
        ("one nucleus", "nucleus"),
    ],
)
def test_who_may_have_meant_less_is_told_what_was_read(model: PathChatSegmenter, query: str, read: str) -> None:
    assert model.caution_for(query).startswith(f'"{query}" was read as "outline the {read}".')
    for plain in (f"Could you outline each {read} in these images so that I can count them?", f"that is {read}"):
        assert "was read" not in model.caution_for(plain)


@pytest.mark.parametrize(
    "query",
    ["(-) nuclei", "tumour ( – )", "-stroma", "!tumour", "nuclei at the border of the slide", "at borders of tumours"],
)
def test_signs_and_borders_are_no_plain_request(bundled: PathChatConfig, query: str) -> None:
    assert bundled.structure(query) == ""


@pytest.mark.parametrize("word", ["skip", "than", "without", "except", "don't", "only", "leave"])
def test_a_reason_that_narrows_is_read_with_the_request(bundled: PathChatConfig, word: str) -> None:
    assert bundled.structure(f"outline the nuclei so that I can {word} the large") == ""
    assert bundled.structure("outline the nuclei so that I can count the large") == "nuclei"


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ("Tumor epithelium", "tumour epithelium"),
        ("gland lumina", "gland lumens"),
        ("glands!", "glands"),
        ("how much tumour is there", "tumour"),
        ("draw the borders of the nuclei, thank you very much", "nuclei"),
    ],
)
def test_spellings_and_thanks_change_nothing(bundled: PathChatConfig, query: str, read: str) -> None:
    assert bundled.plain(query) == f"outline the {read}"


def test_a_stain_or_a_purpose_brings_no_tissue_close_up(model: PathChatSegmenter) -> None:
    for query in ("outline the tumour for DNA extraction", "glands in this hematoxylin and eosin slide"):
        assert model.mpp_for(query) == model.mpp_for("glands")
        assert "The bundled model learnt" in model.caution_for(query)
    assert model.mpp_for("purple dots full of DNA") == model.mpp_for("nuclei")


def test_what_was_never_learnt_is_told_and_not_called_absent(model: PathChatSegmenter) -> None:
    learnt = model.model.config.outlines
    assert learnt == tuple(concept.name for concept in CONCEPTS.values() if concept.has_masks)
    never = f"he model never learnt to outline glomeruli, only {', '.join(learnt[:-1])} and {learnt[-1]}"
    assert model.hint_for("Show me each renal corpuscle") == f"t{never}"
    assert model.caution_for("glomeruli").startswith(f"T{never}: check what it outlined. The bundled model")
    assert model.hint_for("find the crypts") == ""
    assert model.hint_for("count cells") == 'read as "outline the nuclei"'
    assert model.hint_for("umrande die Drüsen").startswith(f"if it is one of {learnt[0]}, {learnt[1]}, ")
    assert model.hint_for("large gladns").startswith('read as "large glands"; if it is one of ')
    example = Shot(np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=bool), 0.5)
    told = model.with_shots([example]).caution_for("glomeruli") + model.with_shots([example]).hint_for("glomeruli")
    assert told == model.caution_for("glands")


def test_training_sees_a_query_as_it_was_written(model: PathChatSegmenter) -> None:
    asked, plain = (model.model.prompt(query, 1.1).before for query in ("show all crypts", "outline the crypts"))
    assert asked != plain


def test_a_model_without_names_is_asked_in_the_words_of_the_user() -> None:
    assert paper().plain("Check for Glands") == "Check for Glands"
    assert PathChatConfig().plain("Check for Glands") == "check for glands"
    assert asked_for("glands", {}) is None


def test_a_structure_of_the_users_own_is_known_too() -> None:
    known = known_names(names_of(["islet_rims", "cells", *CONCEPTS]))
    assert asked_for("could you find every islet rim here?", known) == ("islet rims", "islet rims")
    assert asked_for("count the cells", known) == ("cells", "cells")
