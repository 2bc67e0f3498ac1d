"""The scripts of docs/qupath/ run, in Groovy, with stand-ins for QuPath's classes (tests/qupath) and a real wsiseg.

    apt-get install groovy        # without it these tests are skipped

Debian's Groovy is 2.4, QuPath's is 4. They also pass with 4.0.26, whose libraries the npm package npm-groovy-lint has.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import shapely
from click.testing import CliRunner

from tests.cli.test_segment import RUN_FAKE
from wsiseg.cli.main import main
from wsiseg.geojson import read_geojson
from wsiseg.qupath import check_dialect
from wsiseg.testing import disk, ring, synthetic_slide
from wsiseg.training.data.store import QuadrupletStore

ROOT = Path(__file__).parents[1]
STAND_INS = Path(__file__).parent / "qupath"
WSISEG, EXPORT = (str(ROOT / "docs" / "qupath" / name) for name in ("wsiseg.groovy", "export.groovy"))
MPP = (0.5, 0.4)

Scene = dict[str, Any]

pytestmark = pytest.mark.skipif(not shutil.which("groovy"), reason="needs Groovy")


def run_scripts(scenes: list[Scene], folder: Path, path: str = os.environ["PATH"]) -> list[Scene]:
    """What each led to: the dialogs shown, the files imported, the log, and the error that ended it, or None."""
    (folder / "scenes.json").write_text(json.dumps(scenes))
    command = ["groovy", "-cp", str(STAND_INS), str(STAND_INS / "run.groovy"), str(folder / "scenes.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    results: list[Scene] = json.loads(done.stdout)
    return results


def drawn(kind: str, geometry: shapely.Geometry, object_type: str = "annotation") -> Scene:
    """A feature as QuPath writes it."""
    properties: Scene = {"objectType": object_type}
    if kind:
        properties["classification"] = {"name": kind, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": str(uuid.uuid4()),
        "geometry": shapely.geometry.mapping(geometry),
        "properties": properties,
    }


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide that does not state its scale, with two shapes of olive; its name tries what quotes a path."""
    path = tmp_path_factory.mktemp("slides") / "a slide, the 2nd.tif"
    synthetic_slide(path, {"olive": [disk(300, 300, 100), ring(800, 300, 150, 80)]}, mpp=None)
    return path


def test_the_open_image_is_asked_and_the_outlines_arrive(slide: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "wsiseg").write_text(f'#!/bin/sh\nexec {shlex.join(RUN_FAKE)} "$@"\n')
    (programs / "wsiseg").chmod(0o755)
    open_image: Scene = {"script": WSISEG, "slide": slide.as_uri(), "mpp": MPP, "objects": []}
    image = open_image | {"answer": 'outline the "olive"'}
    elsewhere = tmp_path / "elsewhere.groovy"
    elsewhere.write_text(Path(WSISEG).read_text().replace('WSISEG = "wsiseg"', 'WSISEG = "/nowhere/wsiseg"'))
    scenes = [
        image | {"objects": [drawn("Gland", shapely.box(0, 0, 9, 9))]},
        image | {"answer": "outline the mucus"},
        image | {"script": str(elsewhere)},
        image | {"answer": None},
        image | {"slide": "https://example.org/slide.tif"},
        image | {"slide": None},
    ]
    results = run_scripts(scenes, tmp_path, f"{programs}:{os.environ['PATH']}")
    assert [result["failed"] for result in results] == [None] * len(scenes)
    found, *others = results
    assert not any(result["imported"] for result in others)

    [text] = found["imported"]
    arrived = tmp_path / "arrived.geojson"
    arrived.write_text(text)
    assert check_dialect(arrived) == []  # as QuPath's own reader would
    outlines = read_geojson(arrived)
    assert [outline.name for outline in outlines] == ['outline the "olive"'] * 2
    truth = shapely.union_all([disk(300, 300, 100), ring(800, 300, 150, 80)])
    got = shapely.union_all([outline.geometry for outline in outlines])
    assert got.intersection(truth).area > 0.95 * got.union(truth).area
    um2 = sum(outline.measurements["Area µm^2"] for outline in outlines)
    assert um2 == pytest.approx(got.area * MPP[0] * MPP[1], rel=1e-3)  # QuPath's scale reached wsiseg
    assert found["shown"][0] == ["input", "What should be outlined?"]
    assert found["shown"][1] == ["info", 'outline the "olive": 2 found']

    unknown, missing, dismissed, remote, closed = others
    assert dismissed["shown"] == [["input", "What should be outlined?"]]
    for result, says in (
        (unknown, "knows only olive"),
        (missing, "Put its full path after WSISEG ="),
        (remote, "https://example.org"),
        (closed, "Open an image first"),
    ):
        kind, message = result["shown"][-1]
        assert kind == "error"
        assert says in message


def test_a_project_is_exported_and_imported_for_training(slide: Path, sample_slide: Path, tmp_path: Path) -> None:
    project = tmp_path / "my project"
    first = [
        drawn("Region*", shapely.box(100, 100, 612, 612)),
        drawn("Gland", shapely.box(200, 200, 400, 400) - shapely.box(250, 250, 300, 300)),
        drawn("Gland", shapely.Point(500, 500)),  # no area: cannot be learned from
        drawn("Gland", shapely.box(500, 500, 520, 520), "detection"),  # found by a program, not drawn
        drawn("", shapely.box(0, 0, 9, 9)),
    ]
    image: Scene = {"script": EXPORT, "project": str(project), "metadata": {}}
    scenes = [
        image | {"slide": sample_slide.as_uri(), "mpp": [0.499, 0.499], "id": "1", "objects": first},
        image | {"slide": slide.as_uri(), "mpp": None, "id": "11", "objects": [], "metadata": {"patient": 'P "7"'}},
        image | {"slide": "omero://here/2", "mpp": None, "id": "2", "objects": []},
    ]
    results = run_scripts([*scenes, scenes[0]], tmp_path)  # the first image twice
    assert [result["failed"] for result in results] == [None] * 4
    assert "omero://here/2" in results[2]["log"]
    export = project / "wsiseg-export"
    rows = list(csv.DictReader((export / "index.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["slide"], row["geojson"], row["mpp"], row["patient"]) for row in rows] == [
        (str(slide), "11.geojson", "", 'P "7"'),
        (str(sample_slide), "1.geojson", "0.499", ""),
    ]

    out = tmp_path / "mine.zarr"
    done = CliRunner().invoke(main, ["data", "import", "qupath", str(export), "--mpp", "0.499", "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    store = QuadrupletStore.open(out)
    assert [(q.concept, q.present) for q in store.quadruplets if q.concept == "gland"] == [("gland", True)]
