"""For the tests of those who build on wsiseg: a slide of known truth, and a model that needs no weights.

    truth = synthetic_slide("t.tif", {"olive": [disk(400, 300, 90), ring(800, 300, 120, 60)]}, mpp=(0.5, 0.4))
    result = wsiseg.segment("t.tif", "outline the olive", model=FakeModel(mpp=1.0))

The slide is a real file, a tiled pyramidal TIFF: OpenSlide and tiffslide read it as they read any other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import shapely
import tifffile
from scipy import ndimage
from shapely import Polygon

from wsiseg.errors import QueryError
from wsiseg.inference import TileMask

# Greener than blue, which tissue in haematoxylin and eosin is not; nor like ink, which would be no tissue.
MARKERS: dict[str, tuple[int, int, int]] = {"olive": (130, 145, 0), "orange": (255, 110, 0)}
GLASS = 244
TIFF_TILE = 256


def disk(l0_x: float, l0_y: float, l0_radius: float) -> Polygon:
    return shapely.Point(l0_x, l0_y).buffer(l0_radius, quad_segs=64)


def ring(l0_x: float, l0_y: float, l0_outer: float, l0_inner: float) -> Polygon:
    """A disk with a round hole."""
    return disk(l0_x, l0_y, l0_outer).difference(disk(l0_x, l0_y, l0_inner))


def stripe(l0_x: float, l0_y: float, l0_width: float, l0_height: float) -> Polygon:
    """An upright rectangle with its top left corner at (l0_x, l0_y)."""
    return shapely.box(l0_x, l0_y, l0_x + l0_width, l0_y + l0_height)


def synthetic_slide(
    path: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[Polygon]],
    *,
    l0_width: int = 1200,
    l0_height: int = 800,
    mpp: tuple[float, float] | None = (0.5, 0.5),
    texture: np.ndarray | None = None,
    l0_bounds_xy: tuple[int, int] | None = None,
    jpeg_quality: int | None = None,
) -> dict[str, list[Polygon]]:
    """Write a slide with `shapes` painted on stained tissue, and return the truth in level-0 pixels.

    Args:
        path: the file to write, `.tif`, or `.scn` with `l0_bounds_xy`.
        shapes: marker (a key of `MARKERS`) -> polygons on the painted area, holes left open. A pixel is
            painted where its centre lies inside.
        l0_width: of the painted area, in pixels; a sixteenth on each side stays bare glass.
        l0_height: as `l0_width`.
        mpp: microns per pixel, x and y; None writes none.
        texture: (h, w, 3) uint8 pixels of real tissue, mirrored to fill the slide; None makes stained noise.
        l0_bounds_xy: place the painted area there on a larger Leica SCN slide, whose OpenSlide bounds are
            then (x, y, l0_width, l0_height). The returned truth is shifted along. Multiples of the largest
            downsample: readers place a level on whole pixels of that level.
        jpeg_quality: None stores without loss.

    Raises:
        ValueError: a shape leaves the painted area, or `l0_bounds_xy` without `mpp` or not as said above.
    """
    pixels = _tissue(l0_height, l0_width, texture)
    for marker, polygons in shapes.items():
        for polygon in polygons:
            _paint(pixels, polygon, MARKERS[marker])
    levels = [pixels]
    while min(levels[-1].shape[:2]) >= 2 * TIFF_TILE:
        levels.append(_halve(levels[-1]))
    if l0_bounds_xy is None:
        _write_tiff(path, levels, mpp, jpeg_quality)
    else:
        if mpp is None:
            raise ValueError("a Leica SCN slide always states its scale: give mpp")
        if any(v % 2 ** (len(levels) - 1) for v in l0_bounds_xy):
            raise ValueError(
                f"l0_bounds_xy must be multiples of {2 ** (len(levels) - 1)}, not {l0_bounds_xy}"
            )
        _write_scn(path, levels, mpp, l0_bounds_xy, jpeg_quality)
    l0_shift = np.array(l0_bounds_xy or (0, 0))
    return {
        marker: [shapely.transform(polygon, lambda l0_xy: l0_xy + l0_shift) for polygon in polygons]
        for marker, polygons in shapes.items()
    }


class FakeModel:
    """A `Segmenter` that finds the marker colour named in the query, and is silent where there is none."""

    name = "fake"
    fingerprint = "fake-1"

    def __init__(self, mpp: float = 1.0, tile_size: int = 128, overlap: int = 32) -> None:
        self.mpp = mpp
        self.tile_size = tile_size
        self.overlap = overlap

    def mpp_for(self, query: str) -> float:
        return self.mpp

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        """tiles (B, H, W, 3) uint8 -> B masks. QueryError if the query names no marker."""
        marker = next((name for name in MARKERS if name in query), None)
        if marker is None:
            raise QueryError(f"the fake model knows only {', '.join(MARKERS)}, not {query!r}")
        return [self._segment(tile, marker, mpp) for tile in tiles]

    @staticmethod
    def _segment(tile: np.ndarray, marker: str, mpp: float) -> TileMask:
        red, green, blue = np.moveaxis(tile.astype(np.float32), -1, 0)  # (H, W) each
        # 0 on glass, a little less on tissue, in full on a marker: close to the covered part of a pixel.
        lack_of_blue = green - blue
        is_orange = red - green > 0.9 * lack_of_blue
        _, full_green, full_blue = MARKERS[marker]
        covered = np.clip(lack_of_blue / (full_green - full_blue), 0, 1)
        probability = np.where(is_orange == (marker == "orange"), covered, 0)
        found = int((probability > 0.5).sum())
        if found == 0:
            return TileMask(None, f"I looked for {marker} and there is no {marker} here.", 0.01)
        return TileMask(probability, f"I see {found} px of {marker} at {mpp:g} um/px. <SEG>", 0.99)


def _tissue(height: int, width: int, texture: np.ndarray | None) -> np.ndarray:
    """(height, width, 3) uint8: tissue with a margin of glass."""
    margin_y, margin_x = height // 16, width // 16
    inner_h, inner_w = height - 2 * margin_y, width - 2 * margin_x
    if texture is None:
        texture = _stained_noise(inner_h, inner_w)
    repeat_y, repeat_x = -(-inner_h // texture.shape[0]), -(-inner_w // texture.shape[1])
    row = np.concatenate([texture[:, :: (-1) ** i] for i in range(repeat_x)], axis=1)
    tissue = np.concatenate([row[:: (-1) ** i] for i in range(repeat_y)], axis=0)[:inner_h, :inner_w]
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    pixels[margin_y : margin_y + inner_h, margin_x : margin_x + inner_w] = tissue
    return pixels


def _stained_noise(height: int, width: int) -> np.ndarray:
    """Eosin of varying depth with haematoxylin blobs; always the same."""
    random = np.random.default_rng(0)
    eosin = ndimage.gaussian_filter(random.standard_normal((height, width)), 12)
    nuclei = ndimage.gaussian_filter(random.standard_normal((height, width)), 4)
    depth = (0.8 + 0.15 * eosin / eosin.std())[..., None]
    pixels = 255 - depth * (255 - np.array([225.0, 160.0, 195.0]))
    pixels[nuclei > 1.5 * nuclei.std()] = (115, 75, 145)
    return pixels.clip(0, 255).astype(np.uint8)


def _paint(pixels: np.ndarray, polygon: Polygon, color: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = (int(v) for v in (*np.floor(polygon.bounds[:2]), *np.ceil(polygon.bounds[2:])))
    if x0 < 0 or y0 < 0 or x1 > pixels.shape[1] or y1 > pixels.shape[0]:
        raise ValueError(f"shape {polygon.bounds} leaves the painted area")
    x, y = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
    shapely.prepare(polygon)
    pixels[y0:y1, x0:x1][shapely.contains_xy(polygon, x, y)] = color


def _halve(pixels: np.ndarray) -> np.ndarray:
    h, w = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    blocks = pixels[:h, :w].reshape(h // 2, 2, w // 2, 2, 3)
    return np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)


def _page(jpeg_quality: int | None) -> dict[str, object]:
    page: dict[str, object] = {
        "photometric": "rgb",
        "tile": (TIFF_TILE, TIFF_TILE),
        "metadata": None,
        "software": "",
    }
    if jpeg_quality is None:
        return page | {"compression": "adobe_deflate"}
    return page | {"compression": "jpeg", "compressionargs": {"level": jpeg_quality}}


def _resolution(mpp: tuple[float, float], downsample: int) -> dict[str, object]:
    per_cm = tuple(10_000 / (um * downsample) for um in mpp)
    return {"resolution": per_cm, "resolutionunit": "CENTIMETER"}


def _write_tiff(
    path: str | os.PathLike[str],
    levels: list[np.ndarray],
    mpp: tuple[float, float] | None,
    jpeg_quality: int | None,
) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for i, pixels in enumerate(levels):
            scale = {} if mpp is None else _resolution(mpp, 2**i)
            tiff.write(pixels, subfiletype=int(i > 0), **_page(jpeg_quality), **scale)  # type: ignore[arg-type]


def _write_scn(
    path: str | os.PathLike[str],
    levels: list[np.ndarray],
    mpp: tuple[float, float],
    l0_bounds_xy: tuple[int, int],
    jpeg_quality: int | None,
) -> None:
    """A Leica SCN: a macro image of the whole glass, and one scanned area on it (OpenSlide's bounds).

    OpenSlide takes positions on the glass in nanometres of the x scale for both axes, and the y scale from
    the TIFF resolution (seen with 4.0.1).
    """
    nm = mpp[0] * 1000
    height, width = levels[0].shape[:2]
    glass_w, glass_h = (
        2 * TIFF_TILE * -(-(at + size + 1) // (2 * TIFF_TILE))
        for at, size in zip(l0_bounds_xy, (width, height), strict=True)
    )
    macro = np.full((glass_h // 16, glass_w // 16, 3), GLASS, np.uint8)
    areas = [
        (1.0, [macro], 0, (0, 0), (glass_w, glass_h)),
        (20.0, levels, 1, l0_bounds_xy, (width, height)),
    ]
    images = ""
    for objective, pyramid, first_ifd, (x, y), (w, h) in areas:
        sizes = [(level.shape[1], level.shape[0]) for level in pyramid]
        dimensions = "".join(
            f'<dimension sizeX="{size_x}" sizeY="{size_y}" r="{r}" ifd="{first_ifd + r}"/>'
            for r, (size_x, size_y) in enumerate(sizes)
        )
        images += (
            f'<image name="i{first_ifd}"><device model="synthetic" version="1"/>'
            "<creationDate>2000-01-01T00:00:00.000Z</creationDate>"
            f'<pixels sizeX="{sizes[0][0]}" sizeY="{sizes[0][1]}">{dimensions}</pixels>'
            f'<view sizeX="{w * nm:.0f}" sizeY="{h * nm:.0f}" offsetX="{x * nm:.0f}" offsetY="{y * nm:.0f}"/>'
            f"<scanSettings><objectiveSettings><objective>{objective:g}</objective></objectiveSettings>"
            "<illuminationSettings><numericalAperture>0.5</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings>"
            "</scanSettings></image>"
        )
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="synthetic" sizeX="{glass_w * nm:.0f}" sizeY="{glass_h * nm:.0f}"><barcode/>'
        f"{images}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(macro, description=xml, **_page(jpeg_quality))  # type: ignore[arg-type]
        for i, pixels in enumerate(levels):
            tiff.write(pixels, **_page(jpeg_quality), **_resolution(mpp, 2**i))  # type: ignore[arg-type]
