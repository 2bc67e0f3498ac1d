"""What was found, in the words of QuPath: outlines with measurements, and the reasoning that they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import shapely

from wsiseg.geojson import Annotation, annotation_id
from wsiseg.inference import Segmenter, TileMask
from wsiseg.inference.shots import Shot
from wsiseg.mask import Region, l0_origin
from wsiseg.mask.regions import Origin
from wsiseg.qupath import DESCRIPTION, class_color, clean_description, clean_text, query_class
from wsiseg.result import MAX_CHAIN, Ids, TileReasoning
from wsiseg.tiles import Grid

_HAND = np.dtype([("place", "<i8"), ("id", "V16")])


def tile_reasoning(query: str, grid: Grid, m_x: int, m_y: int, mask: TileMask) -> TileReasoning:
    """What was said about the tile whose corner lies at (m_x, m_y)."""
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


def annotate(
    query: str,
    outlines: Iterable[Region],
    said: Sequence[TileReasoning],
    grid: Grid,
    model: Segmenter,
    examples: Sequence[Shot],
    origin: Origin,
    add: Callable[[Annotation, int], None],
) -> list[TileReasoning]:
    """Outlines as QuPath objects, each with the reasoning of the tile that it covers most.

    Args:
        add: called with each object and its place in their order.

    Returns:
        What was said, each tile with the outlines that it had a hand in.
    """
    spoken = [tile for tile in said if tile.segmented]
    l0_dx, l0_dy = l0_origin(grid.slide.l0_bounds, origin)
    boxes = np.array([shapely.box(t.l0_x, t.l0_y, t.l0_x + t.l0_width, t.l0_y + t.l0_height) for t in spoken])
    tree = shapely.STRtree(shapely.transform(boxes, lambda l0_xy: l0_xy - (l0_dx, l0_dy)))
    made_by = (grid.slide.fingerprint, model.name, model.fingerprint, query, *(e.fingerprint for e in examples))
    color = class_color(query)

    @lru_cache(1024)
    def metadata(spoken_index: int) -> dict[str, str]:
        tile = spoken[spoken_index]
        return {
            "query": query,
            "model": f"{model.name} {model.fingerprint[:12]}",
            "tile": f"{tile.l0_x},{tile.l0_y}",
            DESCRIPTION: clean_description(tile.reasoning),
        }

    hands = [bytearray() for _ in spoken]  # records of _HAND
    for outline in outlines:
        annotation = Annotation(
            id=annotation_id(outline.polygon, *made_by),
            geometry=outline.polygon,
            name=query,
            classification=query_class(query),
            color=color,
            measurements={
                "Area µm^2": outline.area_um2,
                "Perimeter µm": outline.perimeter_um,
                "Solidity": outline.solidity,
                "Mean probability": outline.mean_probability,
            },
            metadata=metadata(most_covered(tree, outline.polygon)),
        )
        add(annotation, outline.place)
        hand = np.array((outline.place, annotation.id.bytes), _HAND).tobytes()
        for i in tree.query(outline.polygon, predicate="intersects").tolist():
            hands[i] += hand
    polygons = map(_in_place_order, hands)
    return [replace(tile, polygons=next(polygons)) if tile.segmented else tile for tile in said]


def _in_place_order(hand: bytearray) -> Ids:
    records = np.frombuffer(hand, _HAND)
    return Ids(records["id"][np.argsort(records["place"], kind="stable")].tobytes())


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


def nothing_found(query: str, said: Sequence[TileReasoning], left_out: int, hint: str, where: str = "") -> str:
    """A sentence on what was looked at in vain, with the model's own words; a first pass has `left_out` tiles.

    hint: what to make of it, or to do; "" for nothing.
    where: the part of the tiles that was asked for, such as " in the region".
    """
    bracket = hint and f" ({hint})"
    if not said and left_out:
        looked = f"from twice as far away, none of {left_out} tiles was worth a closer look"
        return f'"{query}": not found{bracket}; {looked}'
    if not said:
        return f'"{query}": no tissue was found there, so nothing was looked at'
    drawn = sum(tile.segmented for tile in said)
    if drawn:
        return f'"{query}": seen in {drawn} of {len(said)} tiles, but nothing{where} passes threshold and minimum area'
    words, _ = Counter(tile.reasoning for tile in said).most_common(1)[0]
    return f'"{query}": not found in {len(said)} tiles{bracket}; the model says: {" ".join(words.split())}'
