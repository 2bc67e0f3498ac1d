"""What is known of every slide of an output folder: a record each, and what it was asked with.

    results/sub/a.svs.geojson           the outlines, or .parquet, .xml, … in another format
    results/run.json, summary.csv       all slides of the run, put together from the records: `run_files.py`
    results/.wsiseg/sub/a.svs.json      one record a slide: shards of a run never write the same file
    results/.wsiseg/sub/a.svs.claim     whose work it is, while it lasts
    results/.wsiseg/sub/a.svs.answers/  what the model has answered so far, until the outlines are written
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from wsiseg import __version__
from wsiseg.errors import FleetError, OutputError, QueryError
from wsiseg.files import atomic_write, make_folder
from wsiseg.fleet.jobs import Job
from wsiseg.formats import DEFAULT, FORMATS
from wsiseg.mask.regions import Origin
from wsiseg.model.config import Weights
from wsiseg.plan import check_parameters
from wsiseg.tiles import OnBadTile

# The model counts by its own fingerprint.
_HOW_FAST = ("model", "model_fingerprint", "batch_size", "device", "cache")


@dataclass(frozen=True)
class Settings:
    """What all slides of a run share; the arguments of `wsiseg.segment`, and the format of its result.

    model: name or folder; None is the bundled one. model_fingerprint: that it must have; None takes any.
    FleetError: there is no such format, or a number is out of its range.
    """

    model: str | None = None
    model_fingerprint: str | None = None
    backend: str | None = None
    mpp: float | None = None
    threshold: float = 0.5
    min_area_um2: float = 10.0
    simplify_um: float | None = None
    separate: bool | None = None
    origin: Origin = "qupath"
    batch_size: int | None = None
    device: str | None = None
    on_bad_tile: OnBadTile = "stop"
    cache: bool = True
    weights: Weights = "full"
    first_pass: bool = False
    deterministic: bool = False
    format: str = DEFAULT

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise FleetError(f"there is no format {self.format!r}, but {', '.join(FORMATS)}")
        try:
            check_parameters(
                mpp=self.mpp,
                threshold=self.threshold,
                min_area_um2=self.min_area_um2,
                simplify_um=self.simplify_um,
                origin=self.origin,
                batch_size=self.batch_size,
                on_bad_tile=self.on_bad_tile,
            )
        except QueryError as error:
            raise FleetError(str(error)) from error


@dataclass(frozen=True)
class Record:
    """How one slide of a run stands.

    fingerprint: of all that the outlines depend on; the same one means the same outlines. request: of that
    part of it which is known before slide and model are opened. finished: when, ISO 8601.
    polygons, area_um2: per query. tiles: looked at, over all queries. skipped_tiles: left out,
    as they could not be read. reason: why it failed.
    notes: for each query without an outline, a sentence that says so.
    written: SHA-256 of each file of outlines when it was written, by its name in the output folder; "" while it is.
    geojson: the fingerprint that the same outlines have as GeoJSON, where a run wrote them so; of that other formats
    are made.
    earlier: of a slide that failed, or whose GeoJSON is being put into another format, the record of the outlines that
    are there from before.
    """

    source: str
    status: Literal["pending", "done", "failed"] = "pending"
    fingerprint: str = ""
    request: str = ""
    slide_fingerprint: str = ""
    model: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    seconds: float = 0.0
    tiles: int = 0
    skipped_tiles: int = 0
    polygons: dict[str, int] = field(default_factory=dict)
    area_um2: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    geojson: str = ""
    earlier: dict[str, Any] = field(default_factory=dict)


def output_path(out: Path, job: Job, settings: Settings) -> Path:
    return out / output_name(job, settings)


def output_name(job: Job, settings: Settings) -> str:
    return job.name + FORMATS[settings.format].suffix


def record_path(out: Path, job: Job) -> Path:
    return out / ".wsiseg" / f"{job.name}.json"


def claim_path(out: Path, job: Job) -> Path:
    return out / ".wsiseg" / f"{job.name}.claim"


def work_path(out: Path, job: Job) -> Path:
    return out / ".wsiseg" / f"{job.name}.answers"


def read_record(out: Path, job: Job) -> Record:
    """The record of a job; "pending" where there is none, or one that is damaged.

    Raises:
        OutputError: there is one, and it cannot be read: it may tell of work that must not be lost.
    """
    path = record_path(out, job)
    try:
        # Records of earlier makes say nothing of the first three.
        known = {"written": {}, "geojson": "", "earlier": {}, **json.loads(path.read_bytes())}
        return Record(**{f.name: known[f.name] for f in fields(Record)})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Record(source=job.source)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def last_done(out: Path, job: Job) -> Record:
    """The record of the outlines that are there, though the slide may have failed since; else as `read_record`."""
    record = read_record(out, job)
    return Record(**record.earlier) if record.earlier else record


def as_written(out: Path, name: str, record: Record) -> bool:
    """Whether the file `name` of outlines is what the run of `record` wrote or was writing, or is not there."""
    wrote = record.written.get(name)
    return wrote == "" or not (out / name).is_file() or digest(out / name) == wrote


def check_as_written(out: Path, name: str, record: Record) -> None:
    """FleetError if the file `name`, about to be replaced, is what a person made or corrected."""
    if not as_written(out, name, record):
        found = "was changed after wsiseg wrote it" if name in record.written else "is of no run in this folder"
        raise FleetError(f"{out / name} {found}, and this run would replace it: move it away, or choose another --out")


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(out: Path, job: Job, record: Record) -> None:
    """OutputError if that fails."""
    make_folder(record_path(out, job).parent)
    write_json(record_path(out, job), asdict(record))


def request_fingerprint(job: Job, settings: Settings) -> str:
    """Hex digest of what is asked for, wherever the slide lies: version, queries, settings that change outlines."""
    asked = {
        "version": __version__,
        "queries": job.queries,
        "slide_mpp": job.slide_mpp,
        "settings": {key: v for key, v in asdict(settings).items() if key not in _HOW_FAST},
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def current(job: Job, record: Record, settings: Settings) -> Record:
    """The record, unless it is of an earlier run that asked for something else: then "pending"."""
    wanted = settings.model_fingerprint
    same_model = not wanted or not record.model or record.model["fingerprint"] == wanted
    if record.request == request_fingerprint(job, settings) and same_model:
        return record
    return Record(source=job.source)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        # The standard library's, unlike orjson, keeps file names that are no Unicode.
        file.write(json.dumps(value, indent=1).encode() + b"\n")
