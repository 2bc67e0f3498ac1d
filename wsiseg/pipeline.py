"""The whole road: a slide and a question in, outlines with their reasoning out.

    open the slide (or a store of its tiles) -> plan tiles over tissue -> ask the model about each tile
    -> blend its masks on one canvas per query -> trace polygons -> QuPath annotations

Everything else in `wsiseg` is one of these steps.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely

from wsiseg import __version__
from wsiseg.errors import ModelError, QueryError, SlideError, StoreError
from wsiseg.geojson import Annotation, annotation_id
from wsiseg.inference import Segmenter, TileMask
from wsiseg.inference.answers import answers
from wsiseg.inference.journal import open_journals
from wsiseg.inference.shots import InContext, Shot
from wsiseg.mask import Canvas, Region, l0_origin, regions
from wsiseg.mask.regions import Origin
from wsiseg.qupath import DESCRIPTION, class_color, clean_description, clean_text
from wsiseg.result import MAX_CHAIN, Result, TileReasoning
from wsiseg.slide import Slide, open_slide, tissue_mask
from wsiseg.tiles import (
    Grid,
    GridSpec,
    OnBadTile,
    SlideTiles,
    TileSource,
    TileStore,
    is_store,
    plan_grid,
    touching,
)

log = logging.getLogger(__name__)

__all__ = ["Result", "TileReasoning", "segment"]

Box = tuple[float, float, float, float]  # x, y, width, height


def segment(
    source: str | os.PathLike[str],
    query: str | Sequence[str],
    *,
    model: Segmenter | str | os.PathLike[str] | None = None,
    slide_mpp: float | tuple[float, float] | None = None,
    backend: str | None = None,
    mpp: float | None = None,
    threshold: float = 0.5,
    min_area_um2: float = 10.0,
    simplify_um: float | None = None,
    origin: Origin = "qupath",
    region: Box | None = None,
    batch_size: int = 16,
    device: str | None = None,
    examples: Sequence[Shot] = (),
    on_bad_tile: OnBadTile = "stop",
    cache: bool = True,
    deterministic: bool = False,
    work: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    hear: Callable[[TileReasoning], None] | None = None,
) -> Result:
    """Outline on a slide what one or several queries ask for.

    Args:
        source: path or URL of a slide, a plain image, or a tile store written by `wsiseg tile`.
        query: plain words. Each of several becomes a class of its own, over the same tiles, read once.
        model: a model, or the name or folder of one; None is the bundled one.
        slide_mpp: microns per level-0 pixel, x and y, where the file does not say.
        backend: openslide, tiffslide or image; None chooses by content.
        mpp: microns per pixel at which the model looks; None leaves it to the model, query by query. A store
            has one already.
        threshold: probability from which a pixel belongs to an outline.
        min_area_um2: smaller outlines are dropped, smaller holes filled.
        simplify_um: how far outlines may move to save points; None is half a model pixel.
        origin: "qupath" counts pixels as QuPath shows the slide (less its OpenSlide bounds), "slide" from the
            corner of level 0.
        region: look only at this box (x, y, width, height), in the coordinates that `origin` names: at the
            tiles that touch it, for the outlines that touch it. Within it they are those of the whole slide.
        batch_size: tiles that the model sees at once.
        device: where a model that is loaded here runs: cpu, cuda, cuda:1, mps; None is the best there is.
        examples: what one query means, shown on other images (see `wsiseg.read_shot`).
        on_bad_tile: "stop" ends with an error when a tile cannot be decoded; "skip" leaves it out, and the result's
            `run["skipped_tiles"]` says where.
        cache: keep what the model sees of a store's tiles in the store, for later queries.
        deterministic: the same bytes on the same device, on one thread and without `cache`.
        work: a folder for answers as they come. A killed call leaves them there, and the same call goes on from
            them, to the same result; the caller removes the folder when the result is safe. None keeps nothing.
        progress: called with (tiles done, tiles in all). hear: called with what the model said about each tile,
            as it comes. What they raise ends the run.

    Raises:
        WsisegError: SlideError, MissingMppError, StoreError, ModelError, QueryError, or OutputError when the
            temporary folder is full.
    """
    queries = clean_queries(query)
    if examples and len(queries) > 1:
        raise QueryError("examples show one structure: ask for one query at a time")
    annotations: dict[str, list[Annotation]] = {}
    said: dict[str, list[TileReasoning]] = {q: [] for q in queries}
    with ExitStack() as stack:
        if deterministic:
            from wsiseg.inference.deterministic import deterministic as fixed_algorithms

            stack.enter_context(fixed_algorithms())
        # The slide first: what is wrong with it should not wait for a model to load.
        opened = _open(stack, source, backend, slide_mpp, on_bad_tile)
        segmenter = _shown(_load(model, device), examples)
        l0_region = None if region is None else _l0_region(region, opened, origin)
        passes = _plan(opened, queries, segmenter, mpp, l0_region, on_bad_tile)
        done, total = 0, sum(len(tiles.grid) for tiles, _ in passes)
        skipped: list[list[float]] = []
        journals = open_journals(work, [(tiles.grid, asked) for tiles, asked in passes], segmenter, examples)
        for (tiles, asked), journal in zip(passes, journals, strict=True):
            stack.enter_context(journal)
            missing = np.ones(len(tiles.grid), bool)
            grid, spec = tiles.grid, tiles.grid.spec
            canvases = {
                q: stack.enter_context(Canvas(grid.m_width, grid.m_height, spec.tile_size, spec.overlap))
                for q in asked
            }
            answered = answers(tiles, asked, segmenter, batch_size, cache=cache and not deterministic, journal=journal)
            stack.callback(answered.close)  # before the slide that it reads
            for indices, masks in answered:  # (B,), B answers to each query
                for q in asked:
                    for i, mask in zip(indices, masks[q], strict=True):
                        m_x, m_y = grid.m_xy[i].tolist()
                        canvases[q].add(m_x, m_y, mask.probability)
                        said[q].append(_tile_reasoning(q, grid, m_x, m_y, mask))
                        if hear:
                            hear(said[q][-1])
                missing[indices] = False
                done += len(indices)
                if progress:
                    progress(done, total)
            skipped += _l0_corners(grid, missing)
            for q in asked:
                canvases[q].finish()
                outlines = regions(
                    canvases[q],
                    grid,
                    threshold=threshold,
                    min_area_um2=min_area_um2,
                    simplify_um=simplify_um,
                    origin=origin,
                )
                if region is not None:
                    outlines = [o for o in outlines if o.polygon.intersects(_box(region))]
                annotations[q], said[q] = _annotate(q, outlines, said[q], grid, segmenter, examples, origin)
        _check_source(opened, len(skipped), total)
    slide = passes[0][0].grid.slide
    run = {
        "version": __version__,
        "slide": {
            "fingerprint": slide.fingerprint,
            "source": clean_text(slide.source),
            "mpp": [slide.mpp_x, slide.mpp_y],
        },
        "model": {"name": segmenter.name, "fingerprint": segmenter.fingerprint},
        "queries": queries,
        "origin": origin,
        "parameters": {
            "mpp": {q: tiles.grid.spec.mpp for tiles, asked in passes for q in asked},
            "threshold": threshold,
            "min_area_um2": min_area_um2,
            **({} if simplify_um is None else {"simplify_um": simplify_um}),
            **({} if region is None else {"region": list(region)}),
        },
        **({"skipped_tiles": skipped} if skipped else {}),
    }
    if examples:
        run["examples"] = [{"image": clean_text(e.name), "fingerprint": e.fingerprint} for e in examples]
    notes = [f"{len(skipped)} of {total} tiles could not be read and were left out"] if skipped else []
    notes += [_nothing_found(q, said[q]) for q in queries if not annotations[q]]
    for note in notes:
        log.warning("%s", note)
    return Result(
        annotations=[annotation for q in queries for annotation in annotations[q]],
        reasoning=[tile for q in queries for tile in said[q]],
        run=run,
        notes=notes,
    )


def clean_queries(query: str | Sequence[str]) -> list[str]:
    """Queries without doubles and without what no file could hold, in the order given. QueryError if one is empty."""
    queries = [clean_text(q).strip() for q in ([query] if isinstance(query, str) else query)]
    if not queries or not all(queries):
        raise QueryError('the query is empty: say what to outline, such as "outline the nuclei"')
    return list(dict.fromkeys(queries))


def _open(
    stack: ExitStack,
    source: str | os.PathLike[str],
    backend: str | None,
    slide_mpp: float | tuple[float, float] | None,
    on_bad_tile: OnBadTile,
) -> Slide | TileStore:
    if not is_store(source):
        slide = stack.enter_context(open_slide(source, backend=backend, slide_mpp=slide_mpp))
        _ = slide.mpp  # raises MissingMppError
        return slide
    if backend is not None or slide_mpp is not None:
        raise StoreError(
            f"{os.fspath(source)} is a tile store: backend and slide mpp were set when it was made"
        )
    return TileStore.open(source, on_bad_tile=on_bad_tile)


def _load(model: Segmenter | str | os.PathLike[str] | None, device: str | None) -> Segmenter:
    if model is None or isinstance(model, str | os.PathLike):
        from wsiseg.model import load_model

        return load_model(None if model is None else os.fspath(model), device=device)
    return model


def _shown(model: Segmenter, examples: Sequence[Shot]) -> Segmenter:
    if not examples:
        return model
    if not isinstance(model, InContext):
        raise ModelError(f"the model {model.name} takes no examples: ask it by words alone")
    return model.with_shots(examples)


def _box(box: Box) -> shapely.Polygon:
    x, y, width, height = box
    return shapely.box(x, y, x + width, y + height)


def _l0_region(region: Box, opened: Slide | TileStore, origin: Origin) -> Box:
    """`region` in level-0 pixels of the whole slide. QueryError if it holds nothing of it."""
    if isinstance(opened, TileStore):
        raise StoreError(f"{opened.path} is a tile store: a region can only be asked of a slide")
    l0_dx, l0_dy = l0_origin(opened.l0_bounds, origin)
    l0_box = (region[0] + l0_dx, region[1] + l0_dy, *region[2:])
    if not (np.isfinite(region).all() and min(region[2:]) > 0):
        raise QueryError(f"the region {_said(region)} has no area: give x, y, width and height in pixels")
    if not _box(l0_box).intersects(shapely.box(0, 0, *opened.dimensions)):
        raise QueryError(f"the region {_said(region)} lies outside the slide")
    return l0_box


def _said(region: Box) -> str:
    return ",".join(f"{value:g}" for value in region)


def _plan(
    opened: Slide | TileStore,
    queries: list[str],
    model: Segmenter,
    mpp: float | None,
    l0_region: Box | None,
    on_bad_tile: OnBadTile,
) -> list[tuple[TileSource, list[str]]]:
    """What to read, once for each resolution, and which queries to ask there."""
    if isinstance(opened, TileStore):
        stored = opened.grid.spec.mpp
        if mpp is not None and not np.isclose(mpp, stored):
            raise StoreError(
                f"{opened.path} holds tiles of {stored:g} µm/px, not {mpp:g}: tile the slide again"
            )
        for q in queries:
            if not 0.75 < stored / model.mpp_for(q) < 1.33:
                wanted = model.mpp_for(q)
                log.warning('the store has %g µm/px; for "%s" the model prefers %g', stored, q, wanted)
        return [(opened, queries)]
    by_mpp: dict[float, list[str]] = {}
    for q in queries:
        by_mpp.setdefault(mpp or model.mpp_for(q), []).append(q)
    tissue = tissue_mask(opened, forgiving=on_bad_tile == "skip")
    # A plain image was cut out by somebody who wants all of it looked at.
    least = 0.0 if opened.backend == "image" else GridSpec.min_tissue
    specs = {m: GridSpec(m, model.tile_size, model.overlap, least) for m in by_mpp}
    passes: list[tuple[TileSource, list[str]]] = []
    for m, asked in by_mpp.items():
        grid = plan_grid(opened, specs[m], tissue=tissue)
        if l0_region is not None:
            grid = touching(grid, l0_region)
        passes.append((SlideTiles(opened, grid, on_bad_tile), asked))
    return passes


def _l0_corners(grid: Grid, tiles: np.ndarray) -> list[list[float]]:
    """[x, y] in level-0 pixels, from the slide's corner, of the tiles that are marked in (N,) bool."""
    corners: list[list[float]] = (grid.m_xy[tiles] * grid.l0_per_m).tolist()
    return corners


def _check_source(opened: Slide | TileStore, skipped: int, total: int) -> None:
    """Raises SlideError unless the slide that was read is still the one that was opened, and some of it was read."""
    if isinstance(opened, TileStore) or opened.backend == "image":  # which was read whole when it was opened
        return
    if skipped == total > 0:
        raise SlideError(f"no tile of {opened.source} can be read: copy or download the slide again")
    try:
        with open_slide(opened.source, backend=opened.backend) as again:
            unchanged = again.fingerprint == opened.fingerprint
    except SlideError:
        if skipped:  # perhaps for this reason; else all of it was read before it vanished
            raise
        return
    if not unchanged:
        raise SlideError(f"{opened.source} changed while it was being read: run again")


def _tile_reasoning(query: str, grid: Grid, m_x: int, m_y: int, mask: TileMask) -> TileReasoning:
    l0_per_x, l0_per_y = grid.l0_per_m
    return TileReasoning(
        query=query,
        l0_x=m_x * l0_per_x,
        l0_y=m_y * l0_per_y,
        l0_width=grid.spec.tile_size * l0_per_x,
        l0_height=grid.spec.tile_size * l0_per_y,
        segmented=mask.probability is not None,
        seg_probability=float(mask.seg_probability),
        seg_position=mask.seg_position,
        reasoning=clean_text(mask.reasoning, MAX_CHAIN),
    )


def _annotate(
    query: str,
    outlines: Sequence[Region],
    said: Sequence[TileReasoning],
    grid: Grid,
    model: Segmenter,
    examples: Sequence[Shot],
    origin: Origin,
) -> tuple[list[Annotation], list[TileReasoning]]:
    """Outlines as QuPath objects, each with the reasoning of the tile that it covers most; and what was said, each
    tile with the outlines that it had a hand in."""
    spoken = [tile for tile in said if tile.segmented]
    l0_dx, l0_dy = l0_origin(grid.slide.l0_bounds, origin)
    boxes = np.array([shapely.box(t.l0_x, t.l0_y, t.l0_x + t.l0_width, t.l0_y + t.l0_height) for t in spoken])
    tree = shapely.STRtree(shapely.transform(boxes, lambda l0_xy: l0_xy - (l0_dx, l0_dy)))
    made_by = (grid.slide.fingerprint, model.name, model.fingerprint, query, *(e.fingerprint for e in examples))
    annotations, color = [], class_color(query)
    for outline in outlines:
        tile = spoken[most_covered(tree, outline.polygon)]
        annotations.append(
            Annotation(
                id=annotation_id(outline.polygon, *made_by),
                geometry=outline.polygon,
                name=query,
                classification=query,
                color=color,
                measurements={
                    "Area µm^2": outline.area_um2,
                    "Perimeter µm": outline.perimeter_um,
                    "Solidity": outline.solidity,
                    "Mean probability": outline.mean_probability,
                },
                metadata={
                    "query": query,
                    "model": f"{model.name} {model.fingerprint[:12]}",
                    "tile": f"{tile.l0_x},{tile.l0_y}",
                    DESCRIPTION: clean_description(tile.reasoning),
                },
            )
        )
    polygons: dict[int, list[uuid.UUID]] = {i: [] for i in range(len(spoken))}
    for annotation in annotations:
        for i in tree.query(annotation.geometry, predicate="intersects").tolist():
            polygons[i].append(annotation.id)
    spoken_polygons = iter(polygons.values())
    return annotations, [
        replace(tile, polygons=tuple(next(spoken_polygons))) if tile.segmented else tile for tile in said
    ]


def most_covered(tree: shapely.STRtree, polygon: shapely.Geometry) -> int:
    """Index of the tile in `tree` that shares the largest area with `polygon`; of equal ones the first."""
    near = np.sort(tree.query(polygon))
    boxes = tree.geometries[near]
    # No tile beats one that holds the polygon, as most are: the areas need not be worked out.
    outer, inner = shapely.bounds(boxes), shapely.bounds(polygon)
    around = np.flatnonzero((outer[:, :2] <= inner[:2]).all(axis=1) & (outer[:, 2:] >= inner[2:]).all(axis=1))
    if len(around):
        return int(near[around[0]])
    shapely.prepare(polygon)
    # No tile beats one that is covered whole, which is cheap to know also of a million points.
    covered = np.flatnonzero(shapely.contains_properly(polygon, boxes))
    if len(covered):
        return int(near[covered[0]])
    return int(near[np.argmax(shapely.area(shapely.intersection(polygon, boxes)))])


def _nothing_found(query: str, said: Sequence[TileReasoning]) -> str:
    """A sentence on what was looked at in vain, with the model's own words."""
    if not said:
        return f'"{query}": no tissue was found there, so nothing was looked at'
    drawn = sum(tile.segmented for tile in said)
    if drawn:
        return (
            f'"{query}": seen in {drawn} of {len(said)} tiles, but nothing passes threshold and minimum area'
        )
    words, _ = Counter(tile.reasoning for tile in said).most_common(1)[0]
    return f'"{query}": not found in {len(said)} tiles; the model says: {" ".join(words.split())}'
