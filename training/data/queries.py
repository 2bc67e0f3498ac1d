"""Queries in many wordings: frames × verbs × names × endings, with the slips that people make.

Frames, verbs, endings, names and descriptions of validation never occur in training (a test holds them
apart), so that a figure on `split="val"` is a figure on wordings the model never saw.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal, TypeVar

import numpy as np

from wsiseg.model.plain import PLAIN
from wsiseg.training.data.absent import NONSENSE
from wsiseg.training.data.chatter import chatter, no_word, words
from wsiseg.training.data.concepts import CONCEPTS, concept_of
from wsiseg.training.data.terms import Concept, Noun

Split = Literal["train", "val"]
T = TypeVar("T")

# {verb} and {verbing} a verb; {the} noun with a determiner; {bare} without; {is} is or are
VERBS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (
        ("outline", "outlining"), ("segment", "segmenting"), ("mark", "marking"), ("trace", "tracing"),
        ("highlight", "highlighting"), ("annotate", "annotating"), ("find", "finding"), ("show", "showing"),
        ("locate", "locating"), ("identify", "identifying"), ("detect", "detecting"),
        ("delineate", "delineating"), ("contour", "contouring"), ("draw", "drawing"), ("label", "labelling"),
        ("mask", "masking"), ("extract", "extracting"), ("select", "selecting"), ("outline", "outlining"),
        ("segment", "segmenting"),
    ),
    "val": (
        ("map", "mapping"), ("demarcate", "demarcating"), ("encircle", "encircling"),
        ("pick out", "picking out"), ("isolate", "isolating"), ("point out", "pointing out"),
        ("spot", "spotting"),
    ),
}
FRAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "{verb} {the}{where}",
        "{verb} {the}{where}",
        "{verb} {the}{where}",
        "{verb} {bare}",
        "please {verb} {the}{where}",
        "please {verb} {bare}{where}",
        "{verb} {the}{where}, please",
        "can you {verb} {the}{where}?",
        "could you {verb} {the}{where}?",
        "could you please {verb} {the}?",
        "can you {verb} {bare}?",
        "would you {verb} {the} for me?",
        "I want you to {verb} {the}{where}",
        "I would like to {verb} {the}{where}",
        "I need to {verb} {the}",
        "help me {verb} {the}{where}",
        "your task is to {verb} {the}{where}",
        "try to {verb} {the}{where}",
        "carefully {verb} {the}",
        "automatically {verb} {the}{where}",
        "start {verbing} {the}{where}",
        "{verbing} of {the}",
        "{bare}",
        "{bare}",
        "{bare}{where}",
        "the {bare}",
        "all {bare}",
        "{bare} please",
        "{bare}?",
        "any {bare}?",
        "{bare} segmentation",
        "{bare} outline",
        "{bare} mask",
        "{bare} contours",
        "segmentation of {bare}",
        "segmentation mask of {the}",
        "mask of {the}{where}",
        "a mask for {the}",
        "outlines of {the}{where}",
        "boundaries of {the}",
        "draw the boundaries of {the}{where}",
        "draw the outline of {the}",
        "draw a line around {the}",
        "put a contour around {the}",
        "mark the area of {the}",
        "show me {the}{where}",
        "show me where {the} {is}",
        "where {is} {the}{where}?",
        "where {is} {the}?",
        "where can I see {bare}?",
        "which part of the image shows {bare}?",
        "which areas show {bare}?",
        "which regions contain {bare}?",
        "which pixels belong to {the}?",
        "what {is} {the}{where}? {verb} {them}",
        "is there any sign of {bare}{where}?",
        "{is} there any {bare}{where}?",
        "{is} there {bare}{where}? if so, {verb} {them}",
        "{is} there any {bare}? If yes, {verb} {them}",
        "{is} any {bare} visible{where}?",
        "do you see any {bare}{where}?",
        "do you see {bare}? {verb} {them}",
        "does this image contain {bare}?",
        "does this tissue contain any {bare}? {verb} {them}",
        "can you see {bare}{where}?",
        "can {bare} be seen{where}?",
        "I am looking for {bare}",
        "I am looking for {bare}{where}, {verb} {them}",
        "look for {bare}{where}",
        "look for {bare} and {verb} {them}",
        "if there {is} any {bare}, {verb} {them}",
        "if present, {verb} {the}",
        "find {bare} and draw {their} outline",
        "I have to measure {the}, {verb} {them}",
        "we want to count {the}{where}",
        "give me {the}",
        "give me the outline of {the}{where}",
        "get {the}",
        "return a mask of {the}",
        "highlight every region with {bare}",
        "mark every region that shows {bare}",
        "the target is {bare}",
        "target: {bare}",
        "structure to segment: {bare}",
        "only {the}, nothing else",
        "only the {bare}",
        "for a report, {verb} {the}{where}",
        "as a pathologist, {verb} {the}",
    ),
    "val": (
        "kindly {verb} {the}{where}",
        "{verb} {the}{where} for our study",
        "I wonder where {the} {is}{where}",
        "let me see {the}{where}",
        "tell me where {the} {is}",
        "is it possible to {verb} {the}?",
        "what about {bare}{where}?",
        "produce an annotation of {the}",
        "generate polygons around {the}{where}",
        "{bare}, outlined",
        "in which places {is} {bare} found?",
        "check for {bare}{where}",
        "go ahead and {verb} {the}",
        "we need contours of {the}{where}",
        "surround {the} with a line",
        "please indicate {the}{where}",
        "create a mask showing {the}",
        "class: {bare}",
        "{is} {bare} present{where}?",
        "my question is where {the} {is}{where}",
    ),
}
WHERE: dict[Split, tuple[str, ...]] = {
    "train": (
        "in this image", "in the image", "in this picture", "in this tile", "on this slide", "in this slide",
        "in this H&E image", "in the tissue", "here", "in this field", "in this region", "in this section",
        "in this biopsy", "in this histology image", "in the H&E slide",
    ),
    "val": ("in this specimen", "in this view", "in this patch", "in this micrograph", "within this area"),
}
# Questions of a clinic, whole as they are, for concepts that have them.
CLINICAL: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "malignant": (
            "which areas are suspicious for carcinoma?", "which glands are malignant?",
            "is there cancer here? if so outline it", "is this cancer? show me where",
            "where is the cancer?", "where is the tumour?", "where is the tumor located?",
            "where should I look for malignancy?", "which part of this tissue is malignant?",
            "how far does the tumour reach?", "show the extent of the carcinoma",
            "is there any malignancy in this biopsy?", "which glands look cancerous?",
            "does the patient have cancer here? mark the area", "mark what a pathologist would call cancer",
            "which cells are cancer cells?", "rule out carcinoma, mark it if present",
        ),
        "dysplastic": (
            "which glands are dysplastic?", "is there dysplasia in this biopsy?",
            "where is the intraepithelial neoplasia?", "which crypts show precancerous change?",
            "is this an adenoma? outline the glands that make it one",
        ),
        "gland": (
            "where are the crypts of this mucosa?", "which part of the tissue is epithelium?",
            "separate the glands from the stroma", "how many glands are there? outline each",
            "show the gland architecture", "which structures secrete mucus?",
        ),
        "nucleus": (
            "how many cells are there? outline every nucleus", "count the nuclei",
            "how cellular is this tissue? mark the nuclei", "which pixels are nuclei?",
            "separate the nuclei from the cytoplasm", "where is the chromatin?",
        ),
        "necrosis": ("is any of this tissue dead?", "which part of the tumour is necrotic?",
                     "how much necrosis is there? outline it"),
        "stroma": ("which part is stroma and not epithelium?", "separate the stroma from the glands"),
        "lumen": ("where do the glands open?", "which spaces are inside the glands?"),
        "tissue": ("where is the tissue on this slide?", "separate tissue from background"),
        "glass": ("which part of the slide is empty?", "where is there no tissue?"),
    },
    "val": {
        "malignant": ("which areas would worry you for cancer?", "show what has to be treated as malignant",
                      "where does the cancer grow?", "which regions are malignant?"),
        "dysplastic": ("which parts show dysplasia?",),
        "gland": ("which structures are glands?", "what belongs to the glandular epithelium?",
                  "where are the glands located?"),
        "nucleus": ("where is the nucleus of each cell?", "which structures are nuclei?"),
        "necrosis": ("where has the tissue become necrotic?",),
        "stroma": ("what lies between the glands?",),
        "lumen": ("which holes belong to the glands?",),
        "tissue": ("where on the slide is tissue?",),
        "glass": ("where is only background?",),
    },
}
_CLINICAL_RATE = 0.08
_DESCRIPTION_RATE = 0.2
_HELD_BACK_NAME_RATE = 0.5  # in validation
_TYPO_RATE = 0.05

_DETERMINERS = {
    "plural": ("the", "the", "the", "all", "all the", "all of the", "any"),
    "singular": ("the", "each", "every", "a", "each", "every"),
    "mass": ("the", "the", "all", "all the", "any"),
}


def sample_query(concept_key: str, rng: np.random.Generator, split: Split = "train") -> str:
    """One wording of the wish to have `concept_key` outlined.

    Args:
        concept_key: a key of `CONCEPTS`.
        rng: the only source of chance; the same state gives the same query.
        split: "train", or "val" for frames, verbs, endings and half of the names that training never uses.
    """
    clinical = CLINICAL[split].get(concept_key)
    if clinical and rng.random() < _CLINICAL_RATE:
        return _as_typed(_pick(clinical, rng), rng)
    noun = _noun(concept_of(concept_key), rng, split)
    frame = _pick(FRAMES[split], rng)
    verb = _pick(VERBS[split], rng)
    where = " " + _pick(WHERE[split], rng) if rng.random() < 0.4 else ""
    return _as_typed(in_frame(frame, verb, noun, _determined(noun, rng), where), rng)


def plain_query(concept_key: str) -> str:
    """The wording that a model understands best: "outline the glands"."""
    return PLAIN.format(concept_of(concept_key).name)


def in_frame(frame: str, verb: tuple[str, str], noun: Noun, determined: str, where: str = "") -> str:
    """`frame` filled with a verb and its -ing form, a noun, and the same noun with its determiner."""
    many = noun.number == "plural"
    return frame.format(
        verb=verb[0],
        verbing=verb[1],
        the=determined,
        bare=noun.text,
        where=where,
        **{"is": "are" if many else "is"},
        them="them" if many else "it",
        their="their" if many else "its",
    )


def sample_noisy_query(concept_key: str, rng: np.random.Generator) -> str:
    """A training query of `sample_query` or a bare noun, among words that say nothing (see `chatter`)."""
    vocabulary = idle_words()
    if rng.random() < 0.5:
        most, text = 3, sample_query(concept_key, rng)
    else:
        noun = _noun(concept_of(concept_key), rng, "train")
        most, text = 6, _determined(noun, rng) if rng.random() < 0.6 else noun.text
    text = f"{chatter(vocabulary, rng, most)} {text} {chatter(vocabulary, rng, most)}".strip()
    return _as_typed(text, rng)


@cache
def idle_words() -> tuple[str, ...]:
    """Words that surround a noisy query: none of a concept's name, none that validation keeps back."""
    named = (
        noun.text
        for concept in CONCEPTS.values()
        for noun in nouns(concept, "val")
    )
    return words(frozenset(_words(*named)) | (_frame_words("val") - _frame_words("train")))


@cache
def training_words() -> str:
    """The words of all training queries, with spaces between them (see `wsiseg.model.spelling`)."""
    clinical = (text for texts in CLINICAL["train"].values() for text in texts)
    known = {*_frame_words("train"), *_words(*clinical), *_noun_words(CONCEPTS), *idle_words()}
    return _in_order(known)


def with_words_of(words: str, concepts: Iterable[str]) -> str:
    """`words` of `training_words` and those for these concepts, whoever has named them."""
    return _in_order({*words.split(), *_noun_words(concepts)})


def _noun_words(concepts: Iterable[str]) -> list[str]:
    return _words(*(noun.text for key in concepts for noun in nouns(concept_of(key), "train")))


def _in_order(known: set[str]) -> str:
    return " ".join(sorted(word for word in known if len(word) > 3))  # a shorter one is no slip's meaning


def _frame_words(split: Split) -> frozenset[str]:
    return frozenset(_words(*FRAMES[split], *WHERE[split], *(text for pair in VERBS[split] for text in pair)))


def _words(*texts: str) -> list[str]:
    return re.findall(r"[a-z]+", " ".join(texts).lower())


def nouns(concept: Concept, split: Split) -> tuple[Noun, ...]:
    """All noun phrases that queries of `split` may draw for `concept`."""
    own = concept.names + concept.descriptions
    return own if split == "train" else own + concept.val_names + concept.val_descriptions


def _noun(concept: Concept, rng: np.random.Generator, split: Split) -> Noun:
    if concept is NONSENSE:
        return Noun(" ".join(no_word(rng) for _ in range(int(rng.integers(1, 3)))) + "s", "plural")
    held_back = split == "val" and bool(concept.val_names) and rng.random() < _HELD_BACK_NAME_RATE
    names = concept.val_names if held_back else concept.names
    descriptions = concept.val_descriptions if held_back else concept.descriptions
    if descriptions and rng.random() < _DESCRIPTION_RATE:
        return _pick(descriptions, rng)
    # people use the plain word most: the first names are drawn more often
    weights = 1.0 / (np.arange(len(names)) + 4.0)
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _determined(noun: Noun, rng: np.random.Generator) -> str:
    determiner = _pick(_DETERMINERS[noun.number], rng)
    first = noun.text.split()[0].lower()
    if first in {"everything", "all", "parts", "individual", "single"} or noun.text.startswith("tissue that"):
        return noun.text if first in {"everything", "all"} else f"the {noun.text}"
    if determiner == "a" and first[0] in "aeiou":
        determiner = "an"
    return f"{determiner} {noun.text}"


def _as_typed(text: str, rng: np.random.Generator) -> str:
    """Case, punctuation and slips of the pen as people have them."""
    if rng.random() < _TYPO_RATE:
        text = _with_typo(text, rng)
    chance = rng.random()
    if chance < 0.5:
        text = text[0].upper() + text[1:]
    elif chance < 0.55:
        text = text.upper()
    elif chance < 0.58:
        text = text.title()
    elif chance < 0.8:
        text = text.lower()
    if text[-1] == "?" and rng.random() < 0.3:
        text = text[:-1]
    elif text[-1] not in "?." and rng.random() < 0.3:
        text += "."
    return text


def _with_typo(text: str, rng: np.random.Generator) -> str:
    words = list(re.finditer(r"[A-Za-z]{5,}", text))
    if not words:
        return text
    word = words[int(rng.integers(len(words)))]
    at = word.start() + int(rng.integers(1, len(word.group()) - 1))
    kind = int(rng.integers(3))
    if kind == 0:  # one letter left out
        return text[:at] + text[at + 1 :]
    if kind == 1:  # one letter twice
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]  # two letters swapped


def _pick(items: tuple[T, ...], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]
