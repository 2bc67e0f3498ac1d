"""Painting is the opposite of tracing, and paints what GDAL does."""

from __future__ import annotations

import numpy as np
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsiseg.mask import trace
from wsiseg.mask.raster import paint

masks = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 1))


def painted(polygons: np.ndarray, values: np.ndarray, shape: tuple[int, int], x0: int = 0, y0: int = 0) -> np.ndarray:
    out = np.zeros(shape, np.uint32)
    paint(polygons, values, out, x0, y0)
    return out


@settings(max_examples=60, deadline=None)
@given(masks)
def test_a_traced_mask_is_painted_as_it_was(mask: np.ndarray) -> None:
    polygons = trace([(0, mask)], mask.shape[1])
    assert (painted(polygons, np.ones(len(polygons), int), mask.shape) == mask).all()


def test_overlapping_polygons_and_holes_as_gdal_paints_them_whole_or_in_blocks() -> None:
    random = np.random.default_rng(0)
    disks = [shapely.Point(*random.uniform(-20, 220, 2)).buffer(random.uniform(0.3, 15)) for _ in range(300)]
    rings = [disk - disk.centroid.buffer(np.sqrt(disk.area) / 4) for disk in disks[::3]]
    polygons = np.array([*disks, *rings, shapely.MultiPolygon([disks[0], shapely.box(100.3, 90.2, 130, 95)])], object)
    values = np.arange(1, len(polygons) + 1)
    shapes = zip(polygons, values.tolist(), strict=True)
    whole = painted(polygons, values, (200, 180))
    assert (whole == rasterio.features.rasterize(shapes, out_shape=(200, 180), dtype="uint32")).all()
    assert (painted(polygons, values, (64, 50), 30, 40) == whole[40:104, 30:80]).all()
    assert not painted(polygons[:0], values[:0], (5, 5)).any()
