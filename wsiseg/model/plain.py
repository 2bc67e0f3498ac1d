"""A request in many words is read as the plain one that a small model understands best."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

from wsiseg.model.asking import ASKING, BEFORE_PLACES, PLACES

PLAIN = "outline the {}"
_ALL = frozenset(("a", "an", "the", "all", "any", "each", "every"))
_PHRASES = re.compile(  # that only ask, though each word of them may say more
    r"(?:\bwould|['’]d) like\b|['’](?:d|ll|m|re|s|ve)\b|\bevery single\b|\bh ?& ?e\b|\bat \d+ ?x\b|\bborders? of\b"
    r"|\bhow much\b|\b(?:so|very) much\b(?=\W*$)"
    r"|\b(?:circles?|contours?|draw(?: (?:a )?(?:line|ring))?|outlines?|polygons?) a?round\b"
)
_PLACE = re.compile(
    rf"\b(?:across|at|from|in|of|on|over|throughout|within) (?:(?:{'|'.join(sorted(BEFORE_PLACES | _ALL))}"
    rf"|my|our|that|these|this|those|your) )*(?:{'|'.join(sorted(PLACES, reverse=True))})\b"
)
_REASON = re.compile(r"\b(?:because|in order to|so (?:i|that|they|we)|for (?:my|our))\b[^,.;:\n]*[.!?]?\s*$")
_NARROWS = frozenset(
    (
        "and", "but", "don", "avoid", "except", "exclude", "excluded", "excluding", "ignore", "ignoring", "include",
        "included", "isn", "just", "leave", "leaving", "left", "no", "not", "omit", "omitting", "ones", "only",
        "preferably", "skip", "skipping", "than", "under", "without",
    )
)  # fmt: skip
# Read as words alone, "(-)" and "-stroma" would ask for what they leave out, and "at the border of" for all of it.
_NO_WORDS = re.compile(
    r"[+≠~∅¬]|!(?=\w)|\(\s*[-−–]\s*\)|(?:^|\s)[-−–](?=\w)|\b(?:along|at|by|in|near|on) (?:the )?borders? of\b"
)
# What is in a structure is another one; after "only" a harmless word narrows; what is masked out is not to be outlined.
_SAYS_MORE = re.compile(
    r"\b(?:everything|markings?|objects?|sections?|structures?|stuff|what)(?: \w+)? (?:in|on)\b"
    r"|\bcells? boundar|\bwhole cells?\b|\b(?:cut|mask|take)s? .*\bout\b"
    r"|\b(?:just|only)\b.*\b(?:clearly|entire|highlighted|marked|one|see|that|this|whole)\b"
)

_POINTS = frozenset(("one", "that", "these", "this", "those"))  # before a name: to some of them
_SPELLINGS = (("tumour", "tumor"), ("lumens", "lumina"))

Known = Mapping[str, tuple[str, str]]  # of a name, in lower case: the structure, and what to ask for


def asked_for(text: str, known: Known) -> tuple[str, str] | None:
    """The structure that `text`, in lower case, asks for, and the name to ask for it by; None if it may say more.

    known: see `known_names`.

    What remains of a request without articles, words that only ask (`wsiseg.model.asking`), the place ("in this slide")
    and a reason ("so that I can count them") must be names of one structure, of which the first is asked for. A word of
    size, grade or negation, a second structure or an unknown word leaves the request as it is, and so does a phrase in
    which a harmless word narrows ("only this one").

    >>> known = known_names({"glands": {"crypts": "crypts"}, "nuclei": {"cells": "nuclei"}})
    >>> asked_for("could you please circle every crypt for me", known), asked_for("count cells", known)
    (('glands', 'crypts'), ('nuclei', 'nuclei'))
    >>> asked_for("large crypts", known)
    """
    asked = _without_phrases(_without_reason(text, known))
    elsewhere = _PLACE.sub(" ", asked)
    if _NO_WORDS.search(text) or _SAYS_MORE.search(elsewhere):
        return None
    # "Tissue" is what is asked for in some requests and the place in others.
    return _named(asked.split(), known) or _named(elsewhere.split(), known)


def passes_over(text: str, known: Known) -> bool:
    """Whether `asked_for`, of a text that it understands, leaves out what may say more after all.

    That is a word of the reason which only asks for nothing ("so that I can count mitoses"), and "these" before a name.
    """
    asked = _PLACE.sub(" ", _without_phrases(text))
    parts = [*_parts(asked.split(), known), ""]
    unknown = any(isinstance(part, str) and part not in ASKING for part in parts[:-1])
    return unknown or any(a in _POINTS and not isinstance(b, str) for a, b in pairwise(parts))


def known_names(names: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    """By each name without its articles, in each spelling, singular and plural where a letter makes it, what it means.

    names: of each structure, what it may be called, and by which name of training to ask for it then. Of names that are
    the same the first counts.
    """
    meant = [(name, (structure, asked)) for structure, row in names.items() for name, asked in row.items()]
    known = {" ".join(_words(name.casefold())): what for name, what in reversed(meant)}
    known = {form: what for text, what in known.items() for form in (text.removesuffix("s"), f"{text}s")} | known
    for one, other in (*_SPELLINGS, *(pair[::-1] for pair in _SPELLINGS)):
        known = {re.sub(rf"\b{one}(?=s?\b)", other, text): what for text, what in known.items()} | known
    return known


def _without_phrases(text: str) -> str:
    """The words of `text` but for articles and phrases that only ask."""
    return " ".join(_words(_PHRASES.sub(" ", text)))


def _without_reason(text: str, known: Known) -> str:
    """`text` without a reason at its end that neither names nor narrows anything."""
    if not (reason := _REASON.search(text)):
        return text
    said = list(_parts(_words(reason[0]), known))
    return text if any(part in _NARROWS or not isinstance(part, str) for part in said) else text[: reason.start()]


def _named(words: list[str], known: Known) -> tuple[str, str] | None:
    """What the first name among the words stands for; None if they name no structure, or several, or may say more."""
    parts = list(_parts(words, known))
    if any(isinstance(part, str) and part not in ASKING for part in parts):
        return None
    named = [part for part in parts if not isinstance(part, str)]
    return named[0] if len({structure for structure, _ in named}) == 1 else None


def _parts(words: list[str], known: Known) -> Iterator[str | tuple[str, str]]:
    """The words; of those that are a name, what it stands for."""
    longest = max((name.count(" ") for name in known), default=0) + 1  # in words
    at = 0
    while at < len(words):
        ends = range(min(at + longest, len(words)), at, -1)
        end = next((end for end in ends if " ".join(words[at:end]) in known), None)
        yield known[" ".join(words[at:end])] if end else words[at]
        at = end or at + 1


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word not in _ALL]
