"""A folder of slides into a folder of tile stores, one after another; a broken slide does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wsiseg.errors import OutputError
from wsiseg.files import make_folder
from wsiseg.fleet.claim import ClaimHeldError, claimed
from wsiseg.fleet.jobs import Job
from wsiseg.fleet.work import sentence
from wsiseg.slide import open_slide
from wsiseg.tiles import GridSpec, OnBadTile, TileStore, plan_grid, write_store
from wsiseg.under_way import under_way


def tile_slide(
    source: str,
    out: Path,
    spec: GridSpec,
    *,
    slide_mpp: float | tuple[float, float] | None = None,
    backend: str | None = None,
    pixels: bool = True,
    on_bad_tile: OnBadTile = "stop",
    progress: Callable[[int, int], None] | None = None,
) -> TileStore:
    """One slide into a store; see `write_store`.

    Raises:
        WsisegError: as `open_slide`, `plan_grid` and `write_store`.
    """
    from wsiseg.slide.tissue import tissue_mask

    with open_slide(source, backend=backend, slide_mpp=slide_mpp) as slide:
        tissue = tissue_mask(slide, forgiving=on_bad_tile == "skip")
        grid = plan_grid(slide, spec, tissue=tissue)
        return write_store(slide, grid, out, pixels=pixels, on_bad_tile=on_bad_tile, progress=progress)


def tile_slides(
    jobs: Sequence[Job],
    out: Path,
    spec: GridSpec,
    *,
    backend: str | None = None,
    pixels: bool = True,
    on_bad_tile: OnBadTile = "stop",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Job, TileStore | str]]:
    """Each slide with its store `out/NAME.zarr`, or with the reason why there is none.

    Stores that are there already are kept; one begun is finished. A slide that another process is at is left to it.

    Raises:
        OutputError: `out` cannot be written; the next slide will fare no better.
    """
    stores = [(job, out / f"{job.name}.zarr") for job in jobs]
    for job, store in sorted(stores, key=lambda pair: _claim(pair[1]).exists()):  # last what a process died of
        make_folder(store.parent)
        try:
            with claimed(_claim(store)), under_way(job.name):
                made = tile_slide(
                    job.source,
                    store,
                    spec,
                    slide_mpp=job.slide_mpp,
                    backend=backend,
                    pixels=pixels,
                    on_bad_tile=on_bad_tile,
                    progress=progress,
                )
        except ClaimHeldError as error:
            yield job, f"{error} is at work on it"
        except OutputError:
            raise
        except Exception as error:  # whatever is wrong with one slide, the next is another
            yield job, sentence(error)
        else:
            yield job, made


def _claim(store: Path) -> Path:
    return store.with_name(f".{store.name}.claim")
