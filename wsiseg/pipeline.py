"""The whole road: a slide and a question in, outlines with their reasoning out.

    open the slide (or a store of its tiles) -> plan tiles over tissue -> ask the model about each tile
    -> blend its masks on one canvas per query -> trace polygons -> QuPath annotations

Everything else in `wsiseg` is one of these steps.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiseg import __version__
from wsiseg.annotate import annotate, nothing_found, tile_reasoning
from wsiseg.belonging import slide_facts
from wsiseg.errors import ModelError, QueryError
from wsiseg.first_pass import worth_asking
from wsiseg.inference import ASK_PLAINLY, KnowsCells, KnowsLimits, KnowsNames, Segmenter, TileMask
from wsiseg.inference.answers import answers
from wsiseg.inference.devices import SeveralDevices
from wsiseg.inference.journal import open_journals
from wsiseg.inference.shots import InContext, Shot
from wsiseg.mask import Canvas, regions
from wsiseg.mask.regions import Origin, Region
from wsiseg.plan import Box, Pass, box_of, check_parameters, check_source, l0_region_of, open_source, plan_passes
from wsiseg.qupath import clean_text
from wsiseg.result import Result, TileReasoning
from wsiseg.spill import SpilledAnnotations
from wsiseg.tiles import Grid, OnBadTile

if TYPE_CHECKING:
    from wsiseg.model.config import Weights

log = logging.getLogger(__name__)

__all__ = ["Result", "TileReasoning", "segment"]


def segment(
    source: str | os.PathLike[str],
    query: str | Iterable[str],
    *,
    model: Segmenter | str | os.PathLike[str] | None = None,
    slide_mpp: float | tuple[float, float] | None = None,
    backend: str | None = None,
    mpp: float | None = None,
    threshold: float = 0.5,
    min_area_um2: float = 10.0,
    simplify_um: float | None = None,
    separate: bool | None = None,
    origin: Origin = "qupath",
    region: Box | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    examples: Iterable[Shot] = (),
    on_bad_tile: OnBadTile = "stop",
    cache: bool = True,
    weights: Weights = "full",
    first_pass: bool = False,
    deterministic: bool = False,
    work: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    hear: Callable[[TileReasoning], None] | None = None,
) -> Result:
    """Outline on a slide what one or several queries ask for.

    Args:
        source: path or URL of a slide, a plain image, or a tile store written by `wsiseg tile`.
        query: plain words. Each of several becomes a class of its own; those that the model looks at in one scale
            share their tiles, which are read once.
        model: a model, or the name or folder of one; None is the bundled one.
        slide_mpp: microns per level-0 pixel, x and y, where the file does not say.
        backend: openslide, tiffslide or image; None chooses by content.
        mpp: microns per pixel at which the model looks; None leaves it to the model, query by query. A store
            has one already.
        threshold: probability from which a pixel belongs to an outline.
        min_area_um2: smaller outlines are dropped, smaller holes filled.
        simplify_um: how far outlines may move to save points; None is a quarter of a model pixel.
        separate: cut outlines apart where they have a neck, as cells that touch have; None does so where a query
            means cells, as far as the model can tell (`wsiseg.inference.KnowsCells`).
        origin: "qupath" counts pixels as QuPath shows the slide (less its OpenSlide bounds), "slide" from the
            corner of level 0.
        region: look only at this box (x, y, width, height), in the coordinates that `origin` names: at the
            tiles that touch it, for the outlines that touch it. Inside the box they are those of the whole slide;
            one that reaches beyond the tiles at its edge is cut there.
        batch_size: tiles that the model sees at once; None is 64 on a CUDA device and 16 elsewhere.
        device: where a model that is loaded here runs: cpu, cuda, cuda:1, mps; None is the best there is. Several
            GPUs, such as "0,1", share the tiles of the slide, with the same result.
        examples: what one query means, shown on other images (see `wsiseg.read_shot`).
        on_bad_tile: "stop" ends with an error when a tile cannot be decoded; "skip" leaves it out, and the result's
            `run["skipped_tiles"]` says where.
        cache: keep what the model sees of a store's tiles in the store, for later queries.
        weights: of a model that is loaded here: "full", "8bit" or "4bit", see `wsiseg.load_model`.
        first_pass: look from twice as far away first, and ask only tiles in which that finds something: cheaper
            where the structure is rare, and some of it may be missed (docs/speed.md says how much).
        deterministic: the same bytes on the same device with the same `batch_size`, on one thread and without
            `cache`.
        work: a folder for answers as they come. A killed call leaves them there, and the same call goes on from
            them, to the same result; the caller removes the folder when the result is safe. None keeps nothing.
        progress: called with (tiles done, tiles in all). hear: called with what the model said about each tile,
            as it comes. What they raise ends the run.

    Raises:
        WsisegError: SlideError, MissingMppError, StoreError, ModelError, QueryError, or OutputError when the
            temporary folder is full.
    """
    queries, examples = clean_queries(query), tuple(examples)
    check_parameters(
        mpp=mpp,
        threshold=threshold,
        min_area_um2=min_area_um2,
        simplify_um=simplify_um,
        origin=origin,
        batch_size=batch_size,
        on_bad_tile=on_bad_tile,
    )
    batch_size = None if batch_size is None else int(batch_size)  # it may be 16.0
    if examples and len(queries) > 1:
        raise QueryError("examples show one structure: ask for one query at a time")
    found = SpilledAnnotations()
    said: dict[str, list[TileReasoning]] = {q: [] for q in queries}
    with ExitStack() as stack:
        if deterministic:
            from wsiseg.inference.deterministic import deterministic as fixed_algorithms

            stack.enter_context(fixed_algorithms())
        # The slide first: what is wrong with it should not wait for a model to load.
        opened = open_source(stack, source, backend, slide_mpp, on_bad_tile)
        segmenter = _shown(_load(model, device, weights), examples)
        if deterministic and isinstance(segmenter, SeveralDevices):
            raise ModelError("a deterministic run takes one device, such as --device cuda:0")
        l0_region = None if region is None else l0_region_of(region, opened, origin)
        passes = plan_passes(opened, queries, segmenter, mpp, l0_region, on_bad_tile)
        if first_pass:
            kept = [worth_asking(one.tiles, one.queries, segmenter, batch_size, progress) for one in passes]
            passes = [one.only(tiles) for one, tiles in zip(passes, kept, strict=True)]
        outlined = partial(
            regions, threshold=threshold, min_area_um2=min_area_um2, simplify_um=simplify_um, origin=origin
        )
        apart = [q for q in queries if (_means_cells(segmenter, q) if separate is None else separate)]
        done, total = 0, sum(len(one.tiles.grid) for one in passes)
        skipped: list[list[float]] = []
        # Other answers than those of a deterministic run would end that.
        how = ("deterministic", device, batch_size) if deterministic else ()
        grids = [(one.tiles.grid, one.queries) for one in passes]
        journals = open_journals(work, grids, segmenter, examples, how, gaps=on_bad_tile == "skip")
        cache = cache and not deterministic
        for one, journal in zip(passes, journals, strict=True):
            asked, grid = one.queries, one.tiles.grid
            stack.enter_context(journal)
            canvases = {q: stack.enter_context(Canvas.over(grid)) for q in asked}
            answered = answers(one.tiles, asked, segmenter, batch_size, cache=cache, journal=journal)
            stack.callback(answered.close)  # before the slide that it reads
            missing = np.ones(len(grid), bool)
            for indices, masks in answered:  # (B,), B answers to each query
                for q in asked:
                    for told in _blended(q, indices, masks[q], grid, canvases[q]):
                        said[q].append(told)
                        if hear:
                            hear(told)
                missing[indices] = False
                done += len(indices)
                if progress:
                    progress(done, total)
            skipped += _l0_corners(grid, missing)
            done += int(missing.sum())
            for q in asked:
                canvases[q].finish()
                outlines = _touching(region, outlined(canvases[q], grid, separate=q in apart))
                add = partial(found.add, queries.index(q))
                said[q] = annotate(q, outlines, said[q], grid, segmenter, examples, origin, add)
        whole = region is None and not any(one.left_out for one in passes)
        check_source(opened, len(skipped), total, whole=whole)
    chosen = {
        "threshold": threshold,
        "min_area_um2": min_area_um2,
        "simplify_um": simplify_um,
        "separated": apart or None,
        "region": None if region is None else list(map(float, region)),
        "first_pass": first_pass or None,
    }
    in_vain = [q for q in queries if not any(tile.polygons for tile in said[q])]
    hints = {q: _hint(segmenter, q) for q in in_vain}
    notes = _notes(passes, said, hints, len(skipped), first_pass, "" if region is None else " in the region")
    for note in notes:
        log.warning("%s", note)
    cautions = [_caution(segmenter, q) for q in queries if q not in in_vain]
    cautions = list(dict.fromkeys(filter(None, cautions)))
    for caution in cautions:
        _warn_once(caution)
    return Result(
        annotations=found,
        reasoning=[tile for q in queries for tile in said[q]],
        run=_record(queries, passes, segmenter, examples, origin, chosen, skipped, cautions),
        notes=notes + cautions,
    )


def _blended(
    query: str, indices: np.ndarray, masks: Sequence[TileMask], grid: Grid, canvas: Canvas
) -> Iterator[TileReasoning]:
    """What the model said about each of the tiles `indices` (B,), once its mask is on the canvas."""
    for i, mask in zip(indices, masks, strict=True):
        m_x, m_y = grid.m_xy[i].tolist()
        canvas.add(m_x, m_y, mask.probability)
        yield tile_reasoning(query, grid, m_x, m_y, mask)


def _touching(region: Box | None, outlines: Iterator[Region]) -> Iterator[Region]:
    """Those that touch `region`; all without one."""
    if region is None:
        return outlines
    box = box_of(region)
    return (outline for outline in outlines if outline.polygon.intersects(box))


def clean_queries(query: str | Iterable[str]) -> list[str]:
    """Queries without doubles and without what no file could hold, in the order given. QueryError if one is empty."""
    queries = [clean_text(q).strip() for q in ([query] if isinstance(query, str) else query)]
    if not queries or not all(queries):
        raise QueryError('the query is empty: say what to outline, such as "outline the nuclei"')
    return list(dict.fromkeys(queries))


def _load(model: Segmenter | str | os.PathLike[str] | None, device: str | None, weights: Weights) -> Segmenter:
    if model is None or isinstance(model, str | os.PathLike):
        from wsiseg.model import load_model

        return load_model(model, device=device, weights=weights)
    return model


def _shown(model: Segmenter, examples: Sequence[Shot]) -> Segmenter:
    if not examples:
        return model
    if not isinstance(model, InContext):
        raise ModelError(f"the model {model.name} takes no examples: ask it by words alone")
    return model.with_shots(examples)


def _means_cells(model: Segmenter, query: str) -> bool:
    return isinstance(model, KnowsCells) and model.asks_for_cells(query)


def _caution(model: Segmenter, query: str) -> str:
    return model.caution_for(query) if isinstance(model, KnowsLimits) else ""


def _hint(model: Segmenter, query: str) -> str:
    return model.hint_for(query) if isinstance(model, KnowsNames) else ASK_PLAINLY


def _notes(
    passes: Sequence[Pass],
    said: Mapping[str, Sequence[TileReasoning]],
    hints: Mapping[str, str],
    skipped: int,
    first_pass: bool,
    where: str,
) -> list[str]:
    """What was left out, and what was said to queries that have no outline; `hints`: what to make of those."""
    total, left_out = sum(len(one.tiles.grid) for one in passes), sum(one.left_out for one in passes)
    notes = [f"{skipped} of {total} tiles could not be read and were left out"] if skipped else []
    notes += [f"the first pass left out {left_out} of {left_out + total} tiles"] if first_pass else []
    of_query = {q: one.left_out for one in passes for q in one.queries}
    return notes + [nothing_found(q, said[q], of_query[q], hint, where) for q, hint in hints.items()]


@cache
def _warn_once(caution: str) -> None:
    """In a process, whatever the number of its slides."""
    log.warning("%s", caution)


def _l0_corners(grid: Grid, tiles: np.ndarray) -> list[list[float]]:
    """[x, y] in level-0 pixels, from the slide's corner, of the tiles that are marked in (N,) bool."""
    corners: list[list[float]] = (grid.m_xy[tiles] * grid.l0_per_m).tolist()
    return corners


def _record(
    queries: list[str],
    passes: Sequence[Pass],
    model: Segmenter,
    examples: Sequence[Shot],
    origin: Origin,
    chosen: dict[str, Any],
    skipped: list[list[float]],
    cautions: list[str],
) -> dict[str, Any]:
    """What made the result: the member `wsiseg` of the GeoJSON. chosen: parameters, None where left as they are."""
    mpp = {q: one.tiles.grid.spec.mpp for one in passes for q in one.queries}
    shown = [{"image": clean_text(e.name), "fingerprint": e.fingerprint} for e in examples]
    return {
        "version": __version__,
        "slide": slide_facts(passes[0].tiles.grid.slide),
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "queries": queries,
        "origin": origin,
        "parameters": {"mpp": mpp, **{key: value for key, value in chosen.items() if value is not None}},
        **({"skipped_tiles": skipped} if skipped else {}),
        **({"cautions": cautions} if cautions else {}),
        **({"examples": shown} if shown else {}),
    }
