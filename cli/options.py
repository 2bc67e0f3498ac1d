"""Options that several commands share, so that each has one name, one meaning and one help text.

| option        | segment | info | thumbnail | tile | render | view | report | convert | evaluate |
|---------------|---------|------|-----------|------|--------|------|--------|---------|----------|
| --slide-mpp   | x       | x    | x         | x    | x      | x    | x      | x       |          |
| --backend     | x       | x    | x         | x    | x      | x    | x      | x       |          |
| --origin      | x       |      |           |      | x      | x    | x      | x       |          |
| --format      | x       |      |           |      |        |      |        | x       |          |
| --device(s)   | x       |      |           |      |        | x    |        |         | x        |
| --weights     | x       |      |           |      |        |      |        |         | x        |
| --example     | x       |      |           |      |        |      |        |         | x        |
| --max-px      |         |      | x         |      | x      |      |        |         |          |
| --on-bad-tile | x       |      |           | x    |        |      |        |         |          |
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsiseg.formats import FORMATS

if TYPE_CHECKING:
    from PIL import Image

    from wsiseg.geojson import Annotation
    from wsiseg.mask.regions import Origin
    from wsiseg.slide import Slide

log = logging.getLogger(__name__)


class SlideMpp(click.ParamType):
    """`0.25`, or `0.25,0.26` for x and y."""

    name = "um"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a number such as 0.25, or two such as 0.25,0.26", param, ctx)
        if len(numbers) > 2 or not all(0 < number < float("inf") for number in numbers):
            self.fail(f"{value!r} is not one or two positive numbers, such as 0.25 or 0.25,0.26", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class Finite(click.FloatRange):
    """A number in a range. `FloatRange` alone takes NaN for one, since it is neither below nor above."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


slide_mpp_option = click.option(
    "--slide-mpp",
    type=SlideMpp(),
    help="Microns per pixel of the slide at full resolution, if the file does not say; `X,Y` if they differ.",
)
backend_option = click.option(
    "--backend",
    type=click.Choice(["openslide", "tiffslide", "image"]),
    help="Read the slide with this library; by default chosen by content.",
)
origin_option = click.option(
    "--origin",
    type=click.Choice(["qupath", "slide"]),
    default="qupath",
    show_default=True,
    help="Where 0,0 lies: as in QuPath (OpenSlide bounds subtracted), or the corner of the whole slide.",
)
on_bad_tile_option = click.option(
    "--on-bad-tile",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="A tile of the slide cannot be decoded: stop with an error, or leave it out and say so.",
)
origin_of_file_option = click.option(
    "--origin",
    type=click.Choice(["qupath", "slide"]),
    help="Where 0,0 of the GeoJSON lies; by default what the file says, else as in QuPath.",
)


def is_quiet() -> bool:
    """Whether the command was given `--quiet`."""
    context = click.get_current_context(silent=True)
    return context is not None and bool((context.find_root().obj or {}).get("quiet"))


def tell(text: str) -> None:
    """Say on stderr what is done or was; nothing under `--quiet`."""
    if not is_quiet():
        click.echo(text, err=True)


LARGE_BYTES = 20 << 20  # of a GeoJSON that takes some seconds to read


def tell_if_large(geojson: Path) -> None:
    """Say on stderr that GEOJSON is now read, if that takes long enough to wonder; a million outlines take a minute."""
    if geojson.is_file() and (size := geojson.stat().st_size) > LARGE_BYTES:
        tell(f"wsiseg: reading {geojson} ({size >> 20:,} MB) …")


def warn_if_misplaced(
    annotations: Sequence[Annotation], run: dict[str, Any], slide: Slide, origin: Origin | None
) -> None:
    """Say so if outlines were made on another slide, as their file's member `wsiseg` `run` says, or lie outside it."""
    from wsiseg.belonging import misplaced, origin_of

    if warning := misplaced(annotations, run, slide, origin or origin_of(run)):
        log.warning("%s", warning)


PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


class PicturePath(click.Path):
    """A file to write whose name ends in .png or .jpg."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() not in PICTURE_FORMATS:
            self.fail(f"{path} must end in .png or .jpg", param, ctx)
        return path


def max_px_option(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--max-px",
        type=click.IntRange(16, 16384),
        default=default,
        show_default=True,
        help="Longer side of the picture.",
    )


def save_picture(picture: Image.Image, path: Path) -> None:
    """Raises OutputError: it cannot be written."""
    from wsiseg.files import atomic_write

    with atomic_write(path) as file:
        picture.save(file, PICTURE_FORMATS[path.suffix.lower()])


format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(list(FORMATS)),
    help="Of the outlines; by default what the suffix of --out says, else GeoJSON.",
)

device_option = click.option(
    "--device",
    "--devices",
    "device",
    help="cpu, cuda, cuda:1, mps; by default the best there is. Several GPUs, such as 0,1, share the work.",
)

weights_option = click.option(
    "--weights",
    type=click.Choice(["full", "8bit", "4bit"]),
    default="full",
    show_default=True,
    help="How the language model's layers are held: 8 or 4 bits take less of the GPU's memory.",
)

example_option = click.option(
    "--example",
    "example_files",
    type=(click.Path(), click.Path()),
    multiple=True,
    metavar="IMAGE MASK",
    help="Show what is meant on another image: MASK is above 0 there. May be given several times.",
)
example_mpp_option = click.option(
    "--example-mpp",
    type=Finite(min=0, min_open=True),
    help="Microns per pixel of the example images, if the files do not say.",
)


@contextmanager
def told_when_stopped(text: str) -> Iterator[None]:
    """Say on stderr how to go on, when Ctrl-C or SIGTERM ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"wsiseg: stopped; {text}", err=True)
        raise


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, as a function to call with (done, total); None under `--quiet`.

    On a stderr that is no terminal only the final state is printed.
    """
    if is_quiet():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(label, total=None)

    def advance(done: int, total: int) -> None:
        bar.start()  # only now: an error before any progress stays one line
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
