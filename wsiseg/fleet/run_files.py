"""run.json and summary.csv: all slides of a run, put together from their records by whoever ends last.

A run.json repeats its run exactly.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsiseg import __version__
from wsiseg.errors import FleetError, OutputError
from wsiseg.files import atomic_write, remove_leftovers
from wsiseg.fleet.claim import one_at_a_time
from wsiseg.fleet.jobs import Job
from wsiseg.fleet.record import Record, Settings, current, output_name, read_record, write_json
from wsiseg.formats import FORMATS
from wsiseg.strict import record_of

_DAY_S = 86400.0
SUMMARY_COLUMNS = (
    "slide", "label", "query", "status", "polygons", "area_um2", "tiles", "skipped_tiles", "seconds", "output",
    "reason",
)  # fmt: skip


def write_run(out: Path, jobs: Sequence[Job], settings: Settings) -> list[Record]:
    """Write run.json and summary.csv of all jobs, as their records stand, and return these in order.

    Raises:
        OutputError: one of them cannot be written; it is then as it was.
    """
    try:
        with one_at_a_time(out / ".wsiseg"):  # so that of two shards that end together the later one sees all
            for path in (out / "run.json", out / "summary.csv"):
                remove_leftovers(path, older_s=_DAY_S)  # not every disk has locks: another process may be writing
            records = [current(job, read_record(out, job), settings) for job in jobs]
            write_json(out / "run.json", _run(jobs, records, settings))
            with atomic_write(out / "summary.csv") as file:
                file.write(_summary(jobs, records, settings).encode("utf-8", "replace"))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    return records


def read_run(path: str | os.PathLike[str]) -> tuple[list[Job], Settings]:
    """Jobs and settings that repeat the run of a run.json exactly: the same slides, the same model.

    Raises:
        FleetError: it cannot be read, or is no run.json of this version's making.
    """
    try:
        run = json.loads(Path(path).read_bytes())
        if run["version"] != __version__:
            raise FleetError(
                f"{path} was made by wsiseg {run['version']} and this is {__version__}: only the same version "
                "repeats a run exactly"
            )
        model = {"model": run["model"]["source"], "model_fingerprint": run["model"].get("fingerprint")}
        settings = record_of(Settings, {**run["parameters"], **model}, "parameters")
        suffix = FORMATS[settings.format].suffix
        jobs = [_job(slide, suffix, f"slides[{i}]") for i, slide in enumerate(run["slides"])]
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror or error}") from error
    except FleetError:
        raise
    except KeyError as error:
        raise FleetError(f"{path} is not the run.json of a wsiseg run: it has no {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FleetError(f"{path} is not the run.json of a wsiseg run: {error}") from error
    return jobs, settings


def _job(slide: dict[str, Any], suffix: str, where: str) -> Job:
    told = {key: slide[key] for key in ("source", "queries", "slide_mpp", "label")}
    name = _inner(slide["output"].removesuffix(suffix))
    return record_of(Job, {**told, "name": name, "slide_fingerprint": slide["slide_fingerprint"] or None}, where)


def _run(jobs: Sequence[Job], records: Sequence[Record], settings: Settings) -> dict[str, Any]:
    made_by = next((record.model for record in records if record.status == "done"), {})
    parameters = asdict(settings)
    source, fingerprint = parameters.pop("model"), parameters.pop("model_fingerprint")
    return {
        "version": __version__,
        "python": platform.python_version(),
        "model": {"source": source} | ({"fingerprint": fingerprint} if fingerprint else {}) | made_by,
        "parameters": parameters,
        "slides": [
            {
                **{key: value for key, value in asdict(record).items() if key != "earlier"},
                "source": job.source,
                "output": output_name(job, settings),
                "queries": job.queries,
                "slide_mpp": job.slide_mpp,
                "label": job.label,
            }
            for job, record in zip(jobs, records, strict=True)
        ],
    }


def _summary(jobs: Sequence[Job], records: Sequence[Record], settings: Settings) -> str:
    """One row for each slide and query."""
    text = io.StringIO(newline="")
    # With "\n" as its end of a row, csv would leave a lone "\r", at which other readers end one, without quotes.
    table = csv.DictWriter(text, SUMMARY_COLUMNS, lineterminator="\r\n")
    table.writeheader()
    for job, record in zip(jobs, records, strict=True):
        for query in job.queries:
            done = record.status == "done"
            table.writerow(
                {
                    "slide": job.source,
                    "label": job.label,
                    "query": query,
                    "status": record.status,
                    "polygons": record.polygons.get(query, 0) if done else "",
                    "area_um2": f"{record.area_um2.get(query, 0):.2f}" if done else "",
                    "tiles": record.tiles if done else "",
                    "skipped_tiles": record.skipped_tiles if done else "",
                    "seconds": f"{record.seconds:.2f}" if done else "",
                    "output": output_name(job, settings) if done else "",
                    "reason": record.reason,
                }
            )
    return text.getvalue().replace("\r\n", "\n")


def _inner(name: str) -> str:
    """The same name, if its files stay within the output folder."""
    parts = name.split("/")
    if "\\" in name or "\0" in name or any(not part or part.startswith(".") for part in parts):
        raise FleetError(f"the output {name!r} lies outside the output folder")
    return name
