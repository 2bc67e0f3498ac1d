"""ASAP's XML (https://github.com/computationalpathologygroup/ASAP): polygons in groups, in pixels of the whole slide.

ASAP knows no holes, no ids and no measurements. Holes are written as CAMELYON16 did it: as polygons of a group
"Exclusion", to be cut out of the others. Where there are several classes each has its own, "CLASS Exclusion", since
one class may lie in the hole of another. Such a group is part of the group of its class, and holes come after all
outlines, for those who paint in the order of the file. The parts of a MultiPolygon are polygons of one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely

from wsiseg.belonging import place_of
from wsiseg.geojson import Annotation, safe_polygons
from wsiseg.mask.shapes import rings_of
from wsiseg.qupath import Color, clean_class, clean_name

NO_GROUP = "None"
EXCLUSION = "Exclusion"
_BATCH = 1024


def write(annotations: Sequence[Annotation], run: Mapping[str, Any], file: IO[bytes]) -> None:
    """GeoJSONError if `run` does not say where the corner of the slide lies."""
    l0_origin = np.array(place_of(run).l0_origin)
    classes = {clean_class(a.classification): a.color for a in annotations}
    taken = {NO_GROUP}
    groups = {name: _unused(_plain(name), taken) if name else NO_GROUP for name in classes}
    exclusions = {
        name: _unused(EXCLUSION if len(classes) == 1 else f"{group} {EXCLUSION}", taken)
        for name, group in groups.items()
    }
    file.write(b'<?xml version="1.0" encoding="UTF-8"?>\n<ASAP_Annotations>\n<Annotations>\n')
    holed = set()
    for a, xy in _rings(annotations, holes=False):
        file.write(_annotation(a, groups[clean_class(a.classification)], xy + l0_origin))
    for a, xy in _rings(annotations, holes=True):
        file.write(_annotation(a, exclusions[clean_class(a.classification)], xy + l0_origin))
        holed.add(clean_class(a.classification))
    file.write(b"</Annotations>\n<AnnotationGroups>\n")
    for name, color in classes.items():
        if name:
            file.write(_group(groups[name], NO_GROUP, color))
        if name in holed:
            file.write(_group(exclusions[name], groups[name], color))
    file.write(b"</AnnotationGroups>\n</ASAP_Annotations>\n")


def _rings(annotations: Sequence[Annotation], *, holes: bool) -> Iterator[tuple[Annotation, np.ndarray]]:
    """All shells, or all holes, as (n, 2) corners of which the first is not repeated."""
    for first in range(0, len(annotations), _BATCH):
        batch = annotations[first : first + _BATCH]
        rings, owner, is_hole = rings_of(safe_polygons(batch, first))
        for i in np.flatnonzero(is_hole == holes):
            yield batch[owner[i]], shapely.get_coordinates(rings[i])[:-1]


def _annotation(annotation: Annotation, group: str, xy: np.ndarray) -> bytes:
    corners = "".join(f'<Coordinate Order="{i}" X="{x:.10g}" Y="{y:.10g}"/>' for i, (x, y) in enumerate(xy.tolist()))
    name = quoteattr(_plain(clean_name(annotation.name)))
    return (
        f'<Annotation Name={name} Type="Polygon" PartOfGroup={quoteattr(group)} Color="{_hex(annotation.color)}">'
        f"<Coordinates>{corners}</Coordinates></Annotation>\n"
    ).encode()


def _group(name: str, parent: str, color: Color) -> bytes:
    return (
        f'<Group Name={quoteattr(name)} PartOfGroup={quoteattr(parent)} Color="{_hex(color)}"><Attributes/></Group>\n'
    ).encode()


def _unused(name: str, taken: set[str]) -> str:
    """ASAP tells groups apart by name, and takes the one called None for no group."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _plain(text: str) -> str:
    """Without the two characters that `clean_text` leaves and XML forbids."""
    return re.sub("[\ufffe\uffff]", "", text)


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
