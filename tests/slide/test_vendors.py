"""Every format in its vendor's layout: what was scanned is what is read, whole and in tiles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from PIL import Image

import wsiseg
from tests.slide import vendors
from tests.slide.vendors import Scan
from tests.tiles.fakes import all_tissue
from wsiseg.errors import SlideError
from wsiseg.slide import Slide, open_slide
from wsiseg.testing import MARKERS, FakeModel
from wsiseg.tiles import GridSpec, SlideTiles, plan_grid

WRITERS = [
    vendors.mirax,
    vendors.bif,
    vendors.scn,
    vendors.philips,
    vendors.trestle,
    vendors.aperio_jp2k,
    vendors.qptiff,
    vendors.vms,
    vendors.dicom,
]


def write(writer: Callable[[Path, np.ndarray], Scan], folder: Path, scene: np.ndarray) -> Scan:
    if writer is vendors.dicom:
        pytest.importorskip("pydicom", reason="writes a DICOM series: pip install pydicom")
    return writer(folder, scene)


@pytest.fixture(scope="module")
def scene(sample_slide: Path) -> np.ndarray:
    """Real tissue, 640 x 520."""
    return np.ascontiguousarray(tifffile.imread(sample_slide, key=0)[1500:2020, 800:1440])


@pytest.fixture(scope="module", params=WRITERS, ids=lambda writer: writer.__name__)
def scan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, scene: np.ndarray) -> Scan:
    return write(request.param, tmp_path_factory.mktemp("scan"), scene)


def over_white(image: Image.Image) -> np.ndarray:
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def whole(slide: Slide, level: int) -> np.ndarray:
    return slide.read_region(0, 0, level, *slide.level_dimensions[level])


def test_what_was_scanned_is_what_is_read(scan: Scan) -> None:
    with openslide.OpenSlide(scan.path) as reference, open_slide(scan.path) as slide:
        assert reference.properties[openslide.PROPERTY_NAME_VENDOR] == scan.vendor
        assert (slide.backend, slide.vendor, slide.mpp) == ("openslide", scan.vendor, scan.mpp)
        assert slide.l0_bounds == scan.l0_bounds
        for level, truth in enumerate(scan.levels):
            assert slide.level_scales[level] == (2**level, 2**level)
            found = whole(slide, level)
            by_openslide = reference.read_region((0, 0), level, reference.level_dimensions[level])
            np.testing.assert_array_equal(found, over_white(by_openslide))
            if truth is not None:
                np.testing.assert_array_equal(found, truth)


def test_tiles_equal_openslide_byte_for_byte(scan: Scan) -> None:
    with openslide.OpenSlide(scan.path) as reference, open_slide(scan.path, slide_mpp=0.5) as slide:
        for level in range(len(scan.levels)):
            grid = plan_grid(slide, GridSpec(0.5 * 2**level, 100, 20), tissue=all_tissue(slide))
            width, height = slide.level_dimensions[level]
            for (x, y), tile in zip(grid.m_xy.tolist(), SlideTiles(slide, grid).tiles(range(len(grid))), strict=True):
                part = reference.read_region((x * 2**level, y * 2**level), level, (100, 100))
                inside = np.s_[max(-y, 0) : height - y, max(-x, 0) : width - x]
                np.testing.assert_array_equal(tile[inside], over_white(part)[inside])


def test_tiffslide_reads_the_same_or_says_that_it_cannot(scan: Scan) -> None:
    if not scan.tiffslide:
        with pytest.raises(SlideError, match="tiffslide"):
            open_slide(scan.path, backend="tiffslide", slide_mpp=0.5)
        return
    with open_slide(scan.path, backend="tiffslide") as slide:
        assert (slide.mpp, slide.l0_bounds) == (scan.mpp, scan.l0_bounds)
        for level, truth in enumerate(scan.levels):
            np.testing.assert_array_equal(whole(slide, level), truth)


def test_a_camera_that_misses_the_grid_leaves_no_seam_between_tiles(tmp_path: Path, scene: np.ndarray) -> None:
    """MIRAX positions are measured: on coarse levels photos lie at quarters of a pixel, and are blended."""
    scan = vendors.mirax(tmp_path, scene, step=3)
    with open_slide(scan.path) as slide:
        np.testing.assert_array_equal(whole(slide, 0), scan.levels[0])
        for mpp in (0.5, 0.7, 1.0):
            size = slide.m_dimensions(mpp)
            full = slide.read_at_mpp(0, 0, *size, mpp)
            for x, y in ((37, 41), (64, 64), (size[0] - 50, size[1] - 50)):
                np.testing.assert_array_equal(slide.read_at_mpp(x, y, 50, 50, mpp), full[y : y + 50, x : x + 50])


@pytest.mark.parametrize("writer", [vendors.mirax, vendors.scn], ids=lambda writer: writer.__name__)
def test_outlines_count_from_the_bounds_as_in_qupath(
    tmp_path: Path, scene: np.ndarray, writer: Callable[[Path, np.ndarray], Scan]
) -> None:
    painted = scene.copy()
    painted[250:330, 350:450] = MARKERS["olive"]
    scan = writer(tmp_path, painted)
    assert scan.l0_bounds is not None
    by_qupath, by_slide = (
        wsiseg.segment(scan.path, "olive", model=FakeModel(mpp=0.5), origin=origin).annotations
        for origin in ("qupath", "slide")
    )
    assert len(by_qupath) == len(by_slide) > 0
    for a, b in zip(by_qupath, by_slide, strict=True):
        shifted = shapely.transform(a.geometry, lambda xy: xy + scan.l0_bounds[:2])
        assert shapely.hausdorff_distance(shifted, b.geometry) < 0.02
        found = scan.levels[0][int(b.geometry.centroid.y), int(b.geometry.centroid.x)]
        assert tuple(found) == MARKERS["olive"]


def test_an_interrupted_copy_is_one_clear_line(tmp_path: Path, scene: np.ndarray) -> None:
    """MIRAX and VMS slides are folders: a file that is missing beside the named one is told."""
    mirax, vms = vendors.mirax(tmp_path / "m", scene), vendors.vms(tmp_path / "v", scene)
    (tmp_path / "m" / "slide" / "Index.dat").unlink()
    (tmp_path / "v" / "slide-1-1.jpg").unlink()
    for scan in (mirax, vms):
        with pytest.raises(SlideError) as caught:
            open_slide(scan.path)
        assert "\n" not in str(caught.value)
        assert str(scan.path) in str(caught.value)
    shutil.rmtree(tmp_path / "m" / "slide")
    with pytest.raises(SlideError, match="without its pixels: the folder slide"):  # and is no picture of the glass
        open_slide(mirax.path)
