"""Outlines in the files that other programs read. One module a format, one road to all of them: annotations, and
the `run` that says what made them and on which slide they lie (`geojson.read_collection` gives both).

    write(annotations, run, "out.parquet")                    # by suffix
    write(annotations, run, "nuclei.geojson", "detections")   # by name

GeoJSON and GeoParquet keep all that is known of an outline. The others have no place for some of it; what each
keeps stands in docs/output.md. They also leave out what a person rejected, which they could not tell.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wsiseg.errors import OutputError
from wsiseg.files import atomic_folder, atomic_write, check_writable

if TYPE_CHECKING:
    from wsiseg.geojson import Annotation


@dataclass(frozen=True)
class Format:
    """module: of this package, with `write(annotations, run, file)`; of a folder, `write(annotations, run, folder)`.

    suffix: of the files that it writes in a folder of many. needs: a package of the extra `formats`.
    """

    module: str
    suffix: str
    needs: str = ""
    is_folder: bool = False


DEFAULT = "geojson"
FORMATS = {
    "geojson": Format("annotations", ".geojson"),
    "detections": Format("detections", ".geojson"),
    "geoparquet": Format("geoparquet", ".parquet", needs="pyarrow"),
    "asap": Format("asap", ".xml"),
    "ome-zarr": Format("ome_zarr", ".ome.zarr", is_folder=True),
    "dicom-ann": Format("dicom_ann", ".dcm", needs="highdicom"),
}
_BY_SUFFIX = {".parquet": "geoparquet", ".geoparquet": "geoparquet", ".xml": "asap", ".zarr": "ome-zarr", ".dcm": "dicom-ann"}


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a file's suffix names; GeoJSON if it names none."""
    return _BY_SUFFIX.get(Path(path).suffix.lower(), DEFAULT)


def check(name: str, path: str | os.PathLike[str] | None, source: str | os.PathLike[str]) -> None:
    """Find out before hours of work, not after, whether `write` would fail.

    Args:
        path: what is to be written; None for stdout. source: the slide, or a tile store of it.

    Raises:
        WsisegError: `path` cannot be written, a package is missing, or the format is not for this slide.
    """
    kind = FORMATS[name]
    if path is None:
        if kind.is_folder:
            raise OutputError(f"{name} is a folder, which stdout cannot carry: give --out FOLDER{kind.suffix}")
    else:
        check_writable(path, replaces=_writer(name).is_ours if kind.is_folder else None)
    if kind.needs and find_spec(kind.needs) is None:
        raise OutputError(f"{name} needs {kind.needs}: `pip install 'wsiseg[formats]'`")
    if name == "dicom-ann":
        _writer(name).check_source(source)


def write(
    annotations: Sequence[Annotation],
    run: Mapping[str, Any],
    path: str | os.PathLike[str],
    name: str | None = None,
) -> None:
    """Write a file, or a folder, whole or not at all. name: a key of `FORMATS`; None chooses by suffix.

    Raises:
        OutputError: it cannot be written, or a package is missing.
        GeoJSONError: an outline has no area, or `run` does not say what the format has to know of the slide.
    """
    name = name or format_of(path)
    if name not in FORMATS:
        raise OutputError(f"there is no format {name!r}, but {', '.join(FORMATS)}")
    if not FORMATS[name].is_folder:
        with atomic_write(path) as file:
            stream(annotations, run, file, name)
        return
    writer = _writer(name)
    with atomic_folder(path, replaces=writer.is_ours) as folder:
        writer.write(annotations, run, folder)


def stream(annotations: Sequence[Annotation], run: Mapping[str, Any], file: IO[bytes], name: str = DEFAULT) -> None:
    """As `write`, to an open binary file; not for formats that are folders."""
    _writer(name).write(annotations, run, file)


def _writer(name: str) -> Any:
    kind = FORMATS[name]
    try:
        return import_module(f"wsiseg.formats.{kind.module}")
    except ImportError as error:
        if not kind.needs:
            raise
        raise OutputError(f"{name} needs {kind.needs}: `pip install 'wsiseg[formats]'` ({error})") from error
