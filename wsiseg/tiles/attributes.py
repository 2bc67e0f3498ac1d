"""What a tile store says about itself in its attributes, written and strictly read back."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from wsiseg.errors import StoreError
from wsiseg.tiles.grid import Grid, GridSpec, SlideIdentity

KIND = "wsiseg tiles"
FORMAT = 3

Record = TypeVar("Record")


@dataclass(frozen=True)
class StoreAttributes:
    """The `wsiseg` attribute of a store. It holds no time and no machine: equal input gives equal bytes.

    level: of the slide, that the pixels were read from. pixels: whether the store holds them.
    left_out: the tiles that could not be decoded, and have none.
    grid_fingerprint: of `Grid`, corners included.
    """

    spec: GridSpec
    slide: SlideIdentity
    m_width: int
    m_height: int
    tiles: int
    level: int
    grid_fingerprint: str
    software: str
    pixels: bool = True
    complete: bool = False
    left_out: tuple[int, ...] = ()

    @classmethod
    def of(cls, grid: Grid, *, level: int, software: str, pixels: bool = True) -> StoreAttributes:
        return cls(
            spec=grid.spec,
            slide=grid.slide,
            m_width=grid.m_width,
            m_height=grid.m_height,
            tiles=len(grid),
            level=level,
            grid_fingerprint=grid.fingerprint,
            software=software,
            pixels=pixels,
        )

    def to_json(self) -> dict[str, Any]:
        return {"kind": KIND, "format": FORMAT, **asdict(self)}


def parse_attributes(raw: object) -> StoreAttributes:
    """The attributes from parsed JSON.

    Raises:
        StoreError: not those of a tile store, of a later format, or malformed; says which entry.
    """
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise StoreError("not a wsiseg tile store")
    if raw.get("format") != FORMAT:
        raise StoreError(f"tile store of format {raw.get('format')!r}; this wsiseg reads format {FORMAT}")
    attributes = _record(StoreAttributes, {k: v for k, v in raw.items() if k not in ("kind", "format")}, "")
    sizes = ("slide.l0_width", "slide.l0_height", "slide.mpp_x", "slide.mpp_y", "m_width", "m_height")
    for name in sizes:
        holder: Any = attributes.slide if name.startswith("slide.") else attributes
        if not getattr(holder, name.removeprefix("slide.")) > 0:
            raise StoreError(f"tile store attributes: {name} must be positive")
    if attributes.tiles < 0 or attributes.level < 0:
        raise StoreError("tile store attributes: tiles and level must not be negative")
    if not all(0 <= tile < attributes.tiles for tile in attributes.left_out):
        raise StoreError("tile store attributes: left_out must name tiles of the store")
    return attributes


def _record(kind: type[Record], raw: object, where: str) -> Record:
    """A dataclass from a JSON object: exactly its fields, each of its type."""
    if not isinstance(raw, dict):
        raise StoreError(f"tile store attributes: {where or 'they'} must be an object, not {raw!r:.80}")
    types_of = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if set(raw) != set(names):
        odd = sorted(set(map(str, raw)) ^ set(names))
        raise StoreError(f"tile store attributes: missing or unknown {where}{odd[0]!r:.80}")
    return kind(**{name: _value(types_of[name], raw[name], where + name) for name in names})


def _value(kind: Any, raw: object, where: str) -> Any:
    if isinstance(kind, types.UnionType):  # only "something or None" occurs
        return None if raw is None else _value(typing.get_args(kind)[0], raw, where)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if isinstance(raw, list) and parts[-1] is Ellipsis:
            return tuple(_value(parts[0], item, where) for item in raw)
        if isinstance(raw, list) and len(raw) == len(parts):
            return tuple(_value(part, item, where) for part, item in zip(parts, raw, strict=True))
    elif kind in (GridSpec, SlideIdentity):
        return _record(kind, raw, where + ".")
    elif kind is float:
        if isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw):
            return float(raw)
    elif type(raw) is kind:
        return raw
    expected = getattr(kind, "__name__", str(kind))
    raise StoreError(f"tile store attributes: {where} must be {expected}, not {raw!r:.80}")


def explain_difference(stored: StoreAttributes, wanted: StoreAttributes) -> str | None:
    """Why a store cannot serve a request, or None if it can; where the slide lies does not matter."""
    if stored.slide.fingerprint != wanted.slide.fingerprint:
        return f"it holds another slide ({stored.slide.source})"
    for name, part in (("slide", "slide"), ("grid", "spec")):
        ours, theirs = asdict(getattr(wanted, part)), asdict(getattr(stored, part))
        for key in ours:
            if key != "source" and ours[key] != theirs[key]:
                return f"its {name} has {key} {theirs[key]}, asked for {ours[key]}"
    if stored.grid_fingerprint != wanted.grid_fingerprint:
        return "its tiles lie elsewhere: tissue was found in other places"
    return None
