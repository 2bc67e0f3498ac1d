"""GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0): a row an outline, for geopandas, DuckDB, QGIS, ….

Coordinates are pixels as in the GeoJSON, y downwards, in no coordinate reference system: `crs` is null. The column
`bbox` lets readers skip the row groups that a region does not touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from wsiseg.formats.columns import Columns, columns_of
from wsiseg.geojson import Annotation, safe_polygons
from wsiseg.qupath import clean_class, clean_name, clean_text

ROWS = 16_384  # of a row group
_FIXED = {
    "id": pa.string(),
    "name": pa.string(),
    "classification": pa.string(),
    "color": pa.string(),
    "object_type": pa.string(),
    "is_locked": pa.bool_(),
}
_SHAPE = {
    "geometry": pa.binary(),
    "bbox": pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")]),
}


def write(annotations: Sequence[Annotation], run: Mapping[str, Any], file: IO[bytes]) -> None:
    """Columns: id, name, classification, color (#rrggbb), …; each measurement; each metadata key; geometry (WKB).

    What made the file stands under the key `wsiseg` of its metadata, as JSON.
    """
    columns = columns_of(annotations, {*_FIXED, *_SHAPE, "nucleus"})
    has_nuclei = any(a.nucleus is not None for a in annotations)
    schema = pa.schema(
        [
            *_FIXED.items(),
            *((name, pa.float64()) for name in columns.measurements.values()),
            *((name, pa.string()) for name in columns.metadata.values()),
            *_SHAPE.items(),
            *([("nucleus", pa.binary())] if has_nuclei else []),
        ]
    )
    bounds, kinds = [], set()
    with pq.ParquetWriter(file, schema, compression="zstd") as parquet:
        for first in range(0, len(annotations), ROWS):
            rows = annotations[first : first + ROWS]
            polygons = safe_polygons(rows, first)
            bounds.append(shapely.total_bounds(polygons))
            kinds |= {polygon.geom_type for polygon in polygons}
            parquet.write_table(_table(rows, polygons, columns, schema))
        parquet.add_key_value_metadata(
            {
                "geo": orjson.dumps(_geo(bounds, kinds, has_nuclei)),
                "wsiseg": orjson.dumps(run, option=orjson.OPT_SERIALIZE_NUMPY),
            }
        )


def _table(rows: Sequence[Annotation], polygons: np.ndarray, columns: Columns, schema: pa.Schema) -> pa.Table:
    values: dict[str, Any] = {
        "id": [str(a.id) for a in rows],
        "name": [clean_name(a.name) for a in rows],
        "classification": [clean_class(a.classification) for a in rows],
        "color": ["#{:02x}{:02x}{:02x}".format(*a.color) for a in rows],
        "object_type": [a.object_type for a in rows],
        "is_locked": [a.is_locked for a in rows],
    }
    values |= {name: [a.measurements.get(key) for a in rows] for key, name in columns.measurements.items()}
    values |= {name: [_text(a.metadata.get(key)) for a in rows] for key, name in columns.metadata.items()}
    values["geometry"] = shapely.to_wkb(polygons, flavor="iso")
    if "nucleus" in schema.names:
        values["nucleus"] = shapely.to_wkb(np.array([a.nucleus for a in rows], object), flavor="iso")
    sides = shapely.bounds(polygons).T
    values["bbox"] = pa.StructArray.from_arrays([pa.array(side) for side in sides], fields=list(_SHAPE["bbox"]))
    return pa.table(values, schema=schema)


def _text(value: str | None) -> str | None:
    return None if value is None else clean_text(value)


def _geo(bounds: list[np.ndarray], kinds: set[str], has_nuclei: bool) -> dict[str, Any]:
    """The metadata that makes a Parquet file a GeoParquet."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(kinds),
        "crs": None,
        "edges": "planar",
        "covering": {"bbox": {side.name: ["bbox", side.name] for side in _SHAPE["bbox"]}},
    }
    if bounds:
        corners = np.array(bounds)
        column["bbox"] = [*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist()]
    columns: dict[str, Any] = {"geometry": column}
    if has_nuclei:
        columns["nucleus"] = {"encoding": "WKB", "geometry_types": [], "crs": None, "edges": "planar"}
    return {"version": "1.1.0", "primary_column": "geometry", "columns": columns}
