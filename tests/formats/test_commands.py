"""`wsiseg segment --format` and `wsiseg convert`: files, streams, folders, and what is refused before the work."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import geopandas
import pytest
from click.testing import CliRunner
from click.testing import Result as Shown

import wsiseg.model
from tests.fleet.slides import small_slides
from wsiseg import Result, formats, segment
from wsiseg.cli.main import main
from wsiseg.errors import FleetError, OutputError
from wsiseg.fleet import Settings, work
from wsiseg.geojson import read_collection
from wsiseg.qupath import check_dialect
from wsiseg.review import REVIEW
from wsiseg.testing import FakeModel, disk, synthetic_slide


def run(*args: str | Path) -> Shown:
    return CliRunner().invoke(main, [*map(str, args)])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tiles that the fake model was asked for, in batches."""
    counts: list[int] = []

    class Counting(FakeModel):
        def segment_tiles(self, tiles, query, mpp):  # type: ignore[no-untyped-def]
            counts.append(len(tiles))
            return super().segment_tiles(tiles, query, mpp)

    work.load.cache_clear()
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: Counting(tile_size=128, overlap=32))
    return counts


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "slide.scn"
    shapes = {"olive": [disk(150, 150, 60), disk(330, 250, 40)]}
    synthetic_slide(path, shapes, l0_width=480, l0_height=360, l0_bounds_xy=(100, 60))
    return path


def whole(path: Path) -> object:
    """What a format wrote, in values that two runs share."""
    return sorted(os.listdir(path)) if path.is_dir() else path.read_bytes()


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("name", [name for name in formats.FORMATS if name != "dicom-ann"])
def test_file_stream_python_and_conversion_are_the_same(small: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / f"out{formats.FORMATS[name].suffix}"
    query = ("segment", small, "--query", "the olive")
    segment(small, "the olive", model=FakeModel(tile_size=128, overlap=32)).write(tmp_path / "plain.geojson")
    assert run(*query, "--out", out, "--format", name).exit_code == 0
    converted = tmp_path / f"converted{out.suffix}"
    shown = run("convert", tmp_path / "plain.geojson", "--format", name, "--out", converted)
    assert (shown.exit_code, shown.stderr) == (0, f"wsiseg: wrote 2 annotations as {name}\n")
    assert whole(converted) == whole(out)
    if name != "ome-zarr":
        assert run(*query, "--format", name).stdout_bytes == out.read_bytes()
        assert run("convert", tmp_path / "plain.geojson", "--format", name).stdout_bytes == out.read_bytes()
    if name != "detections":  # which has no suffix of its own
        assert formats.format_of(out) == formats.format_of(str(out).upper()) == name
    assert not [entry for entry in os.listdir(tmp_path) if entry.startswith(".")]


@pytest.mark.usefixtures("asked")
def test_what_ends_in_gz_is_compressed(small: Path, tmp_path: Path) -> None:
    query = ("segment", small, "--query", "the olive", "--out")
    assert run(*query, tmp_path / "o.geojson").exit_code == run(*query, tmp_path / "o.geojson.gz").exit_code == 0
    assert gzip.decompress((tmp_path / "o.geojson.gz").read_bytes()) == (tmp_path / "o.geojson").read_bytes()
    assert check_dialect(tmp_path / "o.geojson.gz") == []
    assert run("convert", tmp_path / "o.geojson.gz", "--out", tmp_path / "back.geojson").exit_code == 0
    assert (tmp_path / "back.geojson").read_bytes() == (tmp_path / "o.geojson").read_bytes()


@pytest.mark.usefixtures("asked")
def test_detections_are_what_qupath_reads(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.geojson"
    assert run("segment", small, "--query", "the olive", "--format", "detections", "--out", out).exit_code == 0
    assert check_dialect(out) == []
    table = geopandas.read_file(out)
    assert list(table["objectType"]) == ["detection"] * 2
    back = run("convert", out, "--format", "geojson")
    assert len(json.loads(back.stdout)["features"]) == 2


def test_what_cannot_be_written_is_told_before_the_model_is_asked(
    small: Path, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(formats, "find_spec", lambda package: None if package == "pyarrow" else package)
    for options, message in (
        (("--format", "ome-zarr"), "ome-zarr is a folder, which stdout cannot carry"),
        (("--format", "ome-zarr", "--out", tmp_path / "mine"), "something else is there"),
        (("--format", "asap", "--out", tmp_path / "mine"), "it is a folder"),
        (("--out", tmp_path / "out.dcm"), "is not a DICOM slide"),
        (("--out", tmp_path / "out.parquet"), 'geoparquet needs pyarrow: `pip install "wsiseg[formats]"`'),
    ):
        shown = run("segment", small, "--query", "the olive", *options)
        assert shown.exit_code == 1
        assert message in shown.stderr
        assert len(shown.stderr.splitlines()) == 1
    assert not asked
    assert os.listdir(tmp_path) == ["mine"]


def test_a_folder_of_slides_is_written_in_any_format_and_resumed(tmp_path: Path, asked: list[int]) -> None:
    slides, out = small_slides(tmp_path / "slides"), tmp_path / "out"
    for name, suffix in (("asap", ".xml"), ("ome-zarr", ".ome.zarr")):
        command = ("segment", slides, "--recursive", "--query", "olive", "--out", out, "--format", name)
        assert run(*command).exit_code == 0
        assert all((out / f"{slide}{suffix}").exists() for slide in ("a.tif", "b.tif", "sub/a.tif"))
        told = json.loads((out / "run.json").read_bytes())["slides"]
        assert [slide["output"] for slide in told] == [f"{s}{suffix}" for s in ("a.tif", "b.tif", "sub/a.tif")]
        before = len(asked)
        assert run(*command).exit_code == 0
        assert len(asked) == before
    again = tmp_path / "again"
    assert run("segment", "--from", out / "run.json", "--out", again).exit_code == 0
    assert (again / "sub" / "a.tif.ome.zarr" / "zarr.json").exists()
    refused = run("segment", slides, "--query", "olive", "--out", tmp_path / "no", "--format", "dicom-ann")
    assert refused.exit_code == 3
    assert "a.tif is not a DICOM slide" in refused.stderr


def test_a_format_that_is_none_is_told(result: Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no format 'coco', but geojson, detections"):
        result.write(tmp_path / "out", format="coco")
    with pytest.raises(FleetError, match="no format 'coco'"):
        Settings(format="coco")
    assert not list(tmp_path.iterdir())


def test_an_export_of_qupath_is_converted_with_the_slide_beside_it(result: Result, tmp_path: Path) -> None:
    exported = {"type": "FeatureCollection", "features": result.to_geojson()["features"]}
    (tmp_path / "export.geojson").write_text(json.dumps(exported))
    shown = run("convert", tmp_path / "export.geojson", "--format", "asap")
    assert shown.exit_code == 1
    assert "do not say on which slide they lie: give it with --slide" in shown.stderr
    assert run("convert", tmp_path / "export.geojson", "--out", tmp_path / "o.parquet").exit_code == 0
    shown = run("convert", tmp_path / "export.geojson", "--slide", result.run["slide"]["source"], "--format", "asap")
    expected = io.BytesIO()
    formats.stream(read_collection(tmp_path / "export.geojson")[0], result.run, expected, "asap")
    assert shown.stdout_bytes == expected.getvalue()


def test_what_is_converted_keeps_the_scale_that_it_was_made_with(result: Result, tmp_path: Path) -> None:
    """Also with --slide: the slide had moved, and --slide-mpp was given, as its file states a wrong scale."""
    source = result.run["slide"]["source"]
    made = {**result.run, "slide": {**result.run["slide"], "mpp": [1.0, 1.0]}}
    formats.write(result.annotations, made, tmp_path / "o.geojson")
    for options, mpp in (((), 1.0), (("--slide-mpp", 0.25), 0.25)):
        run("convert", tmp_path / "o.geojson", "--slide", source, "--out", tmp_path / "c", *options)
        assert read_collection(tmp_path / "c")[1]["slide"]["mpp"] == [mpp, mpp]
    shown = run("convert", tmp_path / "o.geojson", "--slide-mpp", 0.25, "--out", tmp_path / "no")
    assert shown.exit_code == 2
    assert "give it with --slide" in shown.stderr
    assert not (tmp_path / "no").exists()


def test_what_was_rejected_is_left_out_where_it_could_not_be_told(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "found.geojson")
    annotations, said = read_collection(tmp_path / "found.geojson")
    annotations[0].metadata[REVIEW] = "rejected"
    formats.write(annotations, said, tmp_path / "reviewed.geojson")
    shown = run("convert", tmp_path / "reviewed.geojson", "--out", tmp_path / "out.xml")
    assert f"wrote {len(annotations) - 1} annotations as asap, without 1 that were rejected" in shown.stderr
    assert (tmp_path / "out.xml").read_bytes().count(b'Name="the olive" Type=') == 1
    run("convert", tmp_path / "reviewed.geojson", "--out", tmp_path / "out.zarr")
    told = json.loads((tmp_path / "out.zarr" / "labels" / "the-olive" / "zarr.json").read_bytes())["attributes"]["ome"]
    assert [p["id"] for p in told["image-label"]["properties"]] == [str(annotations[1].id)]
    run("convert", tmp_path / "reviewed.geojson", "--out", tmp_path / "out.parquet")
    assert list(geopandas.read_parquet(tmp_path / "out.parquet")["review"].dropna()) == ["rejected"]


def test_the_slide_that_a_file_was_made_of_is_not_written_over(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "out.geojson")
    slide = Path(result.run["slide"]["source"])
    before = slide.read_bytes()
    shown = run("convert", tmp_path / "out.geojson", "--out", slide, "--format", "geojson")
    assert (shown.exit_code, slide.read_bytes() == before) == (1, True)
    assert "this command reads that file" in shown.stderr
    outlines = (tmp_path / "out.geojson").read_bytes()
    shown = run("convert", tmp_path / "out.geojson", "--out", tmp_path / "out.geojson", "--format", "asap")
    assert (shown.exit_code, (tmp_path / "out.geojson").read_bytes() == outlines) == (1, True)


def test_quiet_says_nothing_of_what_was_done(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "out.geojson")
    slide, geojson = result.run["slide"]["source"], tmp_path / "out.geojson"
    for words in (["convert", geojson], ["render", slide, geojson], ["report", slide, geojson]):
        out = tmp_path / {"convert": "a.parquet", "render": "a.png", "report": "a.html"}[str(words[0])]
        shown = run("-q", *words, "--out", out)
        assert (shown.exit_code, shown.stderr, out.exists()) == (0, "", True)
