"""Slips of the pen: a word that a model does not know is read as the known one that it nearly is."""

from __future__ import annotations

import re
from functools import lru_cache

from wsiseg.model.asking import ASKING

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORD = re.compile(r"\b[a-z]{5,}\b")  # of shorter ones too many lie a letter apart
_ANOTHER_LETTER_FROM = 8  # "basal" is no slip for "nasal"
# Common words that lie a letter from one of training's, and would be read as "back", "with", "there".
_NO_SLIPS = """
beach black boost chase clause donor facets filed identity intro latter least plain planes plant plants rejection roots
rules seven spite strain stray suite three throughput title trail trailing trough waist width world
"""
_REAL = ASKING | frozenset(_NO_SLIPS.split())


def corrected(text: str, words: str) -> str:
    """`text`, in lower case, without its slips of the pen.

    A word of five letters or more that is none of `words` (with spaces between them) becomes the one of these in which
    two letters stand the other way round; else the one from which it differs by a letter that was left out, added or,
    in longer words, mistaken. It stays where there is none, or more than one, or where the letter is its first, or its
    last, unless that is there twice: "surrounds" is no slip for "surround".

    >>> corrected("tell me where all gladnular units are", "where gland glandular units")
    'tell me where all glandular units are'
    """
    known = _split(words)
    return _WORD.sub(lambda found: _known_word(found[0], known), text) if known else text


def _known_word(word: str, known: frozenset[str]) -> str:
    if word in known or word in _REAL:
        return word
    cuts = [(word[:i], word[i:]) for i in range(1, len(word))]  # "acellular" is no slip for "cellular"
    swapped = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    near = {a + b[1:] for a, b in cuts if len(b) > 1} | {a + letter + b for a, b in cuts for letter in _LETTERS}
    if len(word) >= _ANOTHER_LETTER_FROM:
        near |= {a + letter + b[1:] for a, b in cuts if len(b) > 1 for letter in _LETTERS}
    meant = (swapped & known) or (near & known)
    return meant.pop() if len(meant) == 1 else word


@lru_cache(16)
def _split(words: str) -> frozenset[str]:
    return frozenset(words.split())
