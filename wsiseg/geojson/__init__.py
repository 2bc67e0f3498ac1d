"""Annotations to GeoJSON in the dialect that QuPath reads safely (`wsiseg.qupath`), and back.

A file is a FeatureCollection, one Feature a line, written as it comes and never held whole. Its member
`wsiseg`, which QuPath ignores, says what made it; there "origin" says where (0, 0) of the coordinates lies.
"""

from wsiseg.geojson.read import read_collection, read_geojson
from wsiseg.geojson.write import Annotation, annotation_id, safe_polygons, write_geojson

__all__ = ["Annotation", "annotation_id", "read_collection", "read_geojson", "safe_polygons", "write_geojson"]
