"""What the describer and the reasoner are told, and how their answers become sentences."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from wsiseg.qupath import clean_text
from wsiseg.training.data.chains import KEPT, Statement
from wsiseg.training.data.concepts import concept_of

MOST_SENTENCES = 8
_LONGEST_REPLY = 8000  # characters that are looked at
_LONGEST_SENTENCE = 300

DESCRIBER = (
    "You are a pathologist who describes images of stained tissue for a teaching collection. Say only what can be "
    "seen in the image. Plain English, whole sentences, no headings, no lists."
)
_DESCRIBE_PRESENT = (
    "The thin green line encloses all {name} of this image{scale}; it was drawn by an annotator and is not part of "
    "the tissue. In 3 to 5 sentences describe the morphology by which a reader recognises them: architecture, cells, "
    "nuclei, staining, and the tissue around. Do not mention the line, give no numbers, guess no diagnosis and no "
    "organ."
)
_DESCRIBE_ABSENT = (
    "In 2 to 4 sentences describe the tissue of this image{scale}: architecture, cells, nuclei, staining, empty "
    "areas. Give no numbers, guess no diagnosis and no organ."
)
REASONER = (
    "You write chains of reasoning for images of stained tissue: short statements by which a reader of the image "
    "comes to the answer. You do not see the image; you have a description of it and measurements. The measurements "
    "are right."
)
_REASON_PRESENT = (
    "Question: where are {name} in this image?\nDescription: {description}\nMeasurements: {facts}\n\n"
    "Write 3 to 6 statements, one a line, each one sentence of at most 25 words: first what the field shows as a "
    "whole; then how many, how large and where {name} are, and how much of the tile they cover; then the morphology "
    "that identifies them. Use no number that is not among the measurements. Do not mention outlines, masks, "
    "annotations or measurements, and draw no conclusion. Write nothing else."
)
_REASON_ABSENT = (
    "Question: where are {name} in this image? (There are none.)\nDescription: {description}\n"
    "Measurements: {facts}\n\n"
    "Write 2 to 4 statements, one a line, each one sentence of at most 25 words: first what the field shows as a "
    "whole; then what is seen in place of {name}. Use no number that is not among the measurements. Do not say that "
    "there are any. Draw no conclusion. Write nothing else."
)
_COMPLAINT = (
    "These statements cannot stay:\n{complaints}\nWrite all statements again, one a line, with these corrected or "
    "left out. Write nothing else."
)
_ALL = (DESCRIBER, _DESCRIBE_PRESENT, _DESCRIBE_ABSENT, REASONER, _REASON_PRESENT, _REASON_ABSENT, _COMPLAINT)
PROMPTS = hashlib.sha256("\n".join(_ALL).encode()).hexdigest()[:12]  # stands in every chain made with them


def describing(concept_key: str, present: bool, mpp: float | None) -> str:
    """What the describer is asked. Of what is absent it hears nothing: one description serves all such questions."""
    scale = f" ({mpp:.2g} µm per pixel)" if mpp else ""
    text = _DESCRIBE_PRESENT if present else _DESCRIBE_ABSENT
    return text.format(name=concept_of(concept_key).name, scale=scale)


def reasoning(concept_key: str, present: bool, description: Sequence[str], facts: Sequence[str]) -> str:
    """What the reasoner is asked."""
    text = _REASON_PRESENT if present else _REASON_ABSENT
    name = concept_of(concept_key).name
    return text.format(name=name, description=" ".join(description), facts=" ".join(facts))


def complaint(statements: Sequence[Statement]) -> str:
    """What the reasoner is told of the statements that cannot stay."""
    wrong = [f"- {s.text} ({s.because})" for s in statements if s.verdict not in KEPT]
    return _COMPLAINT.format(complaints="\n".join(wrong))


def sentences_of(reply: str) -> list[str]:
    """The sentences of what a model wrote, at most `MOST_SENTENCES`, each safe to train on.

    A reply is foreign text. Thoughts, code fences, list marks, emphasis and headings go; control characters and marks
    that turn the direction of writing go; every "<" that might begin a special token (`<SEG>`, `<|im_end|>`) is parted
    from what follows. Sentences that are too long are left out.

    >>> sentences_of("<think>hm</think>\\n1. Two **glands** <SEG> are seen.\\n2. They are oval")
    ['Two glands < SEG> are seen.', 'They are oval.']
    """
    text = re.sub(r"<think>.*?(</think>|$)", "\n", reply[:_LONGEST_REPLY], flags=re.DOTALL | re.IGNORECASE)
    text = clean_text(text, _LONGEST_REPLY)
    found = []
    for line in text.splitlines():
        line = re.sub(r"^\s*(?:[-*•>#]+|\(?\d{1,2}[.):])\s+", "", line)
        line = " ".join(re.sub(r"[*_`#]{1,3}", "", line).split())
        if line.endswith(":") or not re.search(r"[a-zA-Z]{2}", line):
            continue
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9<])", line):
            sentence = re.sub(r"<(?=\S)", "< ", sentence)
            if len(sentence) <= _LONGEST_SENTENCE and re.search(r"[a-zA-Z]{2}", sentence):
                found.append(sentence if sentence.endswith((".", "!", "?")) else f"{sentence}.")
    return found[:MOST_SENTENCES]
