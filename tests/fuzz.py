"""Coverage-guided fuzzing of every parser of foreign input, by atheris (`pip install atheris`; libFuzzer's).

    python -m tests.fuzz                           # each parser for a minute
    python -m tests.fuzz geojson --seconds 600

A parser gives what it read, or a `WsisegError`; what else it raises ends the run with the bytes that did it. The tests
fuzz the same parsers with hypothesis, which knows what the inputs look like; atheris knows which branches they take.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
import orjson

from wsiseg.errors import WsisegError

Parser = Callable[[Path], object]

_SQUARE = b"[[[0,0],[9,0],[9,9],[0,9],[0,0]]]"
_GEOJSON = (
    b'{"type":"FeatureCollection","features":[{"type":"Feature","id":"1","geometry":{"type":"Polygon","coordinates":'
    + _SQUARE
    + b'},"properties":{"objectType":"annotation","name":"n","classification":{"name":"n","color":[1,2,3]},'
    b'"measurements":{"Area":1.5},"metadata":{"a":"b"}}}],"wsiseg":{"queries":["n"]}}'
)
_XML = (
    b'<Annotations><Annotation PartOfGroup="_2"><Regions><Region><Vertices><Vertex X="0" Y="0"/><Vertex X="9" Y="0"/>'
    b'<Vertex X="9" Y="9"/></Vertices></Region></Regions><Coordinates><Coordinate Order="0" X="0" Y="0"/><Coordinate '
    b'Order="1" X="9" Y="0"/><Coordinate Order="2" X="9" Y="9"/></Coordinates></Annotation></Annotations>'
)
_EDITS = b'{"removed":[0],"decisions":{"0":"accepted"},"classes":{"0":"n"},"rings":{"0":[[[0,0],[9,0],[9,9]]]}}'


def geojson(path: Path) -> object:
    from wsiseg.geojson import read_collection

    return read_collection(path)


def outlines_xml(path: Path) -> object:
    from wsiseg.training.data.published import _aperio_polygons, _asap_tumour

    return [*_aperio_polygons(path), _asap_tumour(path)]


def manifest(path: Path) -> object:
    from wsiseg.fleet import read_manifest

    return read_manifest(path)


def run_json(path: Path) -> object:
    from wsiseg.fleet import read_run

    return read_run(path)


def recipe(path: Path) -> object:
    from wsiseg.training.recipe import load_recipe
    from wsiseg.training.sft import SftRecipe

    return load_recipe(SftRecipe, path)


def model_config(path: Path) -> object:
    from wsiseg.model.config import load_config

    return load_config(path)


def store_attributes(path: Path) -> object:
    from wsiseg.tiles.attributes import parse_attributes

    try:
        raw = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:  # zarr has read it by then
        return None
    return parse_attributes(raw)


def viewer_edits(path: Path) -> object:
    from wsiseg.viewer.edits import parse_edits

    return parse_edits(path.read_bytes(), 3)


def _seeds() -> dict[str, tuple[Parser, bytes]]:
    """Each parser and a file that it reads."""
    from wsiseg import __version__
    from wsiseg.fleet import Settings
    from wsiseg.model.config import tiny
    from wsiseg.tiles import GridSpec, SlideIdentity
    from wsiseg.tiles.attributes import StoreAttributes

    parameters = asdict(Settings())
    source, fingerprint = parameters.pop("model"), parameters.pop("model_fingerprint")
    identity = SlideIdentity("/a", "f", "aperio", 900, 700, 0.5, 0.5)
    store = StoreAttributes(GridSpec(0.5), identity, 900, 700, 4, 0, "g", "wsiseg")
    slide = {"source": "/a", "output": "a.geojson", "queries": ["q"], "slide_mpp": 0.5, "label": ""}
    run = {
        "version": __version__,
        "model": {"source": source, "fingerprint": fingerprint},
        "parameters": parameters,
        "slides": [{**slide, "slide_fingerprint": "f"}],
    }
    return {
        "geojson": (geojson, _GEOJSON),
        "outlines-xml": (outlines_xml, _XML),
        "manifest": (manifest, b'slide,query,slide_mpp,label\na.svs,"the glands",0.5 0.5,x\n'),
        "run-json": (run_json, orjson.dumps(run)),
        "recipe": (recipe, b"stage: sft\nsteps: 3\nlearning_rate: 1e-3\nsource_weights: {a: 1.0}\nfrozen: [vlm]\n"),
        "model-config": (model_config, orjson.dumps(asdict(tiny()))),
        "store-attributes": (store_attributes, orjson.dumps(store.to_json())),
        "viewer-edits": (viewer_edits, _EDITS),
    }


def _fuzz(name: str, folder: Path, seconds: int) -> None:
    """Ends the process."""
    import atheris

    with atheris.instrument_imports(include=["wsiseg"]):
        parser, seed = _seeds()[name]
        parser(_written(folder / "input", seed))

    def one(data: bytes) -> None:
        with suppress(WsisegError):
            parser(_written(folder / "input", data))

    _written(folder / "corpus" / "seed", seed)
    told = [f"-artifact_prefix={os.getcwd()}/fuzz-{name}-", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=2000", *told, str(folder / "corpus")], one)
    atheris.Fuzz()


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@click.command()
@click.argument("name", required=False)
@click.option("--seconds", default=60, show_default=True)
@click.option("--inside", is_flag=True, hidden=True, help="fuzz in this process, which it ends")
def main(name: str | None, seconds: int, inside: bool) -> None:
    """Fuzz one parser, or each in turn."""
    if inside and name:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            _fuzz(name, Path(folder), seconds)
    for each in [name] if name else _seeds():
        command = [sys.executable, "-m", "tests.fuzz", each, "--seconds", str(seconds), "--inside"]
        done = subprocess.run(command, capture_output=True, text=True)
        runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(f"{each}: {runs[0] if runs else 'no'} inputs in {seconds} s", flush=True)
        if done.returncode:
            sys.exit(done.stderr)


if __name__ == "__main__":
    main()
