"""Read GeoJSON: what `write.py` wrote, and what QuPath exports."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import math
import os
import re
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from sys import intern
from typing import Any

import numpy as np
import orjson
import shapely
from shapely.errors import GEOSException

from wsiseg.errors import GeoJSONError
from wsiseg.geojson.write import Annotation
from wsiseg.qupath import OBJECT_TYPES, Color, class_color, clean_class, clean_name, without_surrogates

_PROPERTIES = {
    "objectType", "name", "color", "classification", "isLocked", "measurements", "metadata", "childObjects", "id",
}  # fmt: skip
_PLANES = "the plane (z, t)"  # with brackets and a comma: no name of a property of QuPath's
_PART = 4 << 20  # bytes of a file that are parsed at once
_BEGIN = re.compile(rb'\A\s*\[|"features"\s*:\s*\[')
_BETWEEN = re.compile(rb',\s*(?=\{\s*"type"\s*:\s*"Feature")')  # in no text: there a quotation mark has a backslash
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FARTHEST_PX = 1e8  # slides are a hundredth as large
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_log = logging.getLogger(__name__)


def read_geojson(path: str | os.PathLike[str]) -> list[Annotation]:
    """Read a file of `write_geojson`, or what QuPath exports (plain or .gz): see `read_collection`."""
    return read_collection(path)[0]


@contextmanager
def _uncollected() -> Iterator[None]:
    """While a file is read, Python's garbage collector would look through what was parsed, again and again, for half
    of the time; none of it is garbage."""
    if not gc.isenabled():  # another thread may be about to turn it on again: only who turned it off does that
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_uncollected()
def read_collection(path: str | os.PathLike[str]) -> tuple[list[Annotation], dict[str, Any]]:
    """The annotations of a file, children after their parents, and its member `wsiseg` ({} if there is none).

    Reads a FeatureCollection, a bare list of Features or one Feature. As QuPath does it takes measurements
    as an object or a list, classes as an object or a string, and drops what is null, NaN or unknown. Objects without
    an area (points, lines, no geometry) are left out. A warning says how many, which properties are unknown, and
    whether there are planes, which are not kept.

    Raises:
        GeoJSONError: not GeoJSON, or feature i (from 0) is not a valid polygon with valid properties.
    """
    annotations: list[Annotation] = []
    run: Any = None
    read, without_area, unread = 0, 0, set[str]()
    for value in _in_parts(path):
        if isinstance(value, dict) and value.get("type") == "FeatureCollection":
            features, run = value.get("features"), value.get("wsiseg")
        else:
            features = value if isinstance(value, list) else [value]
        if not isinstance(features, list):
            raise GeoJSONError(f"{path}: `features` is not a list")
        members = [feature if isinstance(feature, dict) else {} for feature in features]
        shapes = _plain_polygons([feature.get("geometry") for feature in members])
        nuclei = _plain_polygons([feature.get("nucleusGeometry") for feature in members])
        for i, feature in enumerate(features):
            try:
                found = list(_annotations(feature, shapes[i], nuclei[i]))
            except (GeoJSONError, TypeError, ValueError, OverflowError, RecursionError, GEOSException) as error:
                raise GeoJSONError(f"{path}: feature {read + i}: {error}") from error
            annotations += [annotation for annotation in found if annotation is not None]
            without_area += found.count(None)
        read += len(features)
        unread |= _unread(members)
    if without_area or unread:
        objects = f"{without_area} object{'s' * (without_area > 1)} without an area (points, lines)"
        lost = [*([objects] if without_area else []), *sorted(unread - {_PLANES}), *(unread & {_PLANES})]
        _log.warning("%s: not read, and lost where its outlines are saved: %s", path, ", ".join(lost))
    return annotations, run if isinstance(run, dict) else {}


def _in_parts(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A file as JSON values: lists of its first Features, then what it is without these.

    As one it would take ten times its size in memory. That a part is JSON shows that it was cut off between two
    Features, not between two children of one.
    """
    try:
        with open(path, "rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            first = file.read(_PART).removeprefix(b"\xef\xbb\xbf")
            begin = _BEGIN.search(first)
            start = begin.end() if begin else 0
            head, unread = first[:start], [first[start:]]
            while begin and (more := file.read(_PART)):
                cut = _BETWEEN.search(more)
                if cut is None:
                    unread.append(more)
                    continue
                try:
                    features = _parsed(b"[%b%b]" % (b"".join(unread), more[: cut.start()]))
                except (ValueError, RecursionError):
                    unread.append(more)
                    break
                yield features
                unread = [more[cut.end() :]]
            yield _parsed(b"".join([head, *unread, file.read()]))
    except (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile) as error:
        raise GeoJSONError(f"{path} is not GeoJSON: {error}") from error
    except OSError as error:
        raise GeoJSONError(f"cannot read {path}: {error.strerror or error}") from error


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        value = json.loads(data)  # QuPath writes NaN, which is not JSON; Python's parser takes it
        return _sound(value) if _SURROGATE.search(data) else value


def _sound(value: Any) -> Any:
    """Without lone surrogates, which no file could hold; orjson refuses them, Python's parser does not."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_sound(item) for item in value]
    if isinstance(value, dict):
        return {_sound(key): _sound(item) for key, item in value.items()}
    return value


def _unread(features: list[dict[str, Any]]) -> set[str]:
    """What features have that their annotations have not."""
    unread: set[str] = set()
    for feature in features:
        unread.update(map(clean_name, (feature.get("properties") or {}).keys() - _PROPERTIES))
        plane = (feature.get("geometry") or {}).get("plane")
        if isinstance(plane, dict) and (plane.get("z") or plane.get("t")):
            unread.add(_PLANES)
    return unread


def _annotations(
    feature: Any, shape: shapely.Polygon | None = None, nucleus: shapely.Polygon | None = None
) -> Iterator[Annotation | None]:
    """One feature and its children, None for each without an area. shape, nucleus: its geometries, if built already."""
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise GeoJSONError("not a Feature")
    properties = feature.get("properties")
    if not isinstance(properties, dict | None):
        raise GeoJSONError(f"properties are not an object: {_short(properties)}")
    properties = {key: value for key, value in (properties or {}).items() if value is not None}
    yield _annotation(feature, properties, shape, nucleus) if _has_area(feature.get("geometry", {})) else None
    for child in properties.get("childObjects", ()):
        yield from _annotations(child)


def _annotation(
    feature: dict[str, Any],
    properties: dict[str, Any],
    shape: shapely.Polygon | None,
    nucleus: shapely.Polygon | None,
) -> Annotation:
    object_type = properties.get("objectType", "annotation")
    if object_type not in OBJECT_TYPES:
        raise GeoJSONError(f"object type {_short(object_type)} is not one of {OBJECT_TYPES}")
    classification, color = _classification(properties)
    name = properties.get("name", "")
    if not isinstance(name, str):
        raise GeoJSONError(f"name is not a text: {_short(name)}")
    if nucleus is None and feature.get("nucleusGeometry") is not None:
        nucleus = _geometry(feature["nucleusGeometry"])
    return Annotation(
        id=_id(feature.get("id"), properties.get("id")),  # geopandas moves it, and may put a number in its place
        geometry=_geometry(feature.get("geometry")) if shape is None else shape,
        name=intern(name),
        classification=classification,
        color=color,
        measurements=_measurements(properties.get("measurements")),
        metadata=_metadata(properties.get("metadata")),
        object_type=object_type,
        is_locked=properties.get("isLocked") is True,
        nucleus=nucleus,
    )


def _id(*values: Any) -> uuid.UUID:
    """The first of the values that is an id, else a new one, as QuPath does."""
    for value in values:
        with suppress(TypeError, ValueError, AttributeError):
            return uuid.UUID(value)
    return uuid.uuid4()


def _has_area(geometry: Any) -> bool:
    """False of points, lines and null; what is no geometry at all is for `_geometry` to refuse."""
    return geometry is not None and not (isinstance(geometry, dict) and geometry.get("type") in _WITHOUT_AREA)


def _geometry(geometry: Any) -> shapely.Polygon | shapely.MultiPolygon:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise GeoJSONError(f"geometry is not a Polygon or MultiPolygon: {_short(geometry)}")
    coordinates = geometry.get("coordinates")
    if not isinstance(coordinates, list) or not coordinates:
        raise GeoJSONError("geometry has no coordinates")
    parts = [_polygon(part) for part in (coordinates if kind == "MultiPolygon" else [coordinates])]
    shape = parts[0] if kind == "Polygon" else shapely.MultiPolygon(parts)
    if not shapely.is_valid(shape):
        raise GeoJSONError(f"invalid geometry: {shapely.is_valid_reason(shape)}")
    if shape.is_empty:
        raise GeoJSONError("geometry is empty")
    return shape


def _plain_polygons(geometries: list[Any]) -> np.ndarray:
    """(N,) the valid Polygons among GeoJSON geometries, built all at once; None for what `_geometry` has to look at.

    One by one they would cost several times as much. Features one after the other have the better messages.
    """
    shapes = np.full(len(geometries), None, object)
    try:
        plain = [i for i, geometry in enumerate(geometries) if _has_plain_rings(geometry)]
        polygons = [geometries[i]["coordinates"] for i in plain]
        rings = [ring for polygon in polygons for ring in polygon]
        xy = np.array([position for ring in rings for position in ring], np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return shapes
    if xy.ndim != 2 or xy.shape[1] != 2 or not (np.abs(xy) <= _FARTHEST_PX).all():
        return shapes
    ring_ends = np.cumsum([0, *map(len, rings)])
    polygon_ends = np.cumsum([0, *map(len, polygons)])
    built = shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy, (ring_ends, polygon_ends))
    built[~shapely.is_valid(built)] = None
    shapes[plain] = built
    return shapes


def _has_plain_rings(geometry: Any) -> bool:
    """Whether it is a Polygon whose rings are closed lists; what they hold is not looked at."""
    if not isinstance(geometry, dict) or geometry.get("type") != "Polygon":
        return False
    rings = geometry.get("coordinates")
    return (
        isinstance(rings, list)
        and bool(rings)
        and all(isinstance(ring, list) and len(ring) > 3 and ring[0] == ring[-1] for ring in rings)
    )


def _polygon(rings: Any) -> shapely.Polygon:
    closed = []
    for ring in rings:
        xy = np.array([position[:2] for position in ring], np.float64)
        if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
            raise GeoJSONError("a coordinate is not a pair of numbers")
        if (np.abs(xy) > _FARTHEST_PX).any():
            raise GeoJSONError(f"a coordinate lies {np.abs(xy).max():.3g} px away, which is on no slide")
        if len(xy) < 4 or (xy[0] != xy[-1]).any():
            raise GeoJSONError("a ring is not closed, or has fewer than 4 positions")
        closed.append(xy)
    if not closed:
        raise GeoJSONError("a polygon without rings")
    return shapely.Polygon(closed[0], closed[1:])


def _classification(properties: dict[str, Any]) -> tuple[str, Color]:
    value, color = properties.get("classification"), None
    if isinstance(value, dict):
        color = value.get("color", value.get("colorRGB"))
        name = value.get("name", value.get("names", ""))
        value = ": ".join(map(str, name)) if isinstance(name, list) else name
    if value is not None and not isinstance(value, str):
        raise GeoJSONError(f"classification is neither a text nor an object with a name: {_short(value)}")
    name = clean_class(value or "")
    return name, _color(properties.get("color")) or _color(color) or class_color(name)


def _color(value: Any) -> Color | None:
    if isinstance(value, int):  # QuPath's packed RGB
        return value >> 16 & 255, value >> 8 & 255, value & 255
    if isinstance(value, list) and len(value) in (3, 4) and all(isinstance(v, int) and 0 <= v < 256 for v in value):
        return value[0], value[1], value[2]
    if value in (None, []):
        return None
    raise GeoJSONError(f"colour is not [red, green, blue]: {_short(value)}")


def _measurements(value: Any) -> dict[str, float]:
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict) and isinstance(item.get("name"), str)]
        value = {item["name"]: item.get("value") for item in named}
    if not isinstance(value, dict):
        return {}
    numbers = {
        key: float(number)
        for key, number in value.items()
        if isinstance(number, (int, float, str)) and not isinstance(number, bool)
    }
    return {key: number for key, number in numbers.items() if math.isfinite(number)}


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {
        key: intern(item if isinstance(item, str) else json.dumps(item))  # many objects have the same texts
        for key, item in value.items()
        if isinstance(item, (str, int, float))
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
