"""What structures are called: the names by which a model asks plainly, and which of them a label asks for."""

from __future__ import annotations

from collections.abc import Iterable

from wsiseg.model.plain import asked_for, known_names
from wsiseg.training.data.absent import NONSENSE
from wsiseg.training.data.concepts import CONCEPTS, concept_of
from wsiseg.training.data.queries import VERBS, nouns


def names_of(concepts: Iterable[str]) -> dict[str, dict[str, str]]:
    """What these concepts may be called, and by which name of training to ask for them (see `wsiseg.model.plain`)."""
    return {
        concept.name: {text: text for text in (concept.name, *(noun.text for noun in nouns(concept, "train")))}
        | dict.fromkeys(concept.also, concept.name)
        for concept in map(concept_of, concepts)
        if not concept.held_back and concept is not NONSENSE
    }


def concept_asked(text: str) -> str | None:
    """The key of the structure of a body that `text`, a query that begins with "outline" or the like, only asks for.

    None if it may say more, and of whatever else is a label.

    >>> concept_asked("pick out the cells"), concept_asked("cells, probably"), concept_asked("outline the large cells")
    ('nucleus', None, None)
    """
    asked = text.casefold()
    first = {verb.split()[0] for split in VERBS.values() for verb, _ in split}
    if not asked.split() or asked.split()[0] not in first | {"can", "circle", "could", "count", "please", "where"}:
        return None
    known = known_names(names_of(key for key, concept in CONCEPTS.items() if not concept.thing))
    meant = asked_for(asked, known)
    if meant is None:
        return None
    return next(key for key, concept in CONCEPTS.items() if concept.name == meant[0])
