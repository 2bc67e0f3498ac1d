"""What a tile store says about itself in its attributes, written and strictly read back."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wsiseg.errors import StoreError
from wsiseg.files import atomic_write
from wsiseg.slide.source import is_url
from wsiseg.strict import record_of
from wsiseg.tiles.grid import Grid, GridSpec, SlideIdentity

KIND = "wsiseg tiles"
FORMAT = 3


@dataclass(frozen=True)
class StoreAttributes:
    """The `wsiseg` attribute of a store. It holds no time and no machine: equal input gives equal bytes.

    level: of the slide, that the pixels were read from. pixels: whether the store holds them.
    left_out: the tiles that could not be decoded, and have none.
    grid_fingerprint: of `Grid`, corners included.
    backend: which one reads the slide again; None in a store with pixels, and in one of an earlier version.
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
    backend: str | None = None

    @classmethod
    def of(
        cls, grid: Grid, *, level: int, software: str, pixels: bool = True, backend: str | None = None
    ) -> StoreAttributes:
        source = grid.slide.source
        return cls(
            spec=grid.spec,
            # Absolute: who opens the store may be working in another folder.
            slide=grid.slide if is_url(source) else replace(grid.slide, source=os.path.abspath(source)),
            m_width=grid.m_width,
            m_height=grid.m_height,
            tiles=len(grid),
            level=level,
            grid_fingerprint=grid.fingerprint,
            software=software,
            pixels=pixels,
            backend=backend,
        )

    def to_json(self) -> dict[str, Any]:
        said = {"kind": KIND, "format": FORMAT, **asdict(self)}
        if self.backend is None:
            del said["backend"]
        return said


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a tile store, finished or not, of this or another format; reads one small file."""
    try:
        return bool(zarr_attributes(Path(path))["wsiseg"]["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_attributes(folder: Path) -> StoreAttributes:
    """Of the store in `folder`. StoreError: there is none, or one of another format, or damaged."""
    try:
        raw = zarr_attributes(folder)["wsiseg"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"no tile store at {folder}: make one with `wsiseg tile`") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{folder} is not a tile store: its zarr.json cannot be read") from error
    try:
        return parse_attributes(raw)
    except StoreError as error:
        raise StoreError(f"{folder}: {error}") from error


def zarr_attributes(folder: Path) -> Any:
    """Of a Zarr group or array. Raises OSError, ValueError, KeyError, TypeError: it is none."""
    return json.loads((folder / "zarr.json").read_bytes())["attributes"]


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """The `zarr.json` that makes a group of `folder`. OutputError: it cannot be written."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    with atomic_write(folder / "zarr.json") as file:
        file.write(json.dumps(group, indent=2).encode())


def parse_attributes(raw: object) -> StoreAttributes:
    """The attributes from parsed JSON.

    Raises:
        StoreError: not those of a tile store, of a later format, or malformed; says which entry.
    """
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise StoreError("not a wsiseg tile store")
    if raw.get("format") != FORMAT:
        raise StoreError(f"tile store of format {raw.get('format')!r}; this wsiseg reads format {FORMAT}")
    try:
        own = {key: value for key, value in raw.items() if key not in ("kind", "format")}
        attributes = record_of(StoreAttributes, {"backend": None} | own)
    except ValueError as error:
        raise StoreError(f"tile store attributes: {error}") from error
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
