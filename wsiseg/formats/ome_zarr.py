"""OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5): outlines as pixels, for napari and other viewers of images.

    out.ome.zarr/                the image: at each pixel the number of its class, 0 for none
    out.ome.zarr/labels/CLASS/   a label image for each class: at each pixel the number of its outline

Each class has a label image of its own, since outlines of two classes may lie on each other; within a class the
later covers the earlier. All cover the whole slide at the finest resolution at which the model looked, with a
pyramid. Each level is painted from the polygons, block by block: none is ever held in memory, and a pixel of any
level is what lies under its centre.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import shapely
import zarr
from zarr.codecs import ZstdCodec

from wsiseg.belonging import Place, place_of
from wsiseg.formats.columns import columns_of
from wsiseg.geojson import Annotation, safe_polygons
from wsiseg.mask.raster import paint
from wsiseg.qupath import clean_class, clean_name, clean_text, query_class
from wsiseg.slide.scale import m_size
from wsiseg.tiles.shard import ZSTD_LEVEL, encode_chunk, encode_shard

CHUNK, BLOCK = 512, 2048  # pixels: what a viewer reads at once; what is painted at once, and lies in one file
_BATCH = 4096  # outlines painted at once: of small levels all lie in one block
_AXES = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in ("y", "x")]


@dataclass(frozen=True)
class _Level:
    mpp: float
    l0_per_m: tuple[float, float]
    width: int
    height: int


def write(annotations: Sequence[Annotation], run: Mapping[str, Any], folder: Path) -> None:
    """Write into an empty folder.

    Raises:
        GeoJSONError: `run` does not say how large the slide is, and its microns per pixel.
    """
    place = place_of(run)
    levels = list(_levels(place, _mpp(run, place)))
    polygons = safe_polygons(annotations)
    classes = _classes(annotations, run)
    class_of = np.array([classes[clean_class(a.classification)] for a in annotations], np.int64)
    paths = list(_paths(classes))
    ome = {"multiscales": [_multiscale(levels, place, "classes")], "omero": {"channels": [_channel(len(classes))]}}
    made_by = orjson.loads(orjson.dumps(run, option=orjson.OPT_SERIALIZE_NUMPY))
    root = zarr.create_group(folder, zarr_format=3, attributes={"ome": {"version": "0.5"} | ome, "wsiseg": made_by})
    _paint(root, folder, levels, polygons, class_of, place.l0_origin)
    labels = root.create_group("labels", attributes={"ome": {"version": "0.5", "labels": paths}})
    for path, (name, number) in zip(paths, classes.items(), strict=True):
        mine = np.flatnonzero(class_of == number)
        ome = {
            "multiscales": [_multiscale(levels, place, name)],
            "image-label": _image_label([annotations[i] for i in mine.tolist()]),
        }
        group = labels.create_group(path, attributes={"ome": {"version": "0.5"} | ome})
        numbers = np.arange(1, len(mine) + 1)
        _paint(group, folder / "labels" / path, levels, polygons[mine], numbers, place.l0_origin)


def is_ours(folder: Path) -> bool:
    """Whether `write` made the folder, so that it may be made anew."""
    try:
        return {"ome", "wsiseg"} <= orjson.loads((folder / "zarr.json").read_bytes())["attributes"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _mpp(run: Mapping[str, Any], place: Place) -> float:
    """The finest resolution at which the model looked; that of the slide where no model did."""
    parameters = run.get("parameters")
    looked = parameters.get("mpp") if isinstance(parameters, Mapping) else None
    mpps = looked.values() if isinstance(looked, Mapping) else ()
    finest = min(place.mpp)
    # A model may have looked from closer than the slide was scanned; there is no more to see then.
    return max(finest, min((mpp for mpp in mpps if isinstance(mpp, int | float)), default=finest))


def _levels(place: Place, mpp: float) -> Iterator[_Level]:
    """From `mpp` on, each half as fine as the one before, down to one that is a single chunk."""
    while True:
        l0_per_m = (mpp / place.mpp[0], mpp / place.mpp[1])
        level = _Level(mpp, l0_per_m, m_size(place.l0_width, l0_per_m[0]), m_size(place.l0_height, l0_per_m[1]))
        yield level
        if max(level.width, level.height) <= CHUNK:
            return
        mpp *= 2


def _classes(annotations: Iterable[Annotation], run: Mapping[str, Any]) -> dict[str, int]:
    """Class → number from 1; also of those that were looked for in vain."""
    queries = run.get("queries")
    names = [query_class(q) for q in queries if isinstance(q, str)] if isinstance(queries, list) else []
    names += [clean_class(a.classification) for a in annotations]
    return {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}


def _paths(names: Iterable[str]) -> Iterator[str]:
    """Different names of plain letters, digits and hyphens, whatever the classes are called."""
    taken = set()
    for number, name in enumerate(names, start=1):
        path = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or f"class-{number}"
        while path.lower() in taken:
            path = f"{path}-{number}"
        taken.add(path.lower())
        yield path


def _multiscale(levels: Sequence[_Level], place: Place, name: str) -> dict[str, Any]:
    """Positions count from the centre of the slide's first pixel, as viewers place the slide itself."""
    mpp_yx = place.mpp[::-1]
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": [level.mpp, level.mpp]},
                {"type": "translation", "translation": [(level.mpp - mpp) / 2 for mpp in mpp_yx]},
            ],
        }
        for number, level in enumerate(levels)
    ]
    return {"name": name or "no class", "axes": _AXES, "datasets": datasets}


def _channel(classes: int) -> dict[str, Any]:
    """How to show the image of classes: without it, viewers would show 1 of 255, which is black."""
    top = max(1, classes)
    window = {"min": 0, "max": top, "start": 0, "end": top}
    return {"label": "classes", "color": "FFFFFF", "active": True, "window": window}


def _image_label(annotations: Sequence[Annotation]) -> dict[str, Any]:
    """Colour and properties of the outlines, numbered from 1."""
    label: dict[str, Any] = {"source": {"image": "../../"}}
    if not annotations:  # empty lists are against the specification
        return label
    columns = columns_of(annotations, ("label-value", "id", "name", "class"))
    properties = [
        {
            "label-value": number,
            "id": str(a.id),
            "name": clean_name(a.name),
            "class": clean_class(a.classification),
            **{columns.measurements[key]: value for key, value in a.measurements.items() if math.isfinite(value)},
            **{columns.metadata[key]: clean_text(value) for key, value in a.metadata.items()},
        }
        for number, a in enumerate(annotations, start=1)
    ]
    colors = [{"label-value": number, "rgba": [*a.color, 255]} for number, a in enumerate(annotations, start=1)]
    return label | {"colors": colors, "properties": properties}


def _paint(
    group: zarr.Group,
    folder: Path,
    levels: Sequence[_Level],
    polygons: np.ndarray,
    values: np.ndarray,
    l0_origin: tuple[int, int],
) -> None:
    """Write an array for every level of `group`, which lies at `folder`. l0_origin: (0, 0) of the polygons."""
    dtype = np.min_scalar_type(int(values.max(initial=0)))
    tree = shapely.STRtree(polygons)
    for number, level in enumerate(levels):
        group.create_array(
            str(number),
            shape=(level.height, level.width),
            dtype=dtype,
            chunks=(CHUNK, CHUNK),
            shards=(BLOCK, BLOCK),
            compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
            dimension_names=("y", "x"),
        )
        for row, column in product(range(-(-level.height // BLOCK)), range(-(-level.width // BLOCK))):
            x0, y0 = column * BLOCK, row * BLOCK
            corners = np.array([[x0, y0], [x0 + BLOCK, y0 + BLOCK]]) * level.l0_per_m - l0_origin
            near = np.sort(tree.query(shapely.box(*corners.ravel())))
            if not len(near):
                continue
            block = np.zeros((BLOCK, BLOCK), dtype)
            for some in np.split(near, range(_BATCH, len(near), _BATCH)):
                m_polygons = shapely.transform(
                    polygons[some], lambda xy, level=level: (xy + l0_origin) / level.l0_per_m
                )
                paint(m_polygons, values[some], block, x0, y0)
            _write_shard(folder / str(number) / "c" / str(row) / str(column), block)


def _write_shard(path: Path, block: np.ndarray) -> None:
    """Zarr would write the same; but it also compresses the chunks that are empty, which are most."""
    side = BLOCK // CHUNK
    chunks = block.reshape(side, CHUNK, side, CHUNK).swapaxes(1, 2).reshape(-1, CHUNK, CHUNK)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.writelines(encode_shard([encode_chunk(chunk) if chunk.any() else None for chunk in chunks], len(chunks)))
