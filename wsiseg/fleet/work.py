"""The one unit of work, here and on every cluster: one slide and its queries in, one file of outlines out."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from wsiseg import formats
from wsiseg.errors import ModelError, OutputError, SlideError, WsisegError
from wsiseg.files import make_folder, remove_leftovers
from wsiseg.fleet.claim import claimed
from wsiseg.fleet.jobs import Job
from wsiseg.fleet.record import (
    Record,
    Settings,
    as_written,
    check_as_written,
    claim_path,
    digest,
    last_done,
    output_name,
    output_path,
    read_record,
    record_path,
    request_fingerprint,
    work_path,
    write_record,
)
from wsiseg.geojson import read_collection
from wsiseg.inference import Segmenter
from wsiseg.pipeline import segment
from wsiseg.qupath import clean_text
from wsiseg.result import Result
from wsiseg.slide import open_slide
from wsiseg.tiles import TileStore, is_store
from wsiseg.under_way import under_way

_one_slide = threading.Lock()


def segment_slide(
    job: Job,
    out: Path,
    settings: Settings,
    model: Segmenter,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Segment one slide into `out`, unless its outlines are there already, made by the same things.

    What is wrong with the slide becomes a record that says so, never an exception: the next slide is another.
    Outlines that are there as GeoJSON are put into another format without the model.
    Killed at any moment it leaves the old output or the new one, whole, and a record only with its output; and the
    answers so far, from which the next call goes on.

    Raises:
        ClaimHeldError: another process is at work on it.
        OutputError: no record can be written, or the disk is full; the next slide will fare no better.
    """
    with claimed(claim_path(out, job)):
        begin = time.monotonic()
        known, slide_fingerprint, fingerprint = last_done(out, job), "", ""

        def failed(error: Exception) -> Record:
            seconds = round(time.monotonic() - begin, 2)
            reason = sentence(error)
            return tell_failed(job, out, settings, reason, slide_fingerprint=slide_fingerprint, seconds=seconds)

        try:
            slide_fingerprint = content_fingerprint(job, settings)
            if job.slide_fingerprint not in (None, slide_fingerprint):
                raise SlideError(
                    f"{job.source} is not the slide of the run that is to be repeated: its content differs"
                )
            fingerprint = work_fingerprint(job, settings, slide_fingerprint, model)
            if known.fingerprint == fingerprint and output_path(out, job, settings).exists():
                record = replace(known, source=job.source)
                if record != read_record(out, job):  # the slide was moved, or has failed since
                    write_record(out, job, record)
                shutil.rmtree(work_path(out, job), ignore_errors=True)
                return record
            check_as_written(out, output_name(job, settings), known)
            formats.check_source(settings.format, job.source)
            target = output_path(out, job, settings)
            make_folder(target.parent)
            formats.check_path(settings.format, target)
            plain = replace(settings, format=formats.DEFAULT)
            as_geojson = work_fingerprint(job, plain, slide_fingerprint, model)
            there = _outlines_there(job, out, plain, known, as_geojson)
            with under_way(job.name):
                result = there or _segment(job, out, settings, model, slide_fingerprint, progress)
        except Exception as error:
            return failed(error)
        geojson_stays = there is not None and output_name(job, settings) != output_name(job, plain)  # no detections
        try:
            _write(out, job, settings, known, result, geojson_stays)
        except OutputError:  # of the disk: what is wrong with this slide's output alone was refused above
            raise
        except Exception as error:
            return failed(error)
        polygons, area_um2 = (known.polygons, known.area_um2) if there else _count(result, job.queries)
        record = Record(
            source=job.source,
            status="done",
            fingerprint=fingerprint,
            request=request_fingerprint(job, settings),
            slide_fingerprint=slide_fingerprint,
            model={"name": model.name, "fingerprint": model.fingerprint},
            finished=now(),
            seconds=round(time.monotonic() - begin, 2),
            tiles=known.tiles if there else len(result.reasoning),
            skipped_tiles=len(result.run.get("skipped_tiles", ())),
            polygons=polygons,
            area_um2=area_um2,
            notes=result.notes,
            written={**known.written, **_digests(out, output_name(job, settings))},
            geojson=as_geojson if settings.format == formats.DEFAULT or geojson_stays else "",
        )
        write_record(out, job, record)
        shutil.rmtree(work_path(out, job), ignore_errors=True)
        return record


def tell_failed(
    job: Job, out: Path, settings: Settings, reason: str, *, slide_fingerprint: str = "", seconds: float = 0.0
) -> Record:
    """Write and return the record of a slide that failed; it remembers the outlines that are there from before."""
    known = last_done(out, job)
    record = Record(
        source=job.source,
        status="failed",
        request=request_fingerprint(job, settings),
        slide_fingerprint=slide_fingerprint,
        finished=now(),
        seconds=seconds,
        reason=reason,
        written=known.written,
        earlier=asdict(known) if known.status == "done" else {},
    )
    write_record(out, job, record)
    return record


def segment_slide_on_worker(job: Job, out: Path, settings: Settings, model: Segmenter | None) -> Record:
    """`segment_slide` in a worker of a cluster, which loads a model once and does one slide at a time.

    Raises:
        ModelError: there is no such model on the worker's host, or it is another one.
        ClaimHeldError, OutputError: as `segment_slide`.
    """
    with _one_slide:  # a worker with several threads has still one device, and one share of the memory
        return segment_slide(job, out, settings, model or load(settings))


@lru_cache(1)
def load(settings: Settings) -> Segmenter:
    """The model of a run.

    Raises:
        ModelError: unknown or damaged, or not the one that `settings.model_fingerprint` asks for.
    """
    from wsiseg.model import load_model

    return checked_model(load_model(settings.model, device=settings.device, weights=settings.weights), settings)


def checked_model(model: Segmenter, settings: Settings) -> Segmenter:
    """The same model. ModelError if it is not the one that `settings` asks for."""
    wanted = settings.model_fingerprint
    if wanted and model.fingerprint != wanted:
        raise ModelError(
            f"the model {model.name} is {model.fingerprint} here, and the run was made with {wanted}: "
            "give the folder of that model as --model"
        )
    return model


def content_fingerprint(job: Job, settings: Settings) -> str:
    """Of a slide's content, or of the slide and grid of a tile store.

    Raises:
        SlideError, MissingMppError, StoreError: it cannot be read.
    """
    if is_store(job.source):
        grid = TileStore.open(job.source).grid
        return f"{grid.slide.fingerprint}:{grid.fingerprint}"
    with open_slide(job.source, backend=settings.backend, slide_mpp=job.slide_mpp) as slide:
        return slide.fingerprint


def work_fingerprint(job: Job, settings: Settings, slide_fingerprint: str, model: Segmenter) -> str:
    """Hex digest of all that a slide's output depends on."""
    made_by = [request_fingerprint(job, settings), slide_fingerprint, model.name, model.fingerprint]
    return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat()


def _outlines_there(job: Job, out: Path, plain: Settings, known: Record, as_geojson: str) -> Result | None:
    """The same outlines, of the GeoJSON that an earlier run has written and nobody changed; without reasoning.

    plain: the settings with GeoJSON as format. as_geojson: the fingerprint that the outlines have then.
    """
    path, name = output_path(out, job, plain), output_name(job, plain)
    if known.status != "done" or known.geojson != as_geojson or not path.is_file() or not as_written(out, name, known):
        return None
    annotations, made_by = read_collection(path)
    if not is_store(job.source):  # it may have been moved, and some formats copy from the slide
        made_by["slide"] |= {"source": clean_text(job.source)}
    return Result(annotations=annotations, reasoning=[], run=made_by, notes=known.notes)


def _segment(
    job: Job,
    out: Path,
    settings: Settings,
    model: Segmenter,
    slide_fingerprint: str,
    progress: Callable[[int, int], None] | None,
) -> Result:
    result = segment(
        job.source,
        job.queries,
        model=model,
        slide_mpp=job.slide_mpp,
        backend=None if is_store(job.source) else settings.backend,
        mpp=settings.mpp,
        threshold=settings.threshold,
        min_area_um2=settings.min_area_um2,
        simplify_um=settings.simplify_um,
        separate=settings.separate,
        origin=settings.origin,
        batch_size=settings.batch_size,
        on_bad_tile=settings.on_bad_tile,
        cache=settings.cache,
        first_pass=settings.first_pass,
        deterministic=settings.deterministic,
        work=work_path(out, job),
        progress=progress,
    )
    if result.run["slide"]["fingerprint"] != slide_fingerprint.partition(":")[0]:
        raise SlideError(f"{job.source} changed while it was being read: run again")
    return result


def _write(out: Path, job: Job, settings: Settings, known: Record, result: Result, geojson_stays: bool) -> None:
    target = output_path(out, job, settings)
    # The record goes before the output that it speaks of is replaced: killed in between, the slide is done again, of
    # its GeoJSON if that stays.
    written = {**known.written, output_name(job, settings): ""}
    earlier = asdict(replace(known, fingerprint="", written=written)) if geojson_stays else {}
    write_record(out, job, Record(job.source, written=written, earlier=earlier))
    for path in (target, record_path(out, job)):
        remove_leftovers(path)
    result.write(target, settings.format)


def _digests(out: Path, name: str) -> dict[str, str]:
    """name → SHA-256 of a file of outlines; nothing of a folder."""
    return {name: digest(out / name)} if (out / name).is_file() else {}


def _count(result: Result, queries: tuple[str, ...]) -> tuple[dict[str, int], dict[str, float]]:
    """Outlines and their area in µm², per query."""
    polygons: dict[str, int] = defaultdict(int)
    area_um2: dict[str, float] = defaultdict(float)
    for annotation in result.annotations:
        polygons[annotation.name] += 1
        area_um2[annotation.name] += annotation.measurements["Area µm^2"]
    return {q: polygons[q] for q in queries}, {q: round(area_um2[q], 2) for q in queries}


def sentence(error: BaseException) -> str:
    """What went wrong, for the person at the keyboard."""
    said = " ".join(str(error).split())
    if isinstance(error, WsisegError):
        return said
    if isinstance(error, OSError):
        return error.strerror or said
    return f"{type(error).__name__}: {said}"
