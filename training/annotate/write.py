"""One chain: describe, reason, check; send back once what is wrong; keep what stands."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from wsiseg.training.annotate.prompts import (
    DESCRIBER,
    MOST_SENTENCES,
    PROMPTS,
    REASONER,
    complaint,
    describing,
    reasoning,
    sentences_of,
)
from wsiseg.training.annotate.replies import Reply
from wsiseg.training.annotate.request import Picture, Request
from wsiseg.training.annotate.verdict import Measured, judge, measure, suffices
from wsiseg.training.data.annotate import describe, refuse
from wsiseg.training.data.chains import KEPT, Chain, Statement
from wsiseg.training.data.chance import rng_of
from wsiseg.training.data.store import Quadruplet, Sample

TEMPLATE = "template"
Ask = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True)
class Writers:
    """The models that describe and reason, each a name at `endpoint`, or `TEMPLATE`."""

    describer: str = TEMPLATE
    reasoner: str = TEMPLATE
    endpoint: str = ""


async def write_chain(sample: Sample, question: Quadruplet, writers: Writers, ask: Ask) -> Chain:
    """The chain of the structure that `question` asks for; `text` is empty where too little of it stood.

    Of what is absent there is no outline to draw: the describer sees the bare image.
    """
    concept = question.concept
    mask = sample.layers[concept] if question.present else None
    measured = measure(concept, sample.image, mask, sample.mpp)
    *facts, closing = _template(sample, concept, mask)
    replies: list[Reply] = []

    async def answer(request: Request) -> str:
        replies.append(await ask(request))
        return replies[-1].text

    said = facts
    if writers.describer != TEMPLATE:
        asked = describing(concept, question.present, sample.mpp)
        picture = Picture(sample.image, mask)
        description = sentences_of(await answer(Request(writers.describer, DESCRIBER, (asked,), picture)))
        room = MOST_SENTENCES - len(facts)
        said = [facts[0], *description[:room], *facts[1:]]  # what the field shows, what it looks like, the figures
    else:
        description = facts
    corrected = False
    if writers.reasoner == TEMPLATE:
        statements = judge(said, measured)
    else:
        first = reasoning(concept, question.present, description, facts)
        written = await answer(Request(writers.reasoner, REASONER, (first,)))
        statements = judge(sentences_of(written), measured)
        if any(statement.verdict not in KEPT for statement in statements):
            turns = (first, written, complaint(statements))
            again = judge(sentences_of(await answer(Request(writers.reasoner, REASONER, turns))), measured)
            if suffices(again, question.present) or not suffices(statements, question.present):
                statements, corrected = again, True
    return Chain(
        image=sample.name,
        concept=concept,
        present=question.present,
        text=chain_text(statements, closing, measured),
        closing=closing,
        statements=tuple(statements),
        describer=writers.describer,
        reasoner=writers.reasoner,
        endpoint=writers.endpoint,
        prompts=PROMPTS if replies else "",
        made=max((reply.made for reply in replies), default=""),
        corrected=corrected,
    )


def chain_text(statements: list[Statement], closing: str, measured: Measured) -> str:
    """What stood and the closing, or "" where that is too little to be a chain."""
    if not suffices(statements, measured.found is not None):
        return ""
    return " ".join([*(statement.text for statement in statements if statement.verdict in KEPT), closing])


def chain_in_view(chain: Chain, measured: Measured) -> str:
    """`chain` as it holds of a view of its image: sentences that the view's own measurements refute are left out."""
    kept = [statement.text for statement in chain.statements if statement.verdict in KEPT]
    return chain_text(judge(kept, measured), chain.closing, measured) if chain.text else ""


def _template(sample: Sample, concept: str, mask: np.ndarray | None) -> list[str]:
    """The template's sentences, always in the same words for the same image and structure."""
    rng = rng_of(f"{sample.name}\0{concept}")
    if mask is None:
        return _sentences(refuse(sample.image, concept, rng))
    return _sentences(describe(sample.image, mask, concept, sample.mpp, rng))


def _sentences(text: str) -> list[str]:
    """A full stop within a name ends none: what follows it there is lower case, and sentences begin with a capital."""
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text)
