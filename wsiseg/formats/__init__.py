"""Outlines in the files that other programs read. One module a format, one road to all of them: annotations, and
the `run` that says what made them and on which slide they lie (`geojson.read_collection` gives both).

    write(annotations, run, "out.parquet")                    # by suffix
    write(annotations, run, "nuclei.geojson", "detections")   # by name

GeoJSON and GeoParquet keep all that is known of an outline. The others have no place for some of it: docs/output.md
says what each keeps.
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
from wsiseg.files import atomic_folder, atomic_write, check_writable, packed_write
from wsiseg.review import is_kept

if TYPE_CHECKING:
    from wsiseg.geojson import Annotation


@dataclass(frozen=True)
class Format:
    """module: of this package, with `write(annotations, run, file)`; of a folder, `write(annotations, run, folder)`.

    suffix: of the files that it writes in a folder of many. needs: a package of the extra `formats`.
    tells_reviews: whether it has a place for what a person decided; if not, what was rejected is left out.
    """

    module: str
    suffix: str
    needs: str = ""
    is_folder: bool = False
    tells_reviews: bool = False


DEFAULT = "geojson"
FORMATS = {
    "geojson": Format("annotations", ".geojson", tells_reviews=True),
    "detections": Format("detections", ".geojson", tells_reviews=True),
    "geoparquet": Format("geoparquet", ".parquet", needs="pyarrow", tells_reviews=True),
    "asap": Format("asap", ".xml"),
    "ome-zarr": Format("ome_zarr", ".ome.zarr", is_folder=True),
    "dicom-ann": Format("dicom_ann", ".dcm", needs="highdicom"),
}
_BY_SUFFIX = {
    ".parquet": "geoparquet",
    ".geoparquet": "geoparquet",
    ".xml": "asap",
    ".zarr": "ome-zarr",
    ".dcm": "dicom-ann",
}


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a file's suffix names; GeoJSON if it names none."""
    return _BY_SUFFIX.get(Path(path).suffix.lower(), DEFAULT)


def check_path(name: str, path: str | os.PathLike[str] | None) -> None:
    """Raise OutputError now if `write` could not even begin; `path` None is stdout."""
    kind = FORMATS[name]
    if path is not None:
        check_writable(path, replaces=_writer(name).is_ours if kind.is_folder else None)
    elif kind.is_folder:
        raise OutputError(f"{name} is a folder, which stdout cannot carry: give --out NAME{kind.suffix}")


def check_source(name: str, source: str | os.PathLike[str]) -> None:
    """Raise OutputError now if outlines of this slide, or tile store of one, could not be written."""
    check_packages(name)
    if name == "dicom-ann":
        _writer(name).check_source(source)


def check_packages(name: str) -> None:
    """OutputError if one is missing."""
    needs = FORMATS[name].needs
    if needs and find_spec(needs) is None:
        raise OutputError(f'{name} needs {needs}: `pip install "wsiseg[formats]"`')


def write(
    annotations: Sequence[Annotation],
    run: Mapping[str, Any],
    path: str | os.PathLike[str],
    name: str | None = None,
) -> None:
    """Write a file, or a folder, whole or not at all. name: a key of `FORMATS`; None chooses by suffix.

    GeoJSON is compressed if `path` ends in .gz.

    Raises:
        OutputError: it cannot be written, or a package is missing.
        GeoJSONError: an outline has no area, or `run` does not say what the format has to know of the slide.
    """
    name = name or format_of(path)
    if name not in FORMATS:
        raise OutputError(f"there is no format {name!r}, but {', '.join(FORMATS)}")
    if not FORMATS[name].is_folder:
        is_geojson = FORMATS[name].suffix == FORMATS[DEFAULT].suffix
        with (packed_write if is_geojson else atomic_write)(path) as file:
            stream(annotations, run, file, name)
        return
    writer = _writer(name)
    with atomic_folder(path, replaces=writer.is_ours) as folder:
        writer.write(written(annotations, name), run, folder)


def stream(annotations: Sequence[Annotation], run: Mapping[str, Any], file: IO[bytes], name: str = DEFAULT) -> None:
    """As `write`, to an open binary file; not for formats that are folders."""
    _writer(name).write(written(annotations, name), run, file)


def written(annotations: Sequence[Annotation], name: str) -> Sequence[Annotation]:
    """Those that a format writes: not the rejected, where it could not tell that they are."""
    return annotations if FORMATS[name].tells_reviews else [a for a in annotations if is_kept(a.metadata)]


def _writer(name: str) -> Any:
    check_packages(name)
    return import_module(f"wsiseg.formats.{FORMATS[name].module}")
