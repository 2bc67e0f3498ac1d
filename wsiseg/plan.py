"""What to look at: the slide or store that was named, and its tiles at the resolution that each query wants."""

from __future__ import annotations

import logging
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from numbers import Real
from typing import get_args

import numpy as np
import shapely

from wsiseg.errors import QueryError, SlideError, StoreError
from wsiseg.inference import Segmenter
from wsiseg.mask import l0_origin
from wsiseg.mask.regions import Origin
from wsiseg.slide import Slide, check_unchanged, open_slide, tissue_mask
from wsiseg.tiles import GridSpec, OnBadTile, SlideTiles, TileSource, TileStore, is_store, plan_grid, touching

log = logging.getLogger(__name__)

Box = tuple[float, float, float, float]  # x, y, width, height


@dataclass(frozen=True)
class Pass:
    """Tiles of one resolution, and the queries to ask of them. left_out: how many a first pass took out of them."""

    tiles: TileSource
    queries: list[str]
    left_out: int = 0

    def only(self, tiles: TileSource) -> Pass:
        """With some of its tiles."""
        return replace(self, tiles=tiles, left_out=len(self.tiles.grid) - len(tiles.grid))


def check_parameters(
    *,
    mpp: float | None,
    threshold: float,
    min_area_um2: float,
    simplify_um: float | None,
    origin: Origin,
    batch_size: int | None,
    on_bad_tile: OnBadTile,
) -> None:
    """QueryError if one is out of its range: before a slide is opened, not after it was asked."""
    rules = [
        (mpp is None or mpp > 0, f"mpp {mpp} must be above 0"),
        (0 < threshold <= 1, f"threshold {threshold} must be above 0 and at most 1"),
        (min_area_um2 >= 0, f"min_area_um2 {min_area_um2} must be 0 or more"),
        (simplify_um is None or simplify_um >= 0, f"simplify_um {simplify_um} must be 0 or more"),
        (origin in get_args(Origin), f"origin {origin!r} must be {' or '.join(get_args(Origin))}"),
        (batch_size is None or _counts(batch_size), f"batch_size {batch_size} must be a whole number from 1"),
        (on_bad_tile in get_args(OnBadTile), f"on_bad_tile {on_bad_tile!r} must be {' or '.join(get_args(OnBadTile))}"),
    ]
    for kept, said in rules:
        if not kept:
            raise QueryError(said)


def _counts(number: float) -> bool:
    return number >= 1 and number % 1 == 0


def open_source(
    stack: ExitStack,
    source: str | os.PathLike[str],
    backend: str | None,
    slide_mpp: float | tuple[float, float] | None,
    on_bad_tile: OnBadTile,
) -> Slide | TileStore:
    """A slide, which `stack` will close, or a tile store. Raises SlideError, MissingMppError, StoreError."""
    if not isinstance(source, str | os.PathLike):
        said = f"a slide is given as its path or URL, not as {type(source).__name__}"
        raise SlideError(f"{said}: save a picture as PNG, and give slide_mpp")
    if not is_store(source):
        slide = stack.enter_context(open_slide(source, backend=backend, slide_mpp=slide_mpp))
        _ = slide.mpp  # raises MissingMppError
        return slide
    if backend is not None or slide_mpp is not None:
        raise StoreError(f"{os.fspath(source)} is a tile store: backend and slide mpp were set when it was made")
    return TileStore.open(source, on_bad_tile=on_bad_tile)


def plan_passes(
    opened: Slide | TileStore,
    queries: list[str],
    model: Segmenter,
    mpp: float | None,
    l0_region: Box | None,
    on_bad_tile: OnBadTile,
) -> list[Pass]:
    """What to read, once for each resolution, and which queries to ask there."""
    if isinstance(opened, TileStore):
        stored, size = opened.grid.spec.mpp, opened.grid.spec.tile_size
        if mpp is not None and not np.isclose(mpp, stored):
            raise StoreError(f"{opened.path} holds tiles of {stored:g} µm/px, not {mpp:g}: tile the slide again")
        for q in queries:
            if not 0.75 < stored / model.mpp_for(q) < 1.33:
                wanted = model.mpp_for(q)
                log.warning('the store has %g µm/px; for "%s" the model prefers %g', stored, q, wanted)
        if size != model.tile_size:
            log.warning("the store has tiles of %d px; the model is made for %d", size, model.tile_size)
        return [Pass(opened, queries)]
    by_mpp: dict[float, list[str]] = {}
    for q in queries:
        by_mpp.setdefault(model.mpp_for(q) if mpp is None else mpp, []).append(q)
    tissue = tissue_mask(opened, forgiving=on_bad_tile == "skip")
    # A plain image was cut out by somebody who wants all of it looked at.
    least = 0.0 if opened.backend == "image" else GridSpec.min_tissue
    specs = {m: GridSpec(m, model.tile_size, model.overlap, least) for m in by_mpp}
    passes = []
    for m, asked in by_mpp.items():
        grid = plan_grid(opened, specs[m], tissue=tissue)
        if l0_region is not None:
            grid = touching(grid, l0_region)
        passes.append(Pass(SlideTiles(opened, grid, on_bad_tile), asked))
    return passes


def box_of(box: Box) -> shapely.Polygon:
    x, y, width, height = box
    return shapely.box(x, y, x + width, y + height)


def l0_region_of(region: Box, opened: Slide | TileStore, origin: Origin) -> Box:
    """`region` in level-0 pixels of the whole slide. QueryError if it holds nothing of it."""
    if isinstance(opened, TileStore):
        raise StoreError(f"{opened.path} is a tile store: a region can only be asked of a slide")
    is_box = len(region) == 4 and all(isinstance(value, Real) and math.isfinite(value) for value in region)
    if not (is_box and min(region[2:]) > 0):
        raise QueryError(f"the region {_said(region)} has no area: give x, y, width and height in pixels")
    l0_dx, l0_dy = l0_origin(opened.l0_bounds, origin)
    l0_box = (region[0] + l0_dx, region[1] + l0_dy, *region[2:])
    if not box_of(l0_box).intersection(shapely.box(0, 0, *opened.dimensions)).area > 0:  # touching holds no pixel
        raise QueryError(f"the region {_said(region)} lies outside the slide")
    return l0_box


def _said(region: Box) -> str:
    return ",".join(f"{value:g}" if isinstance(value, Real) else repr(value) for value in region)


def check_source(opened: Slide | TileStore, skipped: int, total: int, *, whole: bool) -> None:
    """Raises SlideError unless the slide that was read is still the one that was opened, and some of it was read.

    whole: whether all of its tissue was to be read; a few tiles may all be damaged.
    """
    if isinstance(opened, TileStore):
        if skipped == total > 0:
            raise StoreError(f"{opened.path} holds no tile that could be read: mend the slide and tile it again")
        return
    if whole and skipped == total > 0:
        raise SlideError(f"no tile of {opened.source} can be read: copy or download the slide again")
    check_unchanged(opened, all_read=not skipped)
