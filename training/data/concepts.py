"""What the bundled model can be asked for, and where each thing is known to be there or not to be there.

A concept is learned from masks (`CONCEPTS[key].has_masks`) or only from its absence: the model has to refuse
what a picture does not hold, so a long list of structures, and of things that no slide holds, is asked only
where the source rules it out. What a source leaves open is *unknown* and is never asked, neither way.
"""

from __future__ import annotations

import logging

from wsiseg.errors import DataError
from wsiseg.training.data.absent import ABSENT_CONCEPTS, THING_CONCEPTS
from wsiseg.training.data.masked import MASKED_CONCEPTS
from wsiseg.training.data.places import place_of
from wsiseg.training.data.terms import Concept, mass, plural

_log = logging.getLogger(__name__)

CONCEPTS: dict[str, Concept] = {
    concept.key: concept for concept in (*MASKED_CONCEPTS, *ABSENT_CONCEPTS, *THING_CONCEPTS)
}
MASKED: tuple[str, ...] = tuple(key for key, concept in CONCEPTS.items() if concept.has_masks)


def known_absent(source: str, label: str, *, split: str = "val") -> tuple[str, ...]:
    """Keys of all concepts that `source` rules out for its class, grade or organ `label`.

    With `split="train"` without those that are held back for validation. Concepts that are neither here nor
    among a picture's layers are unknown: never ask them.
    """
    place = place_of(source, label)
    return tuple(
        key
        for key, concept in CONCEPTS.items()
        if place in concept.absent_in and not (split == "train" and concept.held_back)
    )


def concept_of(key: str) -> Concept:
    """The concept of `key`; one that no table names (a user's own label) is called as its key says."""
    if key in CONCEPTS:
        return CONCEPTS[key]
    name = key.replace("_", " ")
    many = name.endswith("s") and not name.endswith(("ss", "is", "us"))
    nouns = plural(name) if many else mass(name)
    return Concept(key, name, many, name.capitalize(), nouns, has_masks=True)


def concept_named(label: str) -> str:
    """The key of the structure called `label` (key, name or synonym, in any case), else `label` as a key.

    A synonym is told as a warning: who writes "tumor" may not mean `malignant`.

    Raises:
        DataError: the label is empty.
    """
    wanted = " ".join(label.lower().replace("_", " ").split())
    if not wanted:
        raise DataError("the label is empty; name the structure that the masks outline, as --label gland")
    for key, concept in CONCEPTS.items():
        words = {
            key.replace("_", " "),
            concept.name,
            *(noun.text for noun in concept.names + concept.val_names),
        }
        if not concept.thing and wanted in {word.lower() for word in words}:
            if key not in wanted and concept.name not in wanted:
                _log.warning("%s is taken for %s: give it another name if it is not that", label, concept.name)
            return key
    return wanted.replace(" ", "_")
