"""What people judge in a quadruplet store: masks and chains, each with a fingerprint of how it is now."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample

MASK, CHAIN = "mask", "chain"
PARTS = (MASK, CHAIN)


@dataclass(frozen=True, order=True)
class Subject:
    """The mask of a concept on an image (or the claim that it is not there), or the chain of a question about it.

    All questions about a concept on an image share its mask, whose `query` is "".
    """

    part: str
    image: str  # name of the sample
    concept: str
    query: str = ""


def subjects_of(image: str, question: Quadruplet) -> tuple[Subject, Subject]:
    """The mask and the chain of a question about the sample called `image`."""
    return Subject(MASK, image, question.concept), Subject(CHAIN, image, question.concept, question.query)


def fingerprints(sample: Sample, questions: Sequence[Quadruplet]) -> dict[Subject, str]:
    """What is shown to those who judge, as 32 hexadecimal digits: the image with the mask, or with query and chain."""
    found = {}
    shape = repr(sample.image.shape).encode()
    for question in questions:
        mask, chain = subjects_of(sample.name, question)
        layer = sample.layers.get(question.concept)
        found[mask] = _digest(shape, sample.image.tobytes(), b"" if layer is None else layer.tobytes())
        found[chain] = _digest(shape, sample.image.tobytes(), question.query.encode(), question.reasoning.encode())
    return found


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


class Subjects:
    """Everything to judge in a store; an image is read when one of its fingerprints is first asked for."""

    def __init__(self, store: QuadrupletStore) -> None:
        self.store = store
        self.asked = [replace(q, reasoning=store.reasoning(q)) for q in store.quadruplets]  # as people are shown them
        self.of_image: dict[int, list[Quadruplet]] = defaultdict(list)
        for question in self.asked:
            self.of_image[question.image].append(question)
        self._index = {record.name: i for i, record in enumerate(store.records)}
        self._known: dict[int, dict[Subject, str]] = {}

    def of(self, question: Quadruplet) -> tuple[Subject, Subject]:
        return subjects_of(self.store.records[question.image].name, question)

    def fingerprint(self, subject: Subject) -> str:
        """As `fingerprints` has it; "" for what the store does not hold (any more)."""
        image = self._index.get(subject.image)
        if image is None:
            return ""
        if image not in self._known:
            self._known[image] = fingerprints(self.store.sample(image), self.of_image[image])
        return self._known[image].get(subject, "")
