"""Slips of the pen are read as what was meant, and nothing else is changed."""

from __future__ import annotations

import numpy as np
import pytest

from wsiseg.model import load_model, model_folder
from wsiseg.model.config import PathChatConfig, load_config, paper
from wsiseg.model.spelling import corrected
from wsiseg.training.data.chatter import no_word
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.data.queries import CLINICAL, FRAMES, VERBS, WHERE, nouns, training_words, with_words_of

WORDS = training_words()
KNOWN = set(WORDS.split())
LONG = sorted(word for word in KNOWN if len(word) > 6)


@pytest.fixture(scope="module")
def bundled() -> PathChatConfig:
    return load_config(model_folder(None) / "config.json")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("Tell me where all gladnular units are.", "tell me where all glandular units are."),
        ("round epitelial structures", "round epithelial structures"),
        ("NUCLEII", "nuclei"),
        ("the tumuor", "the tumour"),  # neither the tumor
        ("lymphocitic infiltrate", "lymphocitic infiltrate"),
        ("the haemotoxylin-stained part", "the haematoxylin-stained part"),  # another letter, of a long word
        ("basal cells", "basal cells"),  # not nasal
        ("three black borders, acellular", "three black borders, acellular"),  # not there, back, orders, cellular
        ("surrounds possible places", "surrounds possible places"),  # other forms of known words
        ("Drüsen, железы, 腺体", "drüsen, железы, 腺体"),
    ],
)
def test_the_bundled_model_reads_what_was_meant(bundled: PathChatConfig, typed: str, read: str) -> None:
    assert bundled.read(typed) == read


def test_a_slip_does_not_change_the_scale_and_is_told() -> None:
    model = load_model()
    assert model.mpp_for("outline the nulcei") == model.mpp_for("outline the nuclei")
    assert model.caution_for("outline the nulcei") == '"outline the nulcei" was read as "outline the nuclei".'
    assert model.caution_for("Outline the Nuclei") == ""


def test_the_bundled_model_knows_the_words_of_its_training(bundled: PathChatConfig) -> None:
    assert bundled.words == WORDS
    for concept in CONCEPTS.values():
        for noun in nouns(concept, "train"):
            assert bundled.read(noun.text) == noun.text.casefold()


def test_wordings_that_training_never_saw_are_not_taken_for_slips() -> None:
    frames = [*FRAMES["val"], *WHERE["val"], *(verb for pair in VERBS["val"] for verb in pair)]
    asked = [noun.text for concept in CONCEPTS.values() for noun in nouns(concept, "val")]
    for text in (*frames, *(question for questions in CLINICAL["val"].values() for question in questions), *asked):
        assert corrected(text.casefold(), WORDS) == text.casefold()


def test_words_that_do_not_exist_stay_what_they_are() -> None:
    rng = np.random.default_rng(0)
    made_up = [no_word(rng) + no_word(rng) for _ in range(1000)]
    assert sum(corrected(word, WORDS) != word for word in made_up) < 10


def test_a_slip_in_a_long_word_is_mended() -> None:
    mended, others, total = 0, set(), 0
    for word in LONG:
        for at in range(1, len(word) - 1):
            left_out, twice = word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]
            swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            for slip in {left_out, twice, swapped} - KNOWN:
                read = corrected(slip, WORDS)
                mended, total = mended + (read == word), total + 1
                if read not in (word, slip):
                    others.add((slip, read))
    assert mended > 0.98 * total
    assert len(others) < 0.001 * total, others  # "suitcasse": a suitcase, not suitcases


def test_a_model_that_reads_everything_is_given_the_query_as_it_is() -> None:
    assert paper().read("Outline the Gladns") == "Outline the Gladns"
    assert PathChatConfig().read("Outline the Gladns") == "outline the gladns"


def test_new_concepts_bring_their_words() -> None:
    words = with_words_of("gland nuclei", ["Schwannomas", "gland"])
    assert "schwannomas" in words.split()
    assert corrected("the scwhannomas", words) == "the schwannomas"
