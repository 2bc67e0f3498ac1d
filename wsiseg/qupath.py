"""QuPath's rules for the GeoJSON it imports, found by running its own reader (0.5.1 to 0.7): names and
colours of classes, what text is safe, and `check_dialect`, which reads a file as strictly as QuPath's
strictest version.

One bad feature loses the whole file there, so everything that wsiseg writes keeps to this.
"""

from __future__ import annotations

import colorsys
import gzip
import hashlib
import json
import math
import re
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely

Color = tuple[int, int, int]

OBJECT_TYPES = ("annotation", "detection", "cell", "tile")
DESCRIPTION = "ANNOTATION_DESCRIPTION"
"""The metadata key whose text QuPath shows as an annotation's description."""

MAX_NAME = 100
MAX_TEXT = 4000
MAX_DESCRIPTION = 1000  # QuPath holds one for each of perhaps 100,000 objects

# The first five are QuPath's own defaults (PathClass), so that a file looks the same in a new project as in
# one that knows these classes. "tumor" also finds "tumour" and "tumor cells": the first word that fits
# counts.
_COLORS: dict[str, Color] = {
    "tumo": (200, 0, 0),
    "strom": (150, 200, 150),
    "immune": (160, 90, 160),
    "necro": (50, 50, 50),
    "other": (255, 200, 0),
    "nucle": (0, 90, 220),
    "gland": (0, 150, 100),
    "lymph": (160, 90, 160),
    "vessel": (230, 90, 0),
    "mitos": (220, 0, 160),
    "epithel": (0, 170, 220),
    "fat": (230, 200, 60),
    "adipo": (230, 200, 60),
    "muscle": (180, 80, 80),
    "mucus": (110, 130, 230),
}


def class_color(name: str) -> Color:
    """The display colour of a class: fixed for common words of pathology, else a hue drawn from the name.

    >>> class_color("Tumour cells")
    (200, 0, 0)
    """
    found = {start: color for start, color in _COLORS.items() if re.search(rf"\b{start}", name.lower())}
    if found:
        return found[min(found, key=name.lower().index)]
    digest = hashlib.sha256(name.strip().lower().encode("utf-8", "replace")).digest()
    # Half lightness and high saturation stand out from haematoxylin and eosin whatever the hue.
    r, g, b = colorsys.hls_to_rgb(int.from_bytes(digest[:2], "big") / 65536, 0.42, 0.85)
    return round(r * 255), round(g * 255), round(b * 255)


def without_surrogates(text: str) -> str:
    """Lone surrogates, which no file can hold, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def clean_text(text: str, limit: int = MAX_TEXT) -> str:
    """Text that any reader takes, at most `limit` long: no lone surrogates, no control characters.

    Line breaks (all kinds become one) and tabs stay. Marks that turn the direction of writing go: they would turn
    what stands beside the text, too. What is too long ends in "…", at a space if there is one nearby.
    """
    text = without_surrogates(text)
    text = re.sub(r"\r\n?|[\u2028\u2029]", "\n", text)
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", "", text)
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    space = re.search(r"\s\S{0,39}$", head)
    return (head[: space.start()] if space else head).rstrip() + "…"


def clean_description(text: str) -> str:
    r"""Text for `DESCRIPTION`, at most `MAX_DESCRIPTION` long before marks are escaped.

    QuPath (from 0.4, its ObjectDescriptionPane) opens a description that begins with "https://" as a web page, and
    shows any other as Markdown in which HTML, links and pictures are live. Here they are words.

    >>> clean_description("a <b> [c](d)")
    'a \\<b\\> \\[c\\](d)'
    """
    text = re.sub(r"([\\`*_\[\]<>&~])", r"\\\1", clean_text(text, MAX_DESCRIPTION).strip())
    return re.sub(r"^(https?:)/", r"\1\\/", text, flags=re.IGNORECASE)


def words_of(description: str) -> str:
    r"""What a description says, its marks no longer escaped.

    >>> words_of(clean_description("a <b> [c](d)"))
    'a <b> [c](d)'
    """
    return re.sub(r"\\([\\`*_\[\]<>&~/])", r"\1", description)


def clean_name(text: str) -> str:
    """A name on one line, for objects: `clean_text`, white space collapsed."""
    return " ".join(clean_text(text, 4 * MAX_NAME).split())[:MAX_NAME].strip()


@lru_cache(1024)  # thousands of objects have the same few
def clean_class(text: str) -> str:
    """A class as QuPath writes it. ":" derives a class from another, a final "*" has QuPath's commands ignore it.

    >>> clean_class("Tumor:Positive")
    'Tumor: Positive'
    """
    parts = (part.strip() for part in clean_name(text).split(":"))
    return ": ".join(filter(None, parts))[:MAX_NAME].strip(" :")


def query_class(query: str) -> str:
    """The class of what a query found: a plain one, neither derived nor ignored."""
    return clean_class(query.replace(":", " ")).strip("* ")


def check_dialect(path: str | Path) -> list[str]:
    """What in a GeoJSON file QuPath (any version from 0.5.1) would refuse, drop or change; [] if nothing.

    An independent reading: it shares no code with `wsiseg.geojson`, which it is there to check.
    """
    path = Path(path)
    if not re.search(r"\.(geo)?json(\.gz)?$", path.name):
        return [f"{path.name}: QuPath reads .geojson and .json, and either with .gz"]
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        root = json.loads(text)
    except (ValueError, OSError, EOFError) as error:
        return [f"not one JSON value: {error}"]
    if not isinstance(root, dict) or root.get("type") != "FeatureCollection":
        return ["no FeatureCollection: QuPath finds no object, and says nothing"]
    if not isinstance(root.get("features"), list):
        return ["`features` is not a list"]
    problems = []
    seen: set[str] = set()
    for i, feature in enumerate(root["features"]):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            problems.append(f"feature {i}: not a Feature")
            continue
        if feature.get("id") in seen:
            problems.append(f"feature {i}: the id of an earlier feature")
        seen.add(feature.get("id", ""))
        found = [*_nulls(feature), *_check_id(feature.get("id")), *_check_geometry(feature.get("geometry"))]
        found += _check_geometry(feature["nucleusGeometry"]) if "nucleusGeometry" in feature else []
        found += _check_properties(feature.get("properties"))
        problems += [f"feature {i}: {problem}" for problem in found]
    return problems


def _nulls(value: Any, where: str = "feature") -> list[str]:
    if value is None:
        return [f"null at {where}"]
    if isinstance(value, dict):
        return [problem for key, item in value.items() for problem in _nulls(item, f"{where}.{key}")]
    if isinstance(value, list):
        return [problem for item in value if not _is_number(item) for problem in _nulls(item, where)]
    return []


def _check_id(value: Any) -> list[str]:
    try:
        return [] if str(uuid.UUID(value)) == value else ["id is not a canonical UUID"]
    except (TypeError, ValueError, AttributeError):
        return ["id is not a UUID: QuPath makes a new one at every import"]


def _check_geometry(geometry: Any) -> list[str]:
    if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        return ["geometry is not a Polygon or MultiPolygon"]
    coordinates = geometry.get("coordinates")
    if not isinstance(coordinates, list) or not coordinates:
        return ["geometry without coordinates"]
    parts = coordinates if geometry["type"] == "MultiPolygon" else [coordinates]
    if geometry["type"] == "MultiPolygon" and len(parts) < 2:
        return ["a MultiPolygon of one part breaks 0.5.1"]
    for ring in (ring for part in parts for ring in part):
        if not all(map(_is_position, ring)):
            return ["a coordinate is not a finite number"]
        if len(ring) < 4 or ring[0] != ring[-1]:
            return ["a ring is not closed, or has fewer than 4 positions"]
    polygons = [shapely.Polygon(part[0], part[1:]) for part in parts]
    shape = shapely.MultiPolygon(polygons) if len(polygons) > 1 else polygons[0]
    snapped = shapely.transform(shape, lambda xy: np.round(xy * 100) / 100)
    if not shapely.is_valid(snapped):
        return [f"not valid on the 0.01-px grid: {shapely.is_valid_reason(snapped)}"]
    if not all(part.area > 0 for part in shapely.get_parts(snapped)):
        return ["no area on the 0.01-px grid"]
    if not shapely.equals_exact(snapped, shape, tolerance=1e-9):
        return ["coordinates off the 0.01-px grid, which QuPath moves"]
    return []


def _check_properties(properties: Any) -> list[str]:
    if not isinstance(properties, dict):
        return ["properties are not an object"]
    problems = []
    if properties.get("objectType") not in OBJECT_TYPES:
        problems.append(f"objectType is not one of {OBJECT_TYPES}")
    known = {"objectType", "name", "color", "classification", "isLocked", "measurements", "metadata"}
    problems += [f"property {key!r} is dropped" for key in properties.keys() - known]
    name = properties.get("name", "name")
    if not isinstance(name, str) or not name.strip():
        problems.append("name is not a text")
    if "color" in properties and not _is_color(properties["color"]):
        problems.append("color is not [red, green, blue]")
    if "classification" in properties:
        problems += _check_class(properties["classification"])
    measurements = properties.get("measurements", {})
    if not isinstance(measurements, dict) or not all(map(_is_number, measurements.values())):
        problems.append("measurements are not an object of finite numbers")
    metadata = properties.get("metadata", {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        problems.append("metadata is not an object of texts")
    if not isinstance(properties.get("isLocked", False), bool):
        problems.append("isLocked is not true or false")
    return problems


def _check_class(value: Any) -> list[str]:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ["classification is not an object with a name"]
    problems = []
    if not value["name"].strip() or "\n" in value["name"] or "\r" in value["name"]:
        problems.append("class name is blank or has a line break")
    if not re.fullmatch(r"[^:\s][^:]*(: [^:\s][^:]*)*", value["name"]):
        problems.append('class name in which ":" does not stand between two names as ": "')
    if not _is_color(value.get("color")):
        problems.append("class without a color [red, green, blue]")
    return problems


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v < 256 for v in value)


def _is_position(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
