"""Reasoning chains that `wsiseg data annotate` wrote: `chains.jsonl` in the folder of their store, one a line.

A chain belongs to an image and a structure, whatever the wording of the question. Every sentence that a model wrote is
kept with its verdict; `text` is what training reads, made of those that stood. Where nothing stood, `text` is empty and
the store's own chain stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from wsiseg.errors import DataError
from wsiseg.files import atomic_write

CHAINS = "chains.jsonl"
Key = tuple[str, str]  # name of the image, concept
Verdict = Literal["holds", "unmeasured", "unfounded", "contradicted", "drawing"]  # see annotate/verdict.py
KEPT: tuple[Verdict, ...] = ("holds", "unmeasured")


@dataclass(frozen=True)
class Statement:
    """A sentence and what became of it; `because` says what was measured instead."""

    text: str
    verdict: Verdict
    because: str = ""


@dataclass(frozen=True)
class Chain:
    """The chain of one image and structure, and where it comes from.

    describer, reasoner: names of the models, or "template". prompts: hash of what they were told. made: time of the
    last answer, UTC, ISO 8601; empty where no model was asked. corrected: the reasoner was sent back once.
    """

    image: str
    concept: str
    present: bool
    text: str
    closing: str
    statements: tuple[Statement, ...]
    describer: str
    reasoner: str
    endpoint: str = ""
    prompts: str = ""
    made: str = ""
    corrected: bool = False

    @property
    def key(self) -> Key:
        return self.image, self.concept


def read_chains(store: str | os.PathLike[str]) -> dict[Key, Chain]:
    """The chains in the folder of a store; none where nobody annotated it.

    Raises:
        DataError: a line is no chain; it is named.
    """
    path = Path(store) / CHAINS
    if not path.is_file():
        return {}
    chains = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            row["statements"] = tuple(Statement(**statement) for statement in row["statements"])
            chain = Chain(**row)
            chains[chain.key] = chain
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}, is no chain ({error}); remove it and annotate again") from error
    return chains


def write_chains(store: str | os.PathLike[str], chains: Iterable[Chain]) -> None:
    """Put these chains in place of those in the folder of a store. Raises OutputError: it cannot be written."""
    with atomic_write(Path(store) / CHAINS) as file:
        for chain in chains:
            file.write(json.dumps(asdict(chain), ensure_ascii=False).encode() + b"\n")
