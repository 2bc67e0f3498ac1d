"""Slides in the layouts that vendors' scanners write, with known pixels.

No vendor's files can be kept here, so these follow OpenSlide's descriptions of the formats
(https://openslide.org/formats/). Each writer cuts `scene`, an (h, w, 3) uint8 picture, as the scanner would
into photos, areas or tiles, and returns what a reader has to put together again, without loss where the format
allows it. Photos and areas lie on multiples of 4, so that levels of 1, 1/2 and 1/4 have one true answer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from tests.slide.make import half
from wsiseg.testing import synthetic_slide

TILE = 64
LEVELS = 3


@dataclass(frozen=True)
class Scan:
    """A slide on disk and its truth.

    levels: (h, w, 3) per level, white where nothing was scanned; None where only OpenSlide can say.
    """

    path: Path
    vendor: str
    mpp: tuple[float, float]
    levels: tuple[np.ndarray | None, ...]
    l0_bounds: tuple[int, int, int, int] | None = None
    tiffslide: bool = True


def halves(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    levels = [pixels]
    while len(levels) < LEVELS:
        levels.append(half(levels[-1]))
    return tuple(levels)


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def cut(pixels: np.ndarray, stride: int) -> Iterator[np.ndarray]:
    """Tiles of TILE pixels, row by row, every `stride` pixels, padded with white."""
    for y in range(0, max(1, pixels.shape[0] - TILE + stride), stride):
        for x in range(0, max(1, pixels.shape[1] - TILE + stride), stride):
            tile = white(TILE, TILE)
            part = pixels[y : y + TILE, x : x + TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def padded(pixels: np.ndarray) -> np.ndarray:
    """To whole tiles, with white."""
    height, width = (-(-size // TILE) * TILE for size in pixels.shape[:2])
    out = white(height, width)
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


# MIRAX


def mirax(folder: Path, scene: np.ndarray, step: int = 4) -> Scan:
    """3DHISTECH MIRAX: a camera takes overlapping photos, each cut into 2 x 2 images, at measured positions.

    Two columns of photos at the left, the row at the top and one at the bottom right are left out, as where there
    is no tissue.
    step: positions differ from the nominal ones by this much; where it is no multiple of 4, levels are
    blended and have no truth.
    """
    divisions, image, overlap = 2, TILE, 16
    photo, advance = divisions * image, divisions * image - overlap
    columns, rows = ((size - overlap) // advance for size in (scene.shape[1], scene.shape[0]))
    photos = {
        (column, row): (
            column * advance + (0, step, -step)[(column + row) % 3] * (0 < column < columns - 1),
            row * advance + (0, -step, step)[(column + row) % 3] * (0 < row < rows - 1),
        )
        for row in range(1, rows)
        for column in range(2, columns)
        if (column, row) != (columns - 1, rows - 1)
    }
    # The images side by side as the scanner numbers them, without regard to the overlap.
    mosaic = white(rows * photo, columns * photo)
    placed = white(rows * advance + overlap, columns * advance + overlap)
    for (column, row), (x, y) in photos.items():
        taken = scene[y : y + photo, x : x + photo]
        mosaic[row * photo : (row + 1) * photo, column * photo : (column + 1) * photo] = taken
        placed[y : y + photo, x : x + photo] = taken

    (folder / "slide").mkdir(parents=True)
    data, entries = b"", []
    for level, pixels in enumerate(halves(mosaic)):
        concat = 2**level  # images of the first level in one of this, along each side
        entries.append([])
        for y in range(0, rows * divisions, concat):
            for x in range(0, columns * divisions, concat):
                inside = range(x // divisions, -(-(x + concat) // divisions))
                below = range(y // divisions, -(-(y + concat) // divisions))
                if any((column, row) in photos for column in inside for row in below):
                    box = pixels[y * image // concat :, x * image // concat :][:image, :image]
                    png = imagecodecs.png_encode(padded(box))
                    entries[-1].append((y * columns * divisions + x, len(data), len(png), 0))
                    data += png
    flagged = [photos.get((column, row), (0, 0)) for row in range(rows) for column in range(columns)]
    position_buffer = b"".join(struct.pack("<Bii", 1, *xy) for xy in flagged)
    (folder / "slide" / "Data0000.dat").write_bytes(data + position_buffer)
    _write_mirax_index(folder / "slide" / "Index.dat", entries, (len(data), len(position_buffer)))
    _write_mirax_ini(folder / "slide" / "Slidedat.ini", columns * divisions, rows * divisions, divisions, overlap)
    (folder / "slide.mrxs").write_bytes(imagecodecs.jpeg8_encode(scene[:100, :100].copy()))

    x0, y0 = (min(at) for at in zip(*photos.values(), strict=True))
    x1, y1 = (max(at) + photo for at in zip(*photos.values(), strict=True))
    levels = halves(placed) if step % 4 == 0 else (placed, None, None)
    return Scan(
        folder / "slide.mrxs", "mirax", (0.25, 0.26), levels, (x0, y0, x1 - x0, y1 - y0), tiffslide=False
    )


_MIRAX_ID = "0123456789ABCDEF0123456789ABCDEF"


def _write_mirax_index(
    path: Path, entries: list[list[tuple[int, int, int, int]]], positions: tuple[int, int]
) -> None:
    """Roots of the zoom levels and of the rest; each root leads to records, each record to its pages."""
    out = bytearray(b"01.02" + _MIRAX_ID.encode() + bytes(8))
    roots = len(out) - 8

    def pointer() -> int:
        return len(out)

    def table(count: int) -> int:
        at = pointer()
        out.extend(bytes(4 * count))
        return at

    def set_int(at: int, value: int) -> None:
        out[at : at + 4] = struct.pack("<i", value)

    hier, nonhier = table(len(entries)), table(1)
    set_int(roots, hier)
    set_int(roots + 4, nonhier)
    for level, images in enumerate(entries):
        set_int(hier + 4 * level, pointer())
        out.extend(struct.pack("<ii", 0, pointer() + 8))
        first, rest = images[:3], images[3:]  # two pages, as long lists have
        out.extend(struct.pack("<ii", len(first), pointer() + 8 + 16 * len(first)))
        out.extend(b"".join(struct.pack("<iiii", *entry) for entry in first))
        out.extend(struct.pack("<ii", len(rest), 0))
        out.extend(b"".join(struct.pack("<iiii", *entry) for entry in rest))
    set_int(nonhier, pointer())
    out.extend(struct.pack("<ii", 0, pointer() + 8))
    out.extend(struct.pack("<iiiiiii", 1, 0, 0, 0, *positions, 0))
    path.write_bytes(out)


def _write_mirax_ini(path: Path, images_x: int, images_y: int, divisions: int, overlap: int) -> None:
    text = (
        f"[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = {_MIRAX_ID}\nIMAGENUMBER_X = {images_x}\n"
        f"IMAGENUMBER_Y = {images_y}\nOBJECTIVE_MAGNIFICATION = 20\nCameraImageDivisionsPerSide = {divisions}\n"
        f"[HIERARCHICAL]\nHIER_COUNT = 1\nNONHIER_COUNT = 1\nINDEXFILE = Index.dat\n"
        f"HIER_0_NAME = Slide zoom level\nHIER_0_COUNT = {LEVELS}\n"
        "NONHIER_0_NAME = VIMSLIDE_POSITION_BUFFER\nNONHIER_0_COUNT = 1\nNONHIER_0_VAL_0 = default\n"
        "NONHIER_0_VAL_0_SECTION = NONHIERLAYER_0_SECTION\n"
    )
    for level in range(LEVELS):
        text += f"HIER_0_VAL_{level} = ZoomLevel_{level}\nHIER_0_VAL_{level}_SECTION = LAYER_0_LEVEL_{level}_SECTION\n"
    text += "[NONHIERLAYER_0_SECTION]\nVIMSLIDE_POSITION_DATA_FORMAT_VERSION = 257\n"
    text += "[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n"
    for level in range(LEVELS):
        text += (
            f"[LAYER_0_LEVEL_{level}_SECTION]\nOVERLAP_X = {overlap / 2**level}\nOVERLAP_Y = {overlap / 2**level}\n"
            f"MICROMETER_PER_PIXEL_X = {0.25 * 2**level}\nMICROMETER_PER_PIXEL_Y = {0.26 * 2**level}\n"
            f"IMAGE_FORMAT = PNG\nIMAGE_FILL_COLOR_BGR = 16777215\nDIGITIZER_WIDTH = {TILE}\n"
            f"DIGITIZER_HEIGHT = {TILE}\nIMAGE_CONCAT_FACTOR = {min(level, 1)}\n"
        )
    path.write_text(text)


# Ventana


def bif(folder: Path, scene: np.ndarray) -> Scan:
    """Ventana BIF: areas of overlapping tiles on one grid, each area at a position of its own."""
    overlap, columns, rows = 8, 9, 5
    advance = TILE - overlap
    areas = [((0, 0), (4, 3), (0, 0)), ((5, 1), (3, 4), (308, 52))]  # first tile, tiles, true corner: (x, y)

    def length(tiles: int) -> int:
        return tiles * advance + overlap

    width = max(x + length(across) for _, (across, _), (x, _) in areas)
    height = max(y + length(down) for _, (_, down), (_, y) in areas)
    mosaic, placed = white(rows * TILE, columns * TILE), white(height, width)
    info = origins = ""
    for i, ((column0, row0), (across, down), (x0, y0)) in enumerate(areas):
        for row in range(down):
            for column in range(across):
                x, y = x0 + column * advance, y0 + row * advance
                m_x, m_y = (column0 + column) * TILE, (row0 + row) * TILE
                tile = scene[y : y + TILE, x : x + TILE]
                mosaic[m_y : m_y + TILE, m_x : m_x + TILE] = placed[y : y + TILE, x : x + TILE] = tile
        info += (
            f'<ImageInfo AOIScanned="1" AOIIndex="{i}" NumRows="{down}" NumCols="{across}" Width="{TILE}" '
            f'Height="{TILE}" Pos-X="{x0}" Pos-Y="{height - y0 - length(down)}">'
            f"{_joints(across, down, overlap)}</ImageInfo>"
        )
        origins += f'<AOI{i} OriginX="{column0 * TILE}" OriginY="{row0 * TILE}"/>'
    stitching = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo>{info}</SlideStitchInfo><AoiOrigin>{origins}</AoiOrigin></EncodeInfo>'
    )
    scanner = '<iScan Magnification="20" ScanRes="0.465" UnitNumber="2000515" Z-layers="1" Z-spacing="1"/>'
    path = folder / "slide.bif"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        label = scene[:90, :60]
        tiff.write(label, photometric="rgb", description="Label Image", metadata=None, extratags=[_xmp(scanner)])
        for level, pixels in enumerate(halves(mosaic)):
            tiff.write(
                padded(pixels), photometric="rgb", tile=(TILE, TILE), compression="deflate", metadata=None,
                description=f"level={level} mag={20 / 2**level:g} quality=95",
                extratags=[_xmp(stitching)] if level == 0 else [],
            )  # fmt: skip
    return Scan(path, "ventana", (0.465, 0.465), halves(placed), tiffslide=False)


def _joints(across: int, down: int, overlap: int) -> str:
    """Tiles are numbered from the bottom row up, in turns to the right and to the left."""

    def number(column: int, row: int) -> int:
        up = down - 1 - row
        return 1 + up * across + (across - 1 - column if up % 2 else column)

    def joint(direction: str, a: int, b: int, x: int, y: int) -> str:
        return (
            f'<TileJointInfo FlagJoined="1" Confidence="99" Direction="{direction}" Tile1="{a}" Tile2="{b}" '
            f'OverlapX="{x}" OverlapY="{y}"/>'
        )

    right = (
        joint("RIGHT", number(column, row), number(column + 1, row), overlap, 0)
        for row in range(down)
        for column in range(across - 1)
    )
    up = (
        joint("UP", number(column, row + 1), number(column, row), 0, overlap)
        for row in range(down - 1)
        for column in range(across)
    )
    return "".join((*right, *up))


def _xmp(text: str) -> tuple[int, int, int, bytes, bool]:
    data = text.encode()
    return 700, 1, len(data), data, True


# Leica, Philips


def scn(folder: Path, scene: np.ndarray) -> Scan:
    """Leica SCN: one scanned area on a larger glass."""
    size, at = {"l0_width": 640, "l0_height": 512}, (208, 112)
    synthetic_slide(folder / "area.tif", {}, texture=scene, **size)
    synthetic_slide(folder / "slide.scn", {}, texture=scene, l0_bounds_xy=at, **size)
    levels = []
    for level in range(2):
        area, glass = tifffile.imread(folder / "area.tif", key=level), white(1024 >> level, 1024 >> level)
        y, x = at[1] >> level, at[0] >> level
        glass[y : y + area.shape[0], x : x + area.shape[1]] = area
        levels.append(glass)
    return Scan(folder / "slide.scn", "leica", (0.5, 0.5), tuple(levels), (*at, 640, 512))


def philips(folder: Path, scene: np.ndarray) -> Scan:
    """Philips TIFF: every level padded to whole tiles, tiles without tissue missing."""
    full = padded(scene)
    full[TILE : 3 * TILE, 2 * TILE : 6 * TILE] = 255
    spacing = [f'"{0.0005 * 2**level:.8f}" "{0.00025 * 2**level:.8f}"' for level in range(LEVELS)]  # rows, columns

    def attribute(name: str, value: str, kind: str = "IString") -> str:
        return f'<Attribute Name="{name}" Group="0x301D" Element="0x1003" PMSVR="{kind}">{value}</Attribute>'

    def array(kind: str, objects: list[str]) -> str:
        return "<Array>" + "".join(f'<DataObject ObjectType="{kind}">{o}</DataObject>' for o in objects) + "</Array>"

    levels = [attribute("DICOM_PIXEL_SPACING", value, "IDoubleArray") for value in spacing]
    image = attribute("PIM_DP_IMAGE_TYPE", "WSI") + attribute("DICOM_PIXEL_SPACING", spacing[0], "IDoubleArray")
    image += attribute(
        "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", array("PixelDataRepresentation", levels), "IDataObjectArray"
    )
    maker = attribute("DICOM_MANUFACTURER", "Hamamatsu")
    images = maker + attribute("PIM_DP_SCANNED_IMAGES", array("DPScannedImage", [image]), "IDataObjectArray")
    xml = f'<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">{images}</DataObject>'
    path = folder / "slide.tiff"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, pixels in enumerate(halves(full)):
            whole = padded(pixels)
            tiles = (tile if (tile < 255).any() else None for tile in cut(whole, TILE))
            tiff.write(
                tiles, shape=whole.shape, dtype=np.uint8, photometric="rgb", tile=(TILE, TILE),
                compression="deflate", metadata=None, subfiletype=int(level > 0),
                software="Philips DP v1.0" if level == 0 else None, description=xml if level == 0 else None,
            )  # fmt: skip
    return Scan(path, "philips", (0.25, 0.5), halves(full))


# Trestle, Aperio with JPEG 2000, PerkinElmer


def trestle(folder: Path, scene: np.ndarray) -> Scan:
    """Trestle: tiles that overlap by less on each level; the scale stands where TIFF has the resolution."""
    path = folder / "slide.tif"
    overlaps = [16 // 2**level for level in range(LEVELS)]
    told = " ".join(f"{overlap} {overlap}" for overlap in overlaps)
    description = f"Background Color=FFFFFF;White Balance=0;Objective Power=20;JPEG Quality=100;OverlapsXY= {told}"
    with tifffile.TiffWriter(path) as tiff:
        for level, (pixels, overlap) in enumerate(zip(halves(scene), overlaps, strict=True)):
            stride = TILE - overlap
            height, width = (
                size + overlap * (max(1, -(-(size - overlap) // stride)) - 1) for size in pixels.shape[:2]
            )
            tiff.write(
                cut(pixels, stride), shape=(height, width, 3), dtype=np.uint8, photometric="rgb",
                tile=(TILE, TILE), compression="deflate", metadata=None, software="MedScan",
                description=description if level == 0 else None, resolution=(0.5, 0.5), resolutionunit="NONE",
            )  # fmt: skip
    return Scan(path, "trestle", (0.5, 0.5), halves(scene), tiffslide=False)


def aperio_jp2k(folder: Path, scene: np.ndarray) -> Scan:
    """Aperio SVS with JPEG 2000 tiles."""
    path = folder / "slide.svs"
    height, width = scene.shape[:2]
    with tifffile.TiffWriter(path) as tiff:
        for level, pixels in enumerate(halves(scene)):
            tiles = (imagecodecs.jpeg2k_encode(tile, codecformat="j2k", reversible=True) for tile in cut(pixels, TILE))
            tiff.write(
                tiles, shape=pixels.shape, dtype=np.uint8, photometric="rgb", tile=(TILE, TILE),
                compression=tifffile.COMPRESSION.APERIO_JP2000_RGB, metadata=None,
                description=f"Aperio Image Library v12.0.15\r\n{width}x{height} [0,0 {width}x{height}] "
                f"({TILE}x{TILE}) J2K/KDU Q=100|AppMag = 20|MPP = 0.5",
            )  # fmt: skip
            if level == 0:  # Aperio's thumbnail stands between the first two levels
                tiff.write(half(half(scene)), photometric="rgb", metadata=None, description="Aperio Image Library")
    return Scan(path, "aperio", (0.5, 0.5), halves(scene))


def qptiff(folder: Path, scene: np.ndarray) -> Scan:
    """PerkinElmer (Akoya) QPTIFF, brightfield: full resolution, thumbnail, then the reduced levels."""
    path = folder / "slide.qptiff"

    def write(tiff: tifffile.TiffWriter, pixels: np.ndarray, kind: str, scale: int, **options: object) -> None:
        tiff.write(
            pixels, photometric="rgb", metadata=None, software="PerkinElmer-QPI",
            resolution=(20_000 / scale, 20_000 / scale), resolutionunit="CENTIMETER",
            description=f'<?xml version="1.0" encoding="utf-16"?><PerkinElmer-QPI-ImageDescription>'
            f"<ImageType>{kind}</ImageType></PerkinElmer-QPI-ImageDescription>", **options,
        )  # fmt: skip

    tiled = {"tile": (TILE, TILE), "compression": "deflate"}
    levels = halves(scene)
    with tifffile.TiffWriter(path) as tiff:
        write(tiff, levels[0], "FullResolution", 1, **tiled)
        write(tiff, half(levels[2]), "Thumbnail", 8)
        for level, pixels in enumerate(levels[1:], 1):
            write(tiff, pixels, "ReducedResolution", 2**level, subfiletype=1, **tiled)
    return Scan(path, "generic-tiff", (0.5, 0.5), levels)


# Hamamatsu


def vms(folder: Path, scene: np.ndarray) -> Scan:
    """Hamamatsu VMS: a grid of JPEG files with restart markers; OpenSlide shrinks them while it decodes."""
    folder.mkdir(parents=True, exist_ok=True)
    columns, rows, side = 2, 2, 256
    whole, lines = white(rows * side, columns * side), []
    for row in range(rows):
        for column in range(columns):
            name = f"slide-{column}-{row}.jpg"
            at = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            _restarting_jpeg(folder / name, scene[at])
            whole[at] = np.asarray(Image.open(folder / name))
            lines.append(f"ImageFile{f'({column},{row})' if column or row else ''}={name}")
    # OpenSlide makes levels of 1/2, 1/4 and 1/8 of each file: the map continues where they end.
    _restarting_jpeg(folder / "slide_map2.jpg", whole[::16, ::16].repeat(2, 0).repeat(2, 1)[:32, :32], blocks=2)
    (folder / "slide.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\n"
        f"NoJpegColumns={columns}\nNoJpegRows={rows}\n" + "\n".join(lines) + "\nMapFile=slide_map2.jpg\n"
        f"SourceLens=20\nPhysicalWidth={columns * side * 460}\nPhysicalHeight={rows * side * 470}\n"
    )
    return Scan(folder / "slide.vms", "hamamatsu", (0.46, 0.47), (whole,), tiffslide=False)


def _restarting_jpeg(path: Path, pixels: np.ndarray, blocks: int = 4) -> None:
    Image.fromarray(pixels).save(path, quality=90, subsampling=0, restart_marker_blocks=blocks)


# DICOM


def dicom(folder: Path, scene: np.ndarray) -> Scan:
    """A DICOM whole-slide series: one file a level, tiles in rows, without compression."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid()
    for level, pixels in enumerate(halves(scene)):
        tiles = list(cut(pixels, TILE))
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        measures, shared, path, image = Dataset(), Dataset(), Dataset(), Dataset()
        measures.PixelSpacing = [0.0005 * 2**level, 0.00025 * 2**level]  # between rows, between columns
        measures.SliceThickness = 0.001
        shared.PixelMeasuresSequence = [measures]
        path.ObjectiveLensPower = "20"
        path.OpticalPathIdentifier = "1"
        image.file_meta = meta
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.Modality = generate_uid(), series, "SM"
        image.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED" if level else "NONE"]
        image.Rows = image.Columns = TILE
        image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns = pixels.shape[:2]
        image.NumberOfFrames, image.SamplesPerPixel = len(tiles), 3
        image.PhotometricInterpretation, image.PlanarConfiguration = "RGB", 0
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
        image.DimensionOrganizationType = "TILED_FULL"
        image.TotalPixelMatrixFocalPlanes = image.NumberOfOpticalPaths = 1
        image.OpticalPathSequence = [path]
        image.SharedFunctionalGroupsSequence = [shared]
        image.PixelData = np.stack(tiles).tobytes()
        image.save_as(folder / f"level{level}.dcm", enforce_file_format=True)
    return Scan(folder / "level0.dcm", "dicom", (0.25, 0.5), halves(scene), tiffslide=False)
