"""Cells that touch are cut apart at their necks; what has no neck stays whole."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.mask import necks
from wsiseg.mask.necks import cut_at_necks

MPP = 0.35


def cell(m_x: float, m_y: float, m_radius: float = 12.0) -> shapely.Polygon:
    return shapely.Point(m_x, m_y).buffer(m_radius, 16)


def arc(m_radius: float, turn: float) -> shapely.LineString:
    angle = np.linspace(0, turn, 60)
    return shapely.LineString(100 + m_radius * np.column_stack([np.cos(angle), np.sin(angle)]))


def pieces_of(*shapes: shapely.Geometry) -> list[shapely.Polygon]:
    pieces, whole = cut_at_necks(np.array(shapes, object), MPP)
    assert (np.diff(whole) >= 0).all()
    for k, shape in enumerate(shapes):
        mine = pieces[whole == k]
        assert shapely.area(mine).sum() == pytest.approx(shape.area)
        assert shapely.union_all(mine).symmetric_difference(shape).area < 1e-6 * shape.area
    return list(pieces)


def test_two_cells_are_cut_from_cusp_to_cusp() -> None:
    first, second = cell(40.3, 50.8), cell(60.1, 52.9, 10)
    one, other = pieces_of(first | second)
    assert one.difference(first.buffer(0.5)).is_empty  # the piece of a cell holds no more than that cell
    assert other.difference(second.buffer(0.5)).is_empty
    cusps = shapely.intersection(first.exterior, second.exterior)
    cut = shapely.intersection(one.boundary, other.boundary)
    assert shapely.hausdorff_distance(cut, shapely.LineString(shapely.get_parts(cusps))) < 0.5


@pytest.mark.parametrize(
    "shape",
    [
        cell(50, 50),
        shapely.affinity.scale(cell(50, 50), 2.5, 0.8),
        arc(30, 2.5).buffer(8),  # a bean
        arc(30, 4.5).buffer(8).simplify(0.25),  # nearly a ring
        cell(50, 50, 30) - cell(50, 50, 12),
        cell(50, 50) | cell(50, 37, 3),  # a bud, too small for a cell
        cell(50, 50) | cell(50, 34.8, 3.6),  # also where its neck is thin
        cell(40, 50) | cell(54, 50) | cell(48, 64.5, 6),  # one hill is another's by way of a third
        shapely.box(0.2, 0.2, 0.4, 0.4),
    ],
)
def test_what_has_no_neck_stays_whole(shape: shapely.Polygon) -> None:
    assert pieces_of(shape) == [shape]


def test_a_neck_without_corners_is_cut_too() -> None:
    assert len(pieces_of((cell(40.3, 50.8) | cell(62.1, 52.9, 10)).buffer(3).buffer(-3))) == 2
    drawn_by_hand = shapely.Polygon([(0, 0), (40, 18), (80, 0), (80, 40), (40, 22), (0, 40)])  # edges far longer
    assert [p.area for p in pieces_of(drawn_by_hand)] == pytest.approx([880, 880])


def test_the_highest_saddle_counts_first() -> None:
    """What lies between two cells goes with the one that it is more joined to."""
    for side in (1, -1):
        cells = [(0, 0, 12), (14.5, -3, 4), (29.5, -1, 12)]
        pieces = pieces_of(shapely.union_all([cell(50 + side * x, 50 + y, r) for x, y, r in cells]))
        assert [round(p.area) for p in pieces] == [451, 496]
    # Two hills are cut apart at one saddle, not at each that they meet at.
    assert len(pieces_of(cell(40, 50) | cell(54, 50) | cell(48, 65.5, 6))) == 1


def test_cells_around_a_gap() -> None:
    angles = np.arange(6) * np.pi / 3
    rosette = shapely.union_all([cell(100 + 22 * np.cos(a), 100 + 22 * np.sin(a)) for a in angles])
    assert len(rosette.interiors) == 1
    found = pieces_of(cell(300, 300), rosette, cell(400, 300))
    assert len(found) == 8
    assert max(piece.area for piece in found) < 1.05 * cell(0, 0).area


def test_a_sheet_of_cells_wider_than_what_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = shapely.union_all([cell(20 + 23 * i, 20 + 23 * j) for i in range(12) for j in range(4)])
    assert sheet.geom_type == "Polygon"
    found = pieces_of(sheet)
    assert len(found) == 48
    tops = [round(p.bounds[1], 6) for p in found]
    assert tops == sorted(tops)
    monkeypatch.setattr(necks, "_WINDOW", 64)
    in_windows = pieces_of(shapely.affinity.translate(sheet, 1000, 2000))
    assert [p.area for p in in_windows] == pytest.approx([p.area for p in found], rel=0.01)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(10, 90), st.floats(10, 90), st.floats(1, 20)), min_size=1, max_size=9))
def test_pieces_are_the_outline_without_overlaps(cells) -> None:
    drawn = shapely.union_all([cell(*c) for c in cells])
    found = pieces_of(*shapely.get_parts(drawn))
    tree = shapely.STRtree(found)
    one, other = tree.query(found, predicate="overlaps")
    shared = shapely.intersection(np.array(found)[one], np.array(found)[other])
    assert shapely.area(shared).sum() < 1e-6
