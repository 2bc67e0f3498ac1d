"""What a concept is made of: names, numbers, and the places that rule it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Number = Literal["plural", "singular", "mass"]


@dataclass(frozen=True)
class Noun:
    """A noun phrase without article, and its grammatical number."""

    text: str
    number: Number


def plural(*texts: str) -> tuple[Noun, ...]:
    return tuple(Noun(text, "plural") for text in texts)


def singular(*texts: str) -> tuple[Noun, ...]:
    return tuple(Noun(text, "singular") for text in texts)


def mass(*texts: str) -> tuple[Noun, ...]:
    return tuple(Noun(text, "mass") for text in texts)


@dataclass(frozen=True)
class Concept:
    """One thing that can be asked for.

    `absent_in` are the places that rule it out. `exhaustive`: an empty layer (or crop of a layer) of this
    concept means that it is not there; where False, the layer is a safe part of the truth only, and an empty
    crop says nothing.
    """

    key: str
    name: str  # as the reasoning writes it: "glands", "necrosis"
    plural: bool
    qupath_class: str
    names: tuple[Noun, ...]  # used in training queries
    descriptions: tuple[Noun, ...] = ()
    val_names: tuple[Noun, ...] = ()  # never used in training queries
    val_descriptions: tuple[Noun, ...] = ()
    also: tuple[str, ...] = ()  # read as `name` (`wsiseg.model.plain`), never drawn for a query
    has_masks: bool = False
    exhaustive: bool = True
    absent_in: frozenset[str] = frozenset()
    held_back: bool = False  # absent-only concepts that no training query names
    thing: bool = False  # not of a body at all
