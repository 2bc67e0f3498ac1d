"""What is known of outlines as a table: a name for every column."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from wsiseg.geojson import Annotation
from wsiseg.qupath import clean_text


@dataclass(frozen=True)
class Columns:
    """Measurement or metadata key → column, in the order in which the keys first come."""

    measurements: dict[str, str]
    metadata: dict[str, str]


def columns_of(annotations: Sequence[Annotation], taken: Collection[str]) -> Columns:
    """Columns for all measurements and metadata. `taken` are the names of other columns of the table.

    A key that is another column's name, too, has "measurement" or "metadata" put before it.
    """
    names = set(taken)
    measurements = _named((key for a in annotations for key in a.measurements), "measurement", names)
    return Columns(measurements, _named((key for a in annotations for key in a.metadata), "metadata", names))


def _named(keys: Iterable[str], kind: str, taken: set[str]) -> dict[str, str]:
    columns = {}
    for key in dict.fromkeys(keys):
        name = clean_text(key)
        while name in taken:
            name = f"{kind} {name}"
        taken.add(name)
        columns[key] = name
    return columns
