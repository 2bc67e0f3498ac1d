"""What one `wsiseg data review` holds: the questions to look at, and one reviewer's decisions on them."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from wsiseg.errors import DataError
from wsiseg.qupath import MAX_TEXT, class_color, clean_text
from wsiseg.training.data.concepts import concept_of
from wsiseg.training.data.store import Quadruplet, QuadrupletStore
from wsiseg.training.review.journal import (
    VERDICTS,
    Decision,
    append,
    load_mask,
    now,
    read_reviews,
    review_folder,
    reviewer_name,
    save_mask,
)
from wsiseg.training.review.subjects import CHAIN, MASK, PARTS, Subject, Subjects

States = list[tuple[int, dict[str, Any]]]
"""Questions and what their states have become."""


class Review:
    """The questions of a store before one reviewer; methods may be called from several threads.

    Every change is on the disk when its method returns.
    """

    def __init__(
        self, store: QuadrupletStore, name: str, *, split: str | None = None, limit: int | None = None
    ) -> None:
        """Questions of `split` (None: all), or `limit` of them spread evenly: the same for every reviewer.

        Raises:
            DataError: there is no question, the name is empty, or earlier decisions cannot be read.
        """
        self.store, self.name = store, reviewer_name(name)
        self.folder, self.subjects = review_folder(store.path), Subjects(store)
        self.questions = store.questions(split, limit)
        self._done: list[tuple[int, list[Decision]]] = []  # question, and what stood before
        self._lock = threading.Lock()
        self._read()

    def _read(self) -> None:
        others = read_reviews(self.folder)
        self._mine, self._others = others.pop(self.name, {}), others

    def describe(self) -> dict[str, Any]:
        """What the page needs to know before it shows a question; others' decisions as they are now."""
        with self._lock:
            self._read()
            return {
                "store": clean_text(self.store.path.name),
                "name": self.name,
                "states": [self._state(question) for question in self.questions],
                "others": list(self._others),
            }

    def question(self, i: int) -> dict[str, Any]:
        """All that is shown of question `i` but pixels. What others said only where this reviewer has decided."""
        question = self.questions[i]
        record, concept = self.store.records[question.image], concept_of(question.concept)
        with self._lock:
            corrected = self._standing(self.subjects.of(question)[1])
            return {
                "state": self._state(question),
                "query": question.query,
                "concept": concept.name,
                "present": question.present,
                "chain": question.reasoning,
                "corrected": corrected.text if corrected else "",
                "others": self._said_by_others(question),
                "image": record.name,
                "label": record.label,
                "width": record.size[1],
                "height": record.size[0],
                "mpp": record.mpp,
                "color": class_color(concept.qupath_class),
            }

    def image(self, i: int) -> bytes:
        """The image of question `i` as PNG."""
        encoded = io.BytesIO()
        Image.fromarray(self.store.sample(self.questions[i].image).image).save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()

    def labels(self, i: int, name: str = "") -> np.ndarray:
        """The mask of question `i` (H, W) uint16, as this reviewer corrected it if so; empty where nothing is.

        name: as that other reviewer corrected it. DataError: who has not decided sees nothing of others.
        """
        question = self.questions[i]
        shape = self.store.records[question.image].size
        subject, _ = self.subjects.of(question)
        with self._lock:
            decision = self._standing(subject)
            if name:
                decision = self._of_others(subject).get(name) if decision else None
                if decision is None or not decision.mask:
                    raise DataError("there is no mask of theirs to see here, or not before you have decided")
        if decision and decision.mask:
            return load_mask(self.folder, decision.mask, shape)
        return self.store.sample(question.image).layers.get(question.concept, np.zeros(shape, np.uint16))

    def decide(self, i: int, verdicts: dict[str, str], text: str = "") -> States:
        """Take a verdict on parts of question `i` (of a mask not "corrected"); returns what it changes.

        text: the chain as corrected, where its verdict says so.

        Raises:
            DataError: a verdict is none, or the text is empty or too long.
            OutputError: it cannot be written.
        """
        question = self.questions[i]
        text = clean_text(text, len(text)).strip()
        for part, verdict in verdicts.items():
            if part not in PARTS or verdict not in VERDICTS or (part, verdict) == (MASK, "corrected"):
                raise DataError(f"{verdict!r} is no verdict on the {clean_text(part, 20)}")
        if verdicts.get(CHAIN) == "corrected" and not 0 < len(text) <= MAX_TEXT:
            raise DataError(f"a corrected chain has 1 to {MAX_TEXT} characters, not {len(text)}: reject it instead")
        made = [
            self._decision(subject, verdicts[subject.part], text=text if verdicts[subject.part] == "corrected" else "")
            for subject in self.subjects.of(question)
            if subject.part in verdicts
        ]
        return self._add(i, made)

    def correct_mask(self, i: int, labels: bytes) -> States:
        """Take the mask of question `i` as corrected: labels (H, W), little-endian uint16. Raises as `decide`."""
        question = self.questions[i]
        height, width = self.store.records[question.image].size
        if len(labels) != 2 * height * width:
            raise DataError(f"the mask has {len(labels)} bytes, not 2 × {height} × {width}")
        mask = np.frombuffer(labels, "<u2").reshape(height, width).astype(np.uint16)
        if not mask.any():
            raise DataError("nothing is left of the mask: reject it instead")
        subject, _ = self.subjects.of(question)
        return self._add(i, [self._decision(subject, "corrected", mask=save_mask(self.folder, mask))])

    def undo(self) -> tuple[int | None, States]:
        """Take the last change of this session back; returns the question that it was about, None if there is none."""
        with self._lock:
            if not self._done:
                return None, []
            i, before = self._done[-1]
            self._write(before)
            self._done.pop()
            return i, self._states(i)

    def _add(self, i: int, made: list[Decision]) -> States:
        with self._lock:
            if made:
                before = [self._mine.get(d.subject) or replace(d, verdict="", text="", mask="") for d in made]
                self._write(made)
                self._done.append((i, before))
            return self._states(i)

    def _states(self, i: int) -> States:
        """Of question `i`, and of those that share its mask."""
        mask, _ = self.subjects.of(self.questions[i])
        like = [j for j, question in enumerate(self.questions) if self.subjects.of(question)[0] == mask]
        return [(j, self._state(self.questions[j])) for j in like]

    def _write(self, decisions: list[Decision]) -> None:
        append(self.folder, [replace(decision, time=now()) for decision in decisions])
        for decision in decisions:
            self._mine[decision.subject] = decision
            if not decision.verdict:
                del self._mine[decision.subject]

    def _decision(self, subject: Subject, verdict: str, **values: str) -> Decision:
        return Decision(subject, verdict, self.subjects.fingerprint(subject), self.name, now(), **values)

    def _standing(self, subject: Subject) -> Decision | None:
        """This reviewer's decision, unless its subject has changed since."""
        own = self._mine.get(subject)
        return own if own and own.judged == self.subjects.fingerprint(subject) else None

    def _state(self, question: Quadruplet) -> dict[str, Any]:
        state: dict[str, Any] = {"changed": False, "disagreed": False}
        for subject in self.subjects.of(question):
            own = self._standing(subject)
            state[subject.part] = own.verdict if own else ""
            state["changed"] |= own is None and subject in self._mine
            state["disagreed"] |= own is not None and any(
                decision.verdict != own.verdict for decision in self._of_others(subject).values()
            )
        return state

    def _said_by_others(self, question: Quadruplet) -> list[dict[str, str]]:
        return [
            {"name": name, "part": subject.part, "verdict": decision.verdict, "text": decision.text}
            for subject in self.subjects.of(question)
            if self._standing(subject)
            for name, decision in self._of_others(subject).items()
        ]

    def _of_others(self, subject: Subject) -> dict[str, Decision]:
        said = {name: own[subject] for name, own in self._others.items() if subject in own}
        return {name: d for name, d in said.items() if d.judged == self.subjects.fingerprint(subject)}
