"""`wsiseg segment SLIDE --query TEXT > out.geojson`: the main job, for one slide or for many."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsiseg.cli.options import (
    Finite,
    backend_option,
    device_option,
    example_mpp_option,
    example_option,
    format_option,
    is_quiet,
    on_bad_tile_option,
    origin_option,
    progress_bar,
    slide_mpp_option,
    tell,
    told_when_stopped,
    weights_option,
)
from wsiseg.cli.output import tell_failed, write_stdout
from wsiseg.errors import OutputError

if TYPE_CHECKING:
    from wsiseg.fleet import Job, Record, Settings


class Shard(click.ParamType):
    """`2/8`: the second of eight parts."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value))
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} is not a part such as 1/8, or 8/8", param, ctx)
        return int(found[1]), int(found[2])


class Region(click.ParamType):
    """`1000,2000,512,512`: x, y, width and height."""

    name = "x,y,w,h"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 4:
            self.fail(f"{value!r} is not a region such as 1000,2000,512,512 (x, y, width, height)", param, ctx)
        return numbers


@click.command("segment", short_help="Outline what a query asks for: a slide in, GeoJSON out.")
@click.argument("source", required=False)
@click.option("--query", "queries", multiple=True, help="What to outline. Several: one class each.")
@click.option("--out", default="-", help="Write the outlines here instead of stdout; for many slides, a folder.")
@format_option
@click.option("--reasoning", help="Also write what the model said about every tile here, as JSON lines.")
@example_option
@example_mpp_option
@click.option("--model", help="Name or folder of a model; the bundled one by default.")
@slide_mpp_option
@click.option(
    "--mpp",
    type=Finite(min=0, min_open=True),
    help="Microns per pixel at which the model looks; by default its own choice for the query.",
)
@backend_option
@origin_option
@click.option(
    "--region",
    type=Region(),
    help="One slide: look only at this box, in pixels at full resolution from where --origin puts 0,0.",
)
@click.option(
    "--threshold",
    type=Finite(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Probability from which a pixel belongs to an outline.",
)
@click.option(
    "--min-area",
    "min_area_um2",
    type=Finite(min=0),
    default=10.0,
    show_default=True,
    help="Drop smaller outlines and fill smaller holes, in µm².",
)
@click.option(
    "--simplify",
    "simplify_um",
    type=Finite(min=0),
    help="How far outlines may move to save points, in µm; by default a quarter of a model pixel.",
)
@click.option(
    "--separate/--no-separate",
    default=None,
    help="Cut outlines apart where they have a neck, as touching cells have; by default where a query means cells.",
)
@device_option
@click.option(
    "--batch-size", type=click.IntRange(min=1), show_default="64 on a CUDA device, 16 elsewhere", help="Tiles at once."
)
@on_bad_tile_option
@click.option(
    "--no-cache",
    "cache",
    flag_value=False,
    default=True,
    help="Of a tile store: do not keep in it what the model saw, for later queries.",
)
@weights_option
@click.option(
    "--first-pass",
    is_flag=True,
    help="Look from twice as far away first, and ask only where that finds something: faster where it is rare.",
)
@click.option("--deterministic", is_flag=True, help="The same bytes on the same device; slower.")
@click.option("--recursive", is_flag=True, help="Many slides: look in subfolders too.")
@click.option("--shard", type=Shard(), help="Many slides: do only this part; by default the SLURM array task's.")
@click.option("--scheduler", help="Many slides: address of a Dask scheduler, such as tcp://host:8786.")
@click.option("--from", "run_json", type=click.Path(path_type=Path), help="Repeat the run of this run.json exactly.")
@click.pass_context
def command(
    ctx: click.Context,
    source: str | None,
    queries: tuple[str, ...],
    out: str,
    output_format: str | None,
    reasoning: str | None,
    example_files: tuple[tuple[str, str], ...],
    example_mpp: float | None,
    region: tuple[float, float, float, float] | None,
    recursive: bool,
    shard: tuple[int, int] | None,
    scheduler: str | None,
    run_json: Path | None,
    **options: Any,
) -> None:
    """Outline on SOURCE what the queries ask for, as GeoJSON that QuPath opens, or in another --format.

    SOURCE is a slide, a plain image, a URL of one, or a store written by `wsiseg tile`; or many of them: a
    folder, or a CSV with the columns slide, query, slide_mpp, label. Many need --out FOLDER; run again, only
    what is missing or changed is done. Exit code 3: some slides failed, the others are done.

    \b
    wsiseg segment slide.svs --query "outline the nuclei" > out.geojson
    wsiseg segment slide.svs --query nuclei --query glands --out out.geojson
    wsiseg segment slide.svs --query glands --example crop.png mask.png --out out.geojson
    wsiseg segment slides/ --query "outline the nuclei" --out results/
    """
    if run_json is None and source is None:
        raise click.UsageError("Missing argument 'SOURCE'.", ctx)
    if run_json is not None or is_many(source or ""):
        if out in ("-", ""):  # empty, of a variable of the shell that is not set, would be the folder it is typed in
            raise click.UsageError("many slides need --out FOLDER.", ctx)
        shown = example_files or example_mpp
        for name, value in (("--reasoning", reasoning), ("--region", region), ("--example", shown or None)):
            if value is not None:
                raise click.UsageError(f"{name} is for one slide.", ctx)
        if run_json is not None and recursive:
            raise click.UsageError("--from repeats a run as it was: leave --recursive out.", ctx)
        if output_format is not None:
            options["format"] = output_format
        ctx.exit(segment_many(ctx, source, queries, Path(out), recursive, shard, scheduler, run_json, options))
    if not queries:
        raise click.UsageError("Missing option '--query'.", ctx)
    if recursive or shard or scheduler:
        raise click.UsageError("--recursive, --shard and --scheduler are for a folder or manifest.", ctx)
    if reasoning == "-":
        raise click.UsageError("--reasoning takes the name of a file: stdout is for outlines.", ctx)
    if example_mpp and not example_files:
        raise click.UsageError("--example-mpp is for an --example.", ctx)
    examples = [(image, mask, example_mpp) for image, mask in example_files]
    segment_one(str(source), queries, out, output_format, reasoning, examples, {**options, "region": region})


def is_many(source: str) -> bool:
    """Whether SOURCE is a folder of slides (no tile store, which is a folder too) or a manifest."""
    if source.lower().endswith(".csv"):
        return True
    if not os.path.isdir(source):
        return False
    from wsiseg.tiles import is_store

    return not is_store(source)


def segment_one(
    source: str,
    queries: tuple[str, ...],
    out: str,
    output_format: str | None,
    reasoning: str | None,
    examples: list[tuple[str, str, float | None]],
    options: dict[str, Any],
) -> None:
    from wsiseg import formats
    from wsiseg.files import check_apart, check_writable, remove_leftovers
    from wsiseg.inference.shots import read_shot
    from wsiseg.pipeline import segment

    output_format = output_format or formats.format_of(out)
    read = [source, *(file for image, mask, _ in examples for file in (image, mask))]
    check_apart(out, *read)
    formats.check_path(output_format, None if out == "-" else out)
    formats.check_source(output_format, source)
    if reasoning is not None:
        check_writable(reasoning)
        check_apart(reasoning, *read)
        if os.path.realpath(reasoning) == os.path.realpath(out) and work_folder(out):
            raise OutputError(f"cannot write {out}: --reasoning names the same file; choose another name for one")
    shots = [read_shot(*example) for example in examples]
    work = work_folder(out)
    said = "the same command goes on from there" if work else "with --out FILE the same command could go on from there"
    begun = time.time()
    with told_when_stopped(said):
        with progress_bar("segment") as progress:
            result = segment(source, queries, examples=shots, progress=progress, work=work, **options)
        if reasoning is not None:
            result.write_reasoning(reasoning)
        if out == "-":
            write_stdout(partial(formats.stream, result.annotations, result.run, name=output_format))
        else:
            result.write(out, output_format)
    for path in filter(None, (reasoning, out if work else None)):
        remove_leftovers(Path(path), older_s=time.time() - begun)  # not what another run is writing there now
    if work:
        shutil.rmtree(work, ignore_errors=True)


def work_folder(out: str) -> Path | None:
    """Where answers wait for the file `out` to be written: beside it; None for stdout, a device or a pipe."""
    path = Path(out)
    if out == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
        return None
    return path.with_name(f".{path.name[:200]}.answers")


def segment_many(
    ctx: click.Context,
    source: str | None,
    queries: tuple[str, ...],
    out: Path,
    recursive: bool,
    shard: tuple[int, int] | None,
    scheduler: str | None,
    run_json: Path | None,
    options: dict[str, Any],
) -> int:
    """Run, say on stderr what failed and why, and return the exit code."""
    from wsiseg import fleet
    from wsiseg.cli.table import live_table

    jobs, settings = (
        _repeated(ctx, source, queries, run_json, options)
        if run_json
        else _asked(ctx, str(source), queries, recursive, options)
    )
    of_array = None if shard else fleet.slurm_shard(os.environ)
    shard = shard or of_array or (1, 1)
    mine = fleet.take_shard(jobs, shard)
    if shard != (1, 1):
        whose = " (this SLURM array task's; --shard 1/1 does all)" if of_array else ""
        tell(f"wsiseg: part {shard[0]} of {shard[1]}{whose}: {len(mine)} of {len(jobs)} slides")
    with live_table(len(mine), quiet=is_quiet()) as table:
        try:
            records = fleet.run(jobs, out, settings, scheduler=scheduler, shard=shard, report=table)
        except KeyboardInterrupt:
            table.say(f"stopped with {table.done} of {len(mine)} slides done; the same command goes on from there")
            raise
    return _tell(records, out)


def _asked(
    ctx: click.Context, source: str, queries: tuple[str, ...], recursive: bool, options: dict[str, Any]
) -> tuple[list[Job], Settings]:
    from wsiseg import fleet

    slide_mpp = options.pop("slide_mpp")
    settings = fleet.Settings(**options)
    if not source.lower().endswith(".csv"):
        if not queries:
            raise click.UsageError("Missing option '--query'.", ctx)
        return fleet.jobs_in_folder(source, queries, recursive=recursive, slide_mpp=slide_mpp), settings
    if recursive:
        raise click.UsageError("--recursive is for a folder.", ctx)
    return fleet.read_manifest(source, queries, slide_mpp=slide_mpp), settings


def _repeated(
    ctx: click.Context,
    source: str | None,
    queries: tuple[str, ...],
    run_json: Path,
    options: dict[str, Any],
) -> tuple[list[Job], Settings]:
    """The run of a run.json, with this machine's device and batch size, and its place of the model if given."""
    from wsiseg import fleet

    may_differ = {"device", "batch_size", "model", "cache", "deterministic"}
    given = [name for name in options if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if source or queries or not set(given) <= may_differ:
        raise click.UsageError("--from repeats a run as it was: give no SOURCE, --query or other parameters.", ctx)
    jobs, settings = fleet.read_run(run_json)
    return jobs, replace(settings, **{name: options[name] for name in given})


def _tell(records: list[Record], out: Path) -> int:
    meanwhile = "another run in this folder has asked something else of it meanwhile: give each its own --out"
    failed = [(record.source, record.reason or meanwhile) for record in records if record.status != "done"]
    return tell_failed(failed, len(records), out)
