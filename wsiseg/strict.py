"""Dataclasses from parsed JSON of foreign origin: exactly their fields, each of its type."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Record = TypeVar("Record")


def record_of(kind: type[Record], raw: object, where: str = "") -> Record:
    """A dataclass from a JSON object. Its fields may be str, int, bool, float (finite; an int will do), tuples (from
    lists), dicts of str, Literals, dataclasses, Any, and unions of these and None.

    Raises:
        ValueError: it is none; the sentence names the entry, after `where`, and what it must be.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'it'} must be an object, not {raw!r:.80}")
    types_of = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if set(raw) != set(names):
        odd = sorted(set(map(str, raw)) ^ set(names))
        raise ValueError(f"missing or unknown {_below(where)}{odd[0]!r:.80}")
    return kind(**{name: _value(types_of[name], raw[name], _below(where) + name) for name in names})


def _value(kind: Any, raw: object, where: str) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if raw is None and types.NoneType in parts:
            return None
        kinds = [part for part in parts if part is not types.NoneType]
        for part in kinds[:-1]:
            try:
                return _value(part, raw, where)
            except ValueError:
                continue
        return _value(kinds[-1], raw, where)
    if origin is tuple:
        if isinstance(raw, list) and parts[-1] is Ellipsis:
            return tuple(_value(parts[0], item, where) for item in raw)
        if isinstance(raw, list) and len(raw) == len(parts):
            return tuple(_value(part, item, where) for part, item in zip(parts, raw, strict=True))
    elif origin is typing.Literal:
        if isinstance(raw, str) and raw in parts:
            return raw
    elif origin is dict:
        if isinstance(raw, dict):
            return {key: _value(parts[1], value, _below(where) + str(key)) for key, value in raw.items()}
    elif kind is Any:
        return raw
    elif is_dataclass(kind):
        return record_of(kind, raw, where)  # type: ignore[arg-type]
    elif kind is float:
        if isinstance(raw, int | float) and not isinstance(raw, bool) and _finite(raw):
            return float(raw)
    elif type(raw) is kind:
        return raw
    expected = " or ".join(map(repr, parts)) if origin is typing.Literal else getattr(kind, "__name__", str(kind))
    raise ValueError(f"{where} must be {expected}, not {raw!r:.80}")


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond every float
        return False


def _below(where: str) -> str:
    return f"{where}." if where else ""
