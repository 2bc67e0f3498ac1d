"""What to do: the slides of a folder or of a CSV manifest, each with its queries and the name of its output."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from wsiseg.errors import FleetError
from wsiseg.pipeline import clean_queries
from wsiseg.slide.dicom import first_of_series
from wsiseg.slide.source import is_url
from wsiseg.tiles import is_store

Mpp = float | tuple[float, float]

TIFF_SUFFIXES = (".btf", ".qptiff", ".scn", ".svs", ".svslide", ".tif", ".tiff")
SLIDE_SUFFIXES = frozenset((*TIFF_SUFFIXES, ".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".vms", ".vmu", ".zarr"))
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png"))
COLUMNS = ("slide", "query", "slide_mpp", "label")
_MAX_NAME_BYTES = 200  # of a part of a path: file systems take 255, and suffixes are added

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One slide to segment.

    source: absolute path or URL. name: path of its files within the output folder, without a suffix.
    queries: one text, or several; none for a slide that is only to be tiled. QueryError: one is empty.
    slide_mpp: microns per level-0 pixel where the file does not say. label: copied to the summary.
    slide_fingerprint: of the slide that must be found there; None takes any.
    """

    source: str
    name: str
    queries: tuple[str, ...]
    slide_mpp: Mpp | None = None
    label: str = ""
    slide_fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.queries:
            object.__setattr__(self, "queries", tuple(clean_queries(self.queries)))


def jobs_in_folder(
    folder: str | os.PathLike[str],
    queries: Sequence[str] | None,
    *,
    recursive: bool = False,
    slide_mpp: Mpp | None = None,
) -> list[Job]:
    """The slides of a folder in the order of their names, by suffix: a broken one is to be reported, not missed.

    Plain images count only with `slide_mpp`, which they do not state; hidden files and folders, and DICOM annotations,
    never. The files of one DICOM series in one folder are one slide, which has the name of the first. Tile stores
    (`.zarr`) are slides too, unless nothing is asked: `queries` None. Links to folders, and subfolders that cannot be
    read, are left out, with a warning.

    Raises:
        FleetError: the folder cannot be read, or holds no slides.
        QueryError: a query is empty.
    """
    root, asked = Path(folder), () if queries is None else tuple(clean_queries(queries))
    suffixes = SLIDE_SUFFIXES if slide_mpp is None else SLIDE_SUFFIXES | IMAGE_SUFFIXES
    if queries is None:
        suffixes -= {".zarr"}
    links: list[Path] = []
    closed: list[OSError] = []
    try:
        found = first_of_series(sorted(_slides(root, suffixes, recursive, links, closed)))
    except OSError as error:
        raise FleetError(f"cannot read {error.filename or root}: {error.strerror or error}") from error
    unseen = [path for path in links if not path.with_name(f"{path.name}.mrxs").exists()]  # not the data of a slide
    if unseen:
        log.warning("links to folders are not followed: %s%s", min(unseen), _and_more(unseen))
    if closed:
        first = closed[0]
        log.warning("left out, cannot be read: %s%s: %s", first.filename, _and_more(closed), first.strerror)
    if not found:
        deeper = "" if recursive else "; --recursive looks in its subfolders too"
        raise FleetError(
            f"no slides in {root}{deeper} (plain images need --slide-mpp)"
        )
    return without_collisions(
        Job(
            source=os.path.abspath(path),
            name=_safe_name(path.relative_to(root).parts),
            queries=asked,
            # A store has its scale already and refuses another.
            slide_mpp=None if path.suffix.lower() == ".zarr" else slide_mpp,
        )
        for path in found
    )


def read_manifest(
    path: str | os.PathLike[str], queries: Sequence[str] = (), *, slide_mpp: Mpp | None = None
) -> list[Job]:
    """The slides that a CSV file names, in its order.

    Columns: `slide` (path from the manifest's folder, absolute path or URL), and if wanted `query`, `slide_mpp`
    (`0.25` or `0.25 0.26`) and `label`. Several rows of one slide are several queries of it. What a row leaves
    empty is taken from `queries` and `slide_mpp`, which is not for tile stores: these have their scale. Cells
    may be separated by semicolons, as Excel does where the comma is the decimal sign: it is then one here, too.

    Raises:
        FleetError: not such a CSV (line and column are named), a slide without a query, a tile store with a
            slide_mpp, or two slides whose outputs would have the same name.
        QueryError: a query is empty.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FleetError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from error
    jobs: dict[str, Job] = {}
    for line, row in _rows(path, text):
        source, name = _placed(row["slide"], Path(os.path.abspath(path)).parent)
        own_mpp = _mpp(row["slide_mpp"], f"{path}, line {line}")
        has_scale = is_store(source)
        if has_scale and own_mpp:
            raise FleetError(f"{path}, line {line}: {row['slide']} is a tile store, which has its scale: no slide_mpp")
        job = Job(
            source=source,
            name=name,
            queries=tuple(clean_queries(row["query"] or queries)) if row["query"] or queries else (),
            slide_mpp=own_mpp or (None if has_scale else slide_mpp),
            label=row["label"],
        )
        if not job.queries:
            raise FleetError(f"{path}, line {line}: no query; fill the column `query`, or give --query")
        known = jobs.setdefault(source, job)
        if (known.slide_mpp, known.label) != (job.slide_mpp, job.label):
            raise FleetError(f"{path}, line {line}: {row['slide']} has another slide_mpp or label further up")
        jobs[source] = replace(known, queries=known.queries + job.queries)  # a Job keeps each once
    if not jobs:
        raise FleetError(f"{path} names no slides")
    return without_collisions(jobs.values())


def take_shard(jobs: Sequence[Job], shard: tuple[int, int]) -> list[Job]:
    """Every n-th job from the i-th on, for shard (i, n) with i from 1: together the n shards are all jobs."""
    i, n = shard
    return list(jobs[i - 1 :: n])


def slurm_shard(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """(i, n) with i from 1 of a SLURM array task, None outside one.

    Raises:
        FleetError: the array has gaps, so that its ids do not count its tasks.
    """
    try:
        task, first, last, count = (
            int(environment[f"SLURM_ARRAY_TASK_{key}"]) for key in ("ID", "MIN", "MAX", "COUNT")
        )
    except (KeyError, ValueError):
        return None
    if last - first + 1 != count:
        raise FleetError(
            f"the SLURM array {first} to {last} has only {count} tasks: leave no gaps, or give --shard i/n"
        )
    return task - first + 1, count


def _and_more(found: Sequence[object]) -> str:
    return f" and {len(found) - 1} more" if len(found) > 1 else ""


def _slides(
    folder: Path, suffixes: frozenset[str], recursive: bool, links: list[Path], closed: list[OSError]
) -> Iterator[Path]:
    """links: takes those to folders, which are not followed. closed: takes why subfolders could not be read."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path, suffix = Path(entry.path), os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                if suffix in suffixes and suffix != ".zarr":
                    yield path
            elif suffix == ".zarr":  # never looked into: a store has thousands of files
                if suffix in suffixes and is_store(path):
                    yield path
            elif recursive and entry.is_symlink():  # it may lead back up
                links.append(path)
            elif recursive:
                try:
                    yield from _slides(path, suffixes, recursive, links, closed)
                except OSError as error:  # such as lost+found: no reason to leave the others alone
                    closed.append(error)


def _rows(path: str | os.PathLike[str], text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> text) of the rows that hold anything."""
    # What Excel writes where the comma is the decimal sign.
    semicolons = ";" in text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if semicolons else ",", strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        unknown = [cell for cell in header if cell not in COLUMNS]
        if "slide" not in header or unknown or len(set(header)) != len(header):
            raise FleetError(
                f"{path}: the first line names the columns, {', '.join(COLUMNS)} (only `slide` must be there); "
                f"it is {','.join(header)[:80]!r}"
            )
        for cells in reader:
            values = [cell.strip() for cell in cells]
            if not any(values):
                continue
            if len(values) != len(header):
                raise FleetError(
                    f"{path}, line {reader.line_num}: {len(values)} cells under {len(header)} columns"
                )
            row = dict.fromkeys(COLUMNS, "") | dict(zip(header, values, strict=True))
            if semicolons:
                row["slide_mpp"] = row["slide_mpp"].replace(",", ".")
            if not row["slide"] or "\0" in row["slide"]:
                raise FleetError(f"{path}, line {reader.line_num}: no slide is named")
            yield reader.line_num, row
    except csv.Error as error:
        raise FleetError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _mpp(text: str, where: str) -> Mpp | None:
    """`0.25`, or `0.25 0.26` for x and y; None for an empty cell."""
    if not text:
        return None
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 < number < math.inf for number in numbers):
        raise FleetError(f"{where}: slide_mpp is {text!r}, not a number such as 0.25, or two such as `0.25 0.26`")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _placed(slide: str, folder: Path) -> tuple[str, str]:
    """Absolute path or URL of what a manifest in `folder` calls `slide`, and the name of its output."""
    if is_url(slide):
        try:
            parts = urlsplit(slide.rsplit("::", 1)[-1])
        except ValueError as error:
            raise FleetError(f"{slide!r} is no URL: {error}") from error
        # Without the query string, where signed URLs carry their secret.
        return slide, _safe_name([parts.scheme, parts.netloc.rpartition("@")[2], *unquote(parts.path).split("/")])
    source = Path(os.path.normpath(folder / os.path.expanduser(slide)))
    inside = source.is_relative_to(folder)
    return str(source), _safe_name((source.relative_to(folder) if inside else source).parts)


def _safe_name(parts: Sequence[str]) -> str:
    """A relative path of parts that mean nothing to any file system: never up, never hidden, never too long."""
    cleaned = [re.sub(r'[\x00-\x1f<>:"/\\|?*\ud800-\udfff]+|^\.+|[. ]+$', "_", part) for part in parts]
    cut = [part.encode()[:_MAX_NAME_BYTES].decode(errors="ignore") for part in cleaned]
    return "/".join(part for part in cut if part.strip("_")) or "_"


def without_collisions(jobs: Iterable[Job]) -> list[Job]:
    """The same jobs, each once. FleetError if two of them would write the same files."""
    names: dict[str, Job] = {}
    for job in jobs:
        # Not every file system tells a.svs from A.svs.
        other = names.setdefault(job.name.casefold(), job)
        if other != job:
            raise FleetError(
                f"{other.source} and {job.source} would both write {job.name} there: run them apart, "
                "each with its own --out"
            )
    return list(names.values())
