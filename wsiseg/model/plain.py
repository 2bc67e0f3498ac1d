"""A request in many words is read as the plain one that a small model understands best."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wsiseg.model.asking import ASKING, BEFORE_PLACES, PLACES

PLAIN = "outline the {}"
_ALL = frozenset(("a", "an", "the", "all", "any", "each", "every"))
_PHRASES = re.compile(  # that only ask, though each word of them may say more
    r"(?:\bwould|['’]d) like\b|['’](?:d|ll|m|re|s|ve)\b|\bevery single\b|\b(?:circle|contours?|draw|line) around\b"
)
_PLACE = re.compile(
    rf"\b(?:across|at|from|in|of|on|throughout|within) (?:(?:{'|'.join(sorted(BEFORE_PLACES | _ALL))}"
    rf"|my|our|that|these|this|those|your) )*(?:{'|'.join(sorted(PLACES, reverse=True))})\b"
)


def plainly(text: str, known: Mapping[str, str]) -> str:
    """The plain request for what `text`, in lower case, asks for; "" where it may say more than that.

    known: see `known_names`.

    What remains of a request without articles, words that only ask (`wsiseg.model.asking`) and the place ("in this
    slide") must be one name. A word of size, grade or negation, a second structure or an unknown word leaves the
    request as it is.

    >>> known = known_names({"crypts": "crypts", "cells": "nuclei"})
    >>> plainly("could you please circle every crypt for me", known), plainly("count cells", known)
    ('outline the crypts', 'outline the nuclei')
    >>> plainly("large crypts", known)
    ''
    """
    asked = " ".join(_words(_PHRASES.sub(" ", text)))
    # "Tissue" is what is asked for in some requests and the place in others.
    name = _only_name(asked.split(), known) or _only_name(_PLACE.sub(" ", asked).split(), known)
    return PLAIN.format(name) if name else ""


def known_names(names: dict[str, str]) -> dict[str, str]:
    """What to ask for by each of `names`, without articles, and by the singular or plural that a letter makes of it.

    Of names that are then the same the first counts.
    """
    known = {" ".join(_words(name.casefold())): names[name] for name in reversed(names)}
    return {form: name for text, name in known.items() for form in (text.removesuffix("s"), f"{text}s")} | known


def _only_name(words: list[str], known: Mapping[str, str]) -> str:
    """The only name among the words; "" if there is none, or another, or a word that may matter."""
    longest = max((name.count(" ") for name in known), default=0) + 1  # in words
    found, at = set(), 0
    while at < len(words):
        for end in range(min(at + longest, len(words)), at, -1):
            if name := known.get(" ".join(words[at:end])):
                found.add(name)
                at = end
                break
        else:
            if words[at] not in ASKING:
                return ""
            at += 1
    return found.pop() if len(found) == 1 else ""


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word not in _ALL]
