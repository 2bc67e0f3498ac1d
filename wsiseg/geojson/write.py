"""Write GeoJSON that QuPath reads safely: clean, valid on its grid, streamed."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import IO, Any

import numpy as np
import orjson
import shapely

from wsiseg.errors import GeoJSONError
from wsiseg.mask.shapes import GRID_L0, is_safe, repair
from wsiseg.qupath import OBJECT_TYPES, Color, class_color, clean_class, clean_name, clean_text

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "annotation.wsiseg")
_BATCH = 1024


@dataclass(frozen=True)
class Annotation:
    """One object as QuPath knows it.

    geometry: Polygon or MultiPolygon; coordinates as written: level-0 pixels from the file's origin.
    classification: name of its class, whose colour is `color`; "" for none, `color` is then the object's own.
    measurements: what is not finite is left out of the file; QuPath takes what is missing for NaN.
    metadata: shown by QuPath beside the measurements; the key `qupath.DESCRIPTION` as the object's
        description.
    nucleus: of a cell, as QuPath has it beside the geometry.
    """

    id: uuid.UUID
    geometry: shapely.Polygon | shapely.MultiPolygon
    name: str
    classification: str
    color: Color
    measurements: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    object_type: str = "annotation"
    is_locked: bool = False
    nucleus: shapely.Polygon | shapely.MultiPolygon | None = None


def annotation_id(geometry: shapely.Geometry, *made_by: str) -> uuid.UUID:
    """The same id for the same outline made by the same things (slide, model, query, …): UUID version 5."""
    outline = shapely.to_wkb(shapely.normalize(geometry), output_dimension=2, byte_order=1, hex=True)
    return uuid.uuid5(_NAMESPACE, "\0".join([*map(clean_text, made_by), outline]))


def write_geojson(annotations: Iterable[Annotation], file: IO[bytes], *, run: Mapping[str, Any] | None = None) -> int:
    """Stream annotations to a binary file; return how many.

    Geometries that are not valid on QuPath's 0.01-px grid are repaired, names, classes and texts cleaned,
    so that no annotation can spoil the file.

    Args:
        run: JSON values that say what made the file: its member `wsiseg`.

    Raises:
        GeoJSONError: an annotation is not a polygon, has no area, or is of an unknown object type.
    """
    file.write(b'{"type":"FeatureCollection",')
    if run is not None:
        file.write(b'"wsiseg":' + orjson.dumps(run, option=orjson.OPT_SERIALIZE_NUMPY) + b",")
    file.write(b'"features":[')
    count = 0
    remaining = iter(annotations)
    while batch := list(islice(remaining, _BATCH)):
        file.write((b",\n" if count else b"\n") + b",\n".join(_features(batch, count)))
        count += len(batch)
    file.write(b"\n]}\n")
    return count


def _features(batch: list[Annotation], first: int) -> Iterator[bytes]:
    nuclei = _geometries([replace(a, geometry=a.nucleus) for a in batch if a.nucleus is not None], first)
    for annotation, geometry in zip(batch, _geometries(batch, first), strict=True):
        nucleus = b"" if annotation.nucleus is None else b',"nucleusGeometry":' + _json(next(nuclei))
        yield b'{"type":"Feature","id":"%b","geometry":%b%b,"properties":{%b%b}}' % (
            str(annotation.id).encode(),
            _json(geometry),
            nucleus,
            _described(
                annotation.object_type,
                annotation.name,
                annotation.classification,
                tuple(annotation.color),  # type: ignore[arg-type]  # a list or an array will do
                annotation.is_locked,
                tuple(annotation.metadata.items()),
            ),
            _measured(annotation.measurements),
        )


def _json(geometry: dict[str, Any]) -> bytes:
    return orjson.dumps(geometry, option=orjson.OPT_SERIALIZE_NUMPY)


def safe_polygons(annotations: Sequence[Annotation], first: int = 0) -> np.ndarray:
    """Their geometries (N,), valid on QuPath's 0.01-px grid, a MultiPolygon only where there are several parts.

    first: number of the first annotation, for messages.

    Raises:
        GeoJSONError: one is not a polygon, or has no area.
    """
    polygons = np.array([annotation.geometry for annotation in annotations], object)
    for start in range(0, len(polygons), _BATCH):  # the corners of all at once take gigabytes
        batch = polygons[start : start + _BATCH]
        unsafe = ~is_safe(batch)
        if unsafe.any():
            batch[unsafe] = repair(batch[unsafe])
    empty = np.flatnonzero(shapely.is_empty(polygons))
    if len(empty):
        i = int(empty[0])
        raise GeoJSONError(
            f"annotation {first + i}: {shapely.to_wkt(annotations[i].geometry)[:80]} is not a polygon "
            f"with an area at {GRID_L0} px"
        )
    return polygons


def _geometries(batch: list[Annotation], first: int) -> Iterator[dict[str, Any]]:
    """GeoJSON geometries of safe polygons, whose rings are views of one array of coordinates."""
    polygons = safe_polygons(batch, first)
    parts, part_owner = shapely.get_parts(polygons, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    xy, lengths = shapely.get_coordinates(rings), shapely.get_num_coordinates(rings)
    ends = np.cumsum(lengths).tolist()
    coordinates: list[list[list[np.ndarray]]] = [[] for _ in batch]
    part_coordinates: list[list[np.ndarray]] = [[] for _ in parts]
    start = 0
    for end, part in zip(ends, ring_part.tolist(), strict=True):
        part_coordinates[part].append(xy[start:end])
        start = end
    for part, owner in enumerate(part_owner.tolist()):
        coordinates[owner].append(part_coordinates[part])
    for shape in coordinates:
        if len(shape) == 1:
            yield {"type": "Polygon", "coordinates": shape[0]}
        else:
            yield {"type": "MultiPolygon", "coordinates": shape}


@lru_cache(1024)  # most annotations of a run differ in nothing but outline and measurements
def _described(
    object_type: str,
    name: str,
    classification: str,
    color: Color,
    is_locked: bool,
    metadata: tuple[tuple[str, str], ...],
) -> bytes:
    """The members of `properties` that are not measured."""
    if object_type not in OBJECT_TYPES:
        raise GeoJSONError(f"object type {object_type!r} is not one of {', '.join(OBJECT_TYPES)}")
    properties: dict[str, Any] = {"objectType": object_type}
    if name := clean_name(name):
        properties["name"] = name
    rgb = [int(part) for part in color]
    if classification := clean_class(classification):
        properties["classification"] = {"name": classification, "color": rgb}
    elif color != class_color(""):  # QuPath prefers an object's own colour to that of the class it is given later
        properties["color"] = rgb
    properties["isLocked"] = bool(is_locked)
    if metadata:
        properties["metadata"] = {clean_text(key): clean_text(value) for key, value in metadata}
    return orjson.dumps(properties)[1:-1]


def _measured(measurements: Mapping[str, float]) -> bytes:
    finite = {_clean_key(key): value for key, value in measurements.items() if math.isfinite(value)}
    return b',"measurements":' + orjson.dumps(finite, option=orjson.OPT_SERIALIZE_NUMPY) if finite else b""


_clean_key = lru_cache(1024)(clean_text)
