"""`wsiseg info` and `wsiseg thumbnail`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.slide.make import smooth
from wsiseg.cli import info, thumbnail
from wsiseg.errors import OutputError, SlideError


def test_info_as_json(sample_slide: Path) -> None:
    result = CliRunner().invoke(info.command, [str(sample_slide), "--json"], catch_exceptions=False)
    facts = orjson.loads(result.stdout)
    assert (facts["width"], facts["height"], facts["mpp"]) == (2220, 2967, [0.499, 0.499])
    assert (facts["vendor"], facts["backend"], facts["objective_power"]) == ("aperio", "openslide", 20)
    assert facts["levels"] == [{"width": 2220, "height": 2967, "downsample": 1.0}]
    assert facts["properties"]["aperio.AppMag"] == "20"


def test_info_for_people(sample_slide: Path) -> None:
    result = CliRunner().invoke(info.command, [str(sample_slide), "--backend", "tiffslide"])
    assert "aperio (read by tiffslide)" in result.stdout
    assert "0.499 x 0.499" in result.stdout


def test_info_says_what_to_do_about_a_missing_scale(tmp_path: Path) -> None:
    Image.fromarray(smooth(30, 20)).save(tmp_path / "a.png")
    result = CliRunner().invoke(info.command, [str(tmp_path / "a.png")], catch_exceptions=False)
    assert "--slide-mpp" in result.stdout
    supplied = CliRunner().invoke(
        info.command, [str(tmp_path / "a.png"), "--slide-mpp", "0.5,0.25", "--json"]
    )
    assert orjson.loads(supplied.stdout)["mpp"] == [0.5, 0.25]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_info_of_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"f\xfcnf.png")
    Image.fromarray(smooth(30, 20)).save(path)
    result = CliRunner().invoke(info.command, [str(path), "--json"], catch_exceptions=False)
    assert orjson.loads(result.stdout)["source"] == str(tmp_path / "f?nf.png")


def test_info_of_nothing() -> None:
    with pytest.raises(SlideError, match=r"none\.svs does not exist"):
        CliRunner().invoke(info.command, ["none.svs"], catch_exceptions=False)


def test_info_of_a_tile_store_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(SlideError, match=r"s\.zarr is a Zarr store: give the slide that it was made of"):
        CliRunner().invoke(info.command, [str(tmp_path / "s.zarr")], catch_exceptions=False)


def test_thumbnail_with_tissue(sample_slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    line = [str(sample_slide), "--tissue", str(out), "--max-px", "400"]
    result = CliRunner().invoke(thumbnail.command, line, catch_exceptions=False)
    assert result.stdout == ""
    drawn = np.asarray(Image.open(out))
    assert drawn.shape == (400, 299, 3)
    outline = (drawn == (0, 160, 0)).all(axis=2)
    assert 500 < outline.sum() < 8000
    plain = tmp_path / "plain.jpg"
    line = [str(sample_slide), str(plain), "--max-px", "100"]
    CliRunner().invoke(thumbnail.command, line, catch_exceptions=False)
    assert Image.open(plain).size == (75, 100)


def test_thumbnail_that_cannot_be_written(sample_slide: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(thumbnail.command, [str(sample_slide), "out.gif"]).exit_code == 2
    line = [str(sample_slide), str(tmp_path / "none" / "out.png"), "--max-px", "100"]
    with pytest.raises(OutputError):
        CliRunner().invoke(thumbnail.command, line, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_does_not_take_the_place_of_its_slide(tmp_path: Path) -> None:
    slide = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(slide)
    (tmp_path / "link.png").symlink_to(slide)
    before = slide.read_bytes()
    for out in (slide, tmp_path / "link.png"):
        with pytest.raises(OutputError, match="this command reads that file"):
            CliRunner().invoke(thumbnail.command, [str(slide), str(out)], catch_exceptions=False)
    assert slide.read_bytes() == before
