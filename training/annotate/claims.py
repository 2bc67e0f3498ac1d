"""What a sentence claims of a structure: how many, how large, how much of the area, where, of what shape and tone.

Plain regular expressions over English as pathologists and language models write it. A claim belongs to what was
named last before it (to what follows, for adjectives and counts), so that "about 10 µm" behind "nuclei" is not held
against the glands. What is not understood is no claim; a number that no claim took is kept apart, as such.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from wsiseg.training.data.concepts import CONCEPTS, concept_of

Subject = Literal["target", "tissue", "dark", "other"]
Kind = Literal["count", "parts", "size_um", "share", "share_of_tissue", "place", "shape", "tone", "number"]


@dataclass(frozen=True)
class Claim:
    """`low` to `high` for numbers (equal if one was said), `word` for the rest; `said` is the text of it."""

    kind: Kind
    about: Subject
    said: str
    low: float = 0.0
    high: float = math.inf
    word: str = ""


@dataclass(frozen=True)
class Reading:
    """A sentence understood. named, denied: the structure is spoken of; is said not to be there."""

    claims: tuple[Claim, ...]
    named: bool
    denied: bool
    topic: Subject | None  # what a following "they" means


@dataclass(frozen=True)
class _Mention:
    about: Subject
    start: int
    end: int
    exact: bool = True  # not "malignant glands" for glands: that there are none of these denies no gland


_UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_WORDS = {word: n for n, word in enumerate((*_UNITS, *_TEENS), 1)} | {"hundred": 100}
_WORDS |= {ten: 10 * n for n, ten in enumerate(_TENS, 2)}
_WORDS |= {f"{ten}-{unit}": 10 * n + u for n, ten in enumerate(_TENS, 2) for u, unit in enumerate(_UNITS, 1)}
_VAGUE = {
    "a single": (1, 1), "single": (1, 1), "solitary": (1, 1), "a pair of": (2, 2), "both": (2, 2),
    "a couple of": (2, 3), "a few": (2, 6), "few": (1, 6), "several": (3, math.inf), "multiple": (2, math.inf),
    "many": (5, math.inf), "numerous": (5, math.inf), "a dozen": (12, 12), "dozens of": (20, math.inf),
}  # fmt: skip
_SHARES = {
    "almost all": (0.9, 1), "nearly all": (0.9, 1), "virtually all": (0.9, 1), "almost the entire": (0.9, 1),
    "the whole": (0.9, 1), "the entire": (0.9, 1), "most": (0.5, 1), "the majority": (0.5, 1), "half": (0.5, 0.5),
    "a third": (1 / 3, 1 / 3), "one third": (1 / 3, 1 / 3), "two thirds": (2 / 3, 2 / 3), "a quarter": (0.25, 0.25),
    "one quarter": (0.25, 0.25), "three quarters": (0.75, 0.75), "a small part": (0, 0.25),
    "a small fraction": (0, 0.25), "a small portion": (0, 0.25), "a large part": (0.4, 1), "a large portion": (0.4, 1),
}  # fmt: skip
_OTHERS = (
    "cell", "nuclei", "nucleus", "nucleoli", "nucleolus", "lumen", "lumina", "stroma", "epithelium", "cytoplasm",
    "lymphocyte", "vessel", "capillary", "capillaries", "fibre", "fiber", "collagen", "mucin", "layer", "membrane",
    "chromatin", "septa", "septum", "fibroblast", "infiltrate", "papillae", "vacuole", "space", "background",
)  # fmt: skip
_DARK = ("dark spot", "dark part", "dark area", "dark region")
_PLACES = {
    "upper left": "upper left", "top left": "upper left", "left upper": "upper left",
    "upper right": "upper right", "top right": "upper right", "right upper": "upper right",
    "lower left": "lower left", "bottom left": "lower left", "left lower": "lower left",
    "lower right": "lower right", "bottom right": "lower right", "right lower": "lower right",
    "upper": "top", "top": "top", "lower": "bottom", "bottom": "bottom", "left": "left", "right": "right",
    "centre": "centre", "center": "centre", "middle": "centre", "central": "centre",
}  # fmt: skip
_SHAPES = {
    "round": "round", "rounded": "round", "circular": "round", "spherical": "round", "oval": "oval", "ovoid": "oval",
    "elliptical": "oval", "oblong": "oval", "elongated": "elongated", "elongate": "elongated", "slender": "elongated",
    "fusiform": "elongated", "spindle-shaped": "elongated",
}  # fmt: skip


def _any_of(words: Iterable[str]) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


_TILE = r"(?:tile|field|image|picture|view|area|frame|patch|fov|section|it|whole)"
_NUMBER = rf"(?:\d+(?:[.,]\d+)?|{_any_of(_WORDS)})"
_MORE = r"more than|over|at least|above|no fewer than|>|≥"
_LESS = r"less than|fewer than|under|below|up to|at most|no more than|<|≤"
_RANGED = (
    rf"(?:(?P<more>{_MORE})\s*|(?P<less>{_LESS})\s*|(?:about|around|roughly|approximately|some|nearly|between|~|≈)\s*)?"
    rf"(?P<first>{_NUMBER})(?:\s*(?:-|–|to|and|or|x|×|by)\s*(?P<last>{_NUMBER}))?"
)
_WHOLE = r"\s+of\s+(?:the\s+|its\s+|this\s+|that\s+)?(?:whole\s+|total\s+|entire\s+)?(?P<whole>[a-zµ]+)"
_PERCENT = re.compile(rf"(?<![\w.-]){_RANGED}\s*(?:%|percent|per cent)(?:{_WHOLE})?")
_WORDED_SHARE = re.compile(rf"\b(?P<word>{_any_of(_SHARES)}){_WHOLE}")
_SIZE = re.compile(rf"(?<![\w.-]){_RANGED}\s*(?P<unit>µm|um|microns?|micromet(?:er|re)s?|mm|nm)\b")
_PARTS = re.compile(rf"\bin\s+{_RANGED}\s+parts?\b")
_BEFORE_NOUN = r"\s+(?:(?!of\b|the\b|and\b|in\b)[a-z-]+,?\s+){0,3}$"
_COUNT = re.compile(rf"(?<![\w.-]){_RANGED}{_BEFORE_NOUN}")
_VAGUE_COUNT = re.compile(rf"\b(?P<word>{_any_of(_VAGUE)}){_BEFORE_NOUN}")
_SPREAD = re.compile(rf"\b(?:all over|throughout|across)\s+(?:the\s+)?(?:(?:whole|entire)\s+)?{_TILE}\b|\beverywhere\b")
_PLACE = re.compile(
    rf"\b(?:in|at|on|near|towards?|along|from|of|occup\w+|fill\w*)\s+(?:the\s+|its\s+)(?P<word>{_any_of(_PLACES)})"
    r"(?:\s+(?:part|half|third|corner|side|edge|quadrant|portion|region|area|border|margin|centre|center))?\b"
    r"(?!\s+of\s+(?!(?:the|this)\s+(?:tile|field|image|picture|view|area|frame|patch|section)))"
)
_SHAPE = re.compile(rf"(?<!not )(?<!rarely )(?<!\w)(?P<word>{_any_of(_SHAPES)})(?!\w)")
_TONE = re.compile(
    r"\b(?:(?P<dark>darker)|(?P<pale>paler|lighter|brighter)|as (?:dark|pale))\s+(?:\w+\s+)?(?:than|as)\b"
)
_PRONOUN = re.compile(r"\b(?:they|these|those|them|it)\b")
_DENIED_BEFORE = re.compile(
    r"\b(?:no|without|lacks?|lacking|absence of|absent|devoid of|free of|neither|nor)\s+"
    r"(?:(?:any|such|visible|discernible|recogni[sz]able|identifiable|clear|definite|obvious)\s+)*$"
)
_DENIED_AFTER = re.compile(
    r"^\s+(?:is|are|was|were|can|could)\s+"
    r"(?:absent|missing|lacking|not\s+(?:be\s+)?(?:seen|found|present|visible|identified|there))"
)
_SOME_OF = re.compile(r"\b(?:largest|smallest|larger|smaller|some|other|another|each|every|occasional|one of the)\s+$")
_DIGITS = re.compile(r"\d+(?:[.,]\d+)?")


def read_sentence(text: str, concept_key: str, topic: Subject | None = None) -> Reading:
    """Understand a sentence about the structure `concept_key`; `topic` is that of the sentence before.

    >>> reading = read_sentence("Three glands are seen on the left, about 45 µm wide.", "gland")
    >>> [(claim.kind, claim.about, claim.low or claim.word) for claim in reading.claims]
    [('size_um', 'target', 45.0), ('count', 'target', 3.0), ('place', 'target', 'left')]
    """
    text = text.lower().replace("μ", "µ").replace("‑", "-").replace("-left", " left").replace("-right", " right")
    mentions = _mentions(text, concept_key, topic)
    claims: list[Claim] = []
    taken: list[tuple[int, int]] = []

    def add(match: re.Match[str], kind: Kind, about: Subject, **values: float | str) -> None:
        claims.append(Claim(kind, about, match.group().strip(), **values))  # type: ignore[arg-type]
        taken.append(match.span())

    for match in _PERCENT.finditer(text):
        low, high = _range(match)
        kind, about = _share_of(match["whole"], _subject(match, mentions, topic))
        add(match, kind, about, low=low / 100, high=high / 100)
    for match in _WORDED_SHARE.finditer(text):
        low, high = _SHARES[match["word"]]
        kind, about = _share_of(match["whole"], _subject(match, mentions, topic))
        if about != "other":
            add(match, kind, about, low=low, high=high)
    for match in _SIZE.finditer(text):
        low, high = _range(match)
        unit = {"mm": 1000.0, "nm": 0.001}.get(match["unit"], 1.0)
        add(match, "size_um", _subject(match, mentions, topic), low=low * unit, high=high * unit)
    for match in _PARTS.finditer(text):
        low, high = _range(match)
        add(match, "parts", _subject(match, mentions, topic), low=low, high=high)
    for mention in mentions:
        before = text[: mention.start]
        counted = _COUNT.search(before)
        if counted and not _overlaps(counted.span(), taken):
            low, high = _range(counted)
            add(counted, "count", mention.about, low=low, high=high)
        elif vague := _VAGUE_COUNT.search(before):
            low, high = _VAGUE[vague["word"]]
            add(vague, "count", mention.about, low=low, high=high)
    for match in _SPREAD.finditer(text):
        add(match, "place", _subject(match, mentions, topic), word="everywhere")
    for match in _PLACE.finditer(text):
        add(match, "place", _subject(match, mentions, topic), word=_PLACES[match["word"]])
    for match in _SHAPE.finditer(text):
        add(match, "shape", _described(match, text, mentions, topic), word=_SHAPES[match["word"]])
    for match in _TONE.finditer(text):
        word = "darker" if match["dark"] else "paler" if match["pale"] else "as dark"
        add(match, "tone", _subject(match, mentions, topic), word=word)
    for match in _DIGITS.finditer(text):
        if not _overlaps(match.span(), taken):
            add(match, "number", "other", low=float(match.group().replace(",", ".")))
    of_target = [mention for mention in mentions if mention.about == "target"]
    around = [(text[: mention.start], text[mention.end :]) for mention in of_target if mention.exact]
    denied = any(_DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after) for before, after in around)
    return Reading(tuple(claims), bool(of_target), denied, mentions[0].about if mentions else topic)


def _mentions(text: str, concept_key: str, topic: Subject | None) -> list[_Mention]:
    """What the text names, in order, and its pronouns, which mean the `topic`."""
    pattern, subjects, own = _vocabulary(concept_key)
    found = []
    for match in pattern.finditer(text):
        stem = next(s for end in ("", "s", "es") if (s := match.group().removesuffix(end)) in subjects)
        # What is said of the largest gland is not said of the glands.
        about = "other" if _SOME_OF.search(text[: match.start()]) else subjects[stem]
        found.append(_Mention(about, *match.span(), exact=stem in own))
    if topic is not None:
        found += [_Mention(topic, *match.span()) for match in _PRONOUN.finditer(text)]
    return sorted(found, key=lambda mention: mention.start)


@lru_cache(maxsize=256)
def _vocabulary(concept_key: str) -> tuple[re.Pattern[str], dict[str, Subject], set[str]]:
    """A pattern of all names of structures, what each (without its plural s) is to `concept_key`, and its own names."""
    subjects: dict[str, Subject] = {_stem(word): "other" for word in _OTHERS}
    subjects |= {_stem(word): "dark" for word in _DARK}
    for concept in CONCEPTS.values():
        if not concept.thing:
            subjects |= {_stem(noun.text): "other" for noun in concept.names + concept.val_names}
    subjects["tissue"] = "tissue"
    target = concept_of(concept_key)
    own = {_stem(noun.text) for noun in target.names + target.val_names} | {_stem(target.name)}
    for stem in subjects:  # "malignant glands" are glands
        if any(stem.endswith(f" {name}") for name in own):
            subjects[stem] = "target"
    subjects |= dict.fromkeys(own, "target")
    return re.compile(rf"(?<![\w-]){_any_of(subjects)}(?:s|es)?(?![\w])"), subjects, own


def _stem(noun: str) -> str:
    noun = noun.lower()
    return noun[:-1] if noun.endswith("s") and not noun.endswith(("ss", "us", "is")) else noun


def _subject(match: re.Match[str], mentions: list[_Mention], topic: Subject | None) -> Subject:
    """What a claim is about: what was named last before it, else first behind it, else the topic."""
    before = [mention for mention in mentions if mention.end <= match.start()]
    after = [mention for mention in mentions if mention.start >= match.end()]
    return before[-1].about if before else after[0].about if after else topic or "other"


def _described(match: re.Match[str], text: str, mentions: list[_Mention], topic: Subject | None) -> Subject:
    """What an adjective is about: the noun that follows it, else as `_subject`."""
    for mention in mentions:
        between = text[match.end() : mention.start]
        if mention.start >= match.end() and re.fullmatch(r"(?:,?\s+[a-z-]+){0,2}\s+", between):
            return mention.about
    return _subject(match, mentions, topic)


def _share_of(whole: str | None, about: Subject) -> tuple[Kind, Subject]:
    if whole is None or re.fullmatch(_TILE, whole):
        return "share", about
    return ("share_of_tissue", about) if whole == "tissue" else ("share", "other")


def _range(match: re.Match[str]) -> tuple[float, float]:
    first = _value(match["first"])
    if match["more"]:
        return first, math.inf
    if match["less"]:
        return 0.0, first
    last = _value(match["last"]) if match["last"] else first
    return min(first, last), max(first, last)


def _value(number: str) -> float:
    return float(_WORDS[number]) if number in _WORDS else float(number.replace(",", "."))


def _overlaps(span: tuple[int, int], taken: list[tuple[int, int]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in taken)
