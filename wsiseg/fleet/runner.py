"""All slides of a run: one after another in this process, or spread over a Dask cluster that is there already."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from wsiseg import formats
from wsiseg.errors import FleetError, OutputError, WsisegError
from wsiseg.files import make_folder
from wsiseg.fleet.claim import ClaimHeldError
from wsiseg.fleet.jobs import Job, take_shard, without_collisions
from wsiseg.fleet.record import (
    Record,
    Settings,
    check_as_written,
    claim_path,
    current,
    last_done,
    output_name,
    output_path,
)
from wsiseg.fleet.run_files import write_run
from wsiseg.fleet.work import (
    checked_model,
    content_fingerprint,
    load,
    segment_slide,
    segment_slide_on_worker,
    tell_failed,
)
from wsiseg.inference import Segmenter
from wsiseg.model import BUNDLED

POLL_S = 1.0
MAX_DEATHS = 4  # of workers over one slide; as many as Dask allows a task
PATIENCE_S = 10.0  # until it is told that a scheduler has no worker

log = logging.getLogger(__name__)


class Report(Protocol):
    """What a run tells while it goes on."""

    def running(self, job: Job, done: int, total: int) -> None:
        """So many tiles of a slide are done; only of slides in this process."""

    def held(self, job: Job, by: str) -> None:
        """Another process is at work on a slide; this one waits for it, and takes over if it dies."""

    def finished(self, job: Job, record: Record, kept: bool) -> None:
        """A slide is done, failed, or was done before (kept)."""


class Silent:
    """A report to nobody."""

    def running(self, job: Job, done: int, total: int) -> None: ...

    def held(self, job: Job, by: str) -> None: ...

    def finished(self, job: Job, record: Record, kept: bool) -> None: ...


def run(
    jobs: Sequence[Job],
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    model: Segmenter | None = None,
    scheduler: str | None = None,
    shard: tuple[int, int] = (1, 1),
    report: Report | None = None,
) -> list[Record]:
    """Segment slides into a folder: `out/NAME.geojson` each, `out/run.json` and `out/summary.csv` of all.

    With another `settings.format` the outlines have its suffix.

    What is there already, made by the same things, is kept. A slide that fails is recorded with its reason, and
    the others are done. Any number of runs may work on one folder, at once or one after another.

    Args:
        model: a loaded model in place of `settings.model`; to a cluster it is sent with every slide.
        scheduler: address of a Dask scheduler whose workers share the disk; None works in this process.
        shard: (i, n), i from 1: do only every n-th slide, from the i-th on.

    Returns:
        The records of the shard's slides, in the order of `jobs`.

    Raises:
        FleetError: two jobs have the same name, `out` holds the outlines of other slides of the same name, or
            outlines that somebody made or changed and this run would replace, or there is no such scheduler.
        ModelError: there is no such model.
        OutputError: the folder cannot be written, or a package for the format is missing. What is done stays; the
            same call goes on from there.
    """
    folder = Path(os.path.abspath(out))
    formats.check_packages((settings or Settings()).format)
    settings, report, jobs = _placed(settings or Settings()), report or Silent(), without_collisions(jobs)
    mine = take_shard(jobs, shard)
    make_folder(folder / ".wsiseg")
    _refuse_other_slides(jobs, folder, settings)
    _refuse_changed_outlines(mine, folder, settings)
    _tell_replaced_queries(mine, folder, settings)
    write_run(folder, jobs, settings)
    try:
        if scheduler is None:
            segmenter = checked_model(model, settings) if model else load(settings)
            settings = replace(settings, model_fingerprint=segmenter.fingerprint)
            _refuse_changed_outlines(mine, folder, settings)
            steps = _here(mine, folder, settings, segmenter, report)
        else:
            steps = _on_cluster(mine, folder, settings, model, scheduler, report)
        before = {job.name: last_done(folder, job).finished for job in mine}
        for job, record in steps:
            report.finished(job, record, kept=record.finished == before[job.name])
            if record.model:
                settings = replace(settings, model_fingerprint=record.model["fingerprint"])
    except BaseException:
        with suppress(OutputError):  # what happened first is what is told
            write_run(folder, jobs, settings)
        raise
    records = dict(zip((job.name for job in jobs), write_run(folder, jobs, settings), strict=True))
    return [records[job.name] for job in mine]


def _placed(settings: Settings) -> Settings:
    """With the model's folder as every process will find it, wherever that runs."""
    if settings.model in (None, BUNDLED) or not os.path.isdir(str(settings.model)):
        return settings
    return replace(settings, model=os.path.abspath(str(settings.model)))


def _here(
    jobs: Sequence[Job], out: Path, settings: Settings, model: Segmenter, report: Report
) -> Iterator[tuple[Job, Record]]:
    # Claimed slides last: others are at them, or died of them, and would die of them again before the rest is done.
    waiting, held = deque(sorted(jobs, key=lambda job: claim_path(out, job).exists())), 0
    while waiting:
        job = waiting.popleft()

        def progress(done: int, total: int, job: Job = job) -> None:
            report.running(job, done, total)

        try:
            record = segment_slide(job, out, settings, model, progress=progress)
        except ClaimHeldError as error:
            report.held(job, str(error))
            waiting.append(job)
            held += 1
            if held >= len(waiting):  # all that is left is in other hands
                time.sleep(POLL_S)
                held = 0
            continue
        held = 0
        yield job, record


def _on_cluster(
    jobs: Sequence[Job],
    out: Path,
    settings: Settings,
    model: Segmenter | None,
    scheduler: str,
    report: Report,
) -> Iterator[tuple[Job, Record]]:
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise FleetError('--scheduler needs the scheduler of Dask: `pip install "wsiseg[cluster]"`') from error
    try:
        client = Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise FleetError(f"no Dask scheduler answers at {scheduler}: start one with `dask scheduler`") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError:
            log.warning("the Dask scheduler at %s has no worker yet: waiting for the first", scheduler)
            client.wait_for_workers(1)
        # Where workers offer GPUs a slide takes one, so that a worker without has nothing to do.
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None

        def submit(job: Job) -> Any:
            key = f"wsiseg-{job.name}-{secrets.token_hex(4)}"
            work = (job, out, settings, model)
            return client.submit(segment_slide_on_worker, *work, key=key, resources=resources, pure=False)

        holders: dict[str, set[str]] = defaultdict(set)  # of each slide, who had it when a worker was to begin it
        reason = "several workers died over this slide, perhaps for want of memory: see their logs"
        futures = {submit(job): job for job in jobs}
        ended = as_completed(list(futures), loop=client.loop)
        for future in ended:
            job = futures.pop(future)
            failure = future.exception()
            if isinstance(failure, ClaimHeldError):
                # Whoever is not the last has died over it. Dask, to which each trial is a new task, cannot know.
                holders[job.name] |= {failure.claim} - {""}  # "": given back, or not written yet
                if len(holders[job.name]) > MAX_DEATHS:
                    yield job, tell_failed(job, out, settings, reason)
                    continue
                report.held(job, str(failure))
                time.sleep(POLL_S)
                again = submit(job)
                futures[again] = job
                ended.add(again)
            elif failure is None:
                try:
                    record = future.result()
                except CancelledError as error:
                    raise FleetError(f"lost the Dask scheduler at {scheduler}; the same command goes on") from error
                yield job, record
            elif type(failure).__name__ == "KilledWorker":
                yield job, tell_failed(job, out, settings, reason)
            elif isinstance(failure, WsisegError):
                raise failure
            else:
                raise FleetError(
                    f"a worker cannot run wsiseg, {type(failure).__name__}: {failure}; install the same packages there"
                ) from failure


def _refuse_other_slides(jobs: Sequence[Job], out: Path, settings: Settings) -> None:
    """A slide that moved is the same slide; one of another place and content must not replace it.

    Raises:
        FleetError
    """
    for job in jobs:
        known = last_done(out, job)
        if known.source == job.source or not output_path(out, job, settings).exists():
            continue
        try:
            found = content_fingerprint(job, settings)
        except WsisegError:
            continue  # it will fail, and the outlines stay
        if found != known.slide_fingerprint:
            raise FleetError(
                f"{output_path(out, job, settings)} holds the outlines of {known.source}, not of {job.source}: "
                "choose another --out"
            )


def _refuse_changed_outlines(jobs: Sequence[Job], out: Path, settings: Settings) -> None:
    """What a person made or corrected must not be replaced by what other queries, parameters or a model give.

    Raises:
        FleetError
    """
    for job in jobs:
        known, name = last_done(out, job), output_name(job, settings)
        if current(job, known, settings).status != "done":
            check_as_written(out, name, known)


def _tell_replaced_queries(jobs: Sequence[Job], out: Path, settings: Settings) -> None:
    """Warn, while there is time, if outlines of queries that are not asked again are about to be replaced."""
    lost: dict[str, None] = {}
    for job in jobs:
        known = last_done(out, job)
        if known.status == "done" and output_path(out, job, settings).exists():
            lost |= dict.fromkeys(query for query in known.polygons if query not in job.queries)
    if lost:
        queries = ", ".join(f'"{query}"' for query in lost)
        log.warning("the outlines of %s in %s are replaced: to keep them, stop, and choose another --out", queries, out)
