"""`--example`: read from files, shown to the model, written into the run's record."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import wsiseg.model
from wsiseg.cli.evaluate import command as evaluate
from wsiseg.cli.main import main
from wsiseg.inference.shots import Shot
from wsiseg.testing import FakeModel, disk, synthetic_slide


class TeachableModel(FakeModel):
    """Is told by the examples, and not by the query, which marker is meant: that of the brightest red, orange."""

    shots: Sequence[Shot] = ()

    def with_shots(self, shots: Sequence[Shot]) -> TeachableModel:
        model = TeachableModel(tile_size=self.tile_size, overlap=self.overlap)
        model.shots = shots
        return model

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list:  # type: ignore[type-arg]
        red = np.mean([shot.image[shot.mask][:, 0].mean() for shot in self.shots])
        return super().segment_tiles(tiles, "orange" if red > 200 else "olive", mpp)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: TeachableModel(tile_size=128, overlap=32))
    synthetic_slide("slide.tif", {"olive": [disk(300, 300, 100)], "orange": [disk(800, 300, 90), disk(800, 600, 60)]})
    mask = np.zeros((50, 60), np.uint8)
    mask[10:30, 10:30] = 255
    Image.fromarray(mask).save("mask.png")
    for name, color in (("olive", (130, 145, 0)), ("orange", (255, 110, 0))):
        Image.fromarray(np.where(mask[..., None] > 0, color, (225, 160, 195)).astype(np.uint8)).save(f"{name}.png")
    return tmp_path


def segment(*args: str) -> Result:
    return CliRunner().invoke(main, ["segment", "slide.tif", "--query", "this", *args])


@pytest.mark.usefixtures("place")
def test_what_an_example_shows_is_outlined() -> None:
    found = {}
    for name in ("olive", "orange"):
        shown = segment("--example", f"{name}.png", "mask.png", "--example-mpp", "0.5")
        assert shown.exit_code == 0, shown.stderr
        found[name] = json.loads(shown.stdout)
    assert [len(found[name]["features"]) for name in ("olive", "orange")] == [1, 2]
    (record,) = found["olive"]["wsiseg"]["examples"]
    assert record["image"] == "olive.png"
    assert record["fingerprint"] != found["orange"]["wsiseg"]["examples"][0]["fingerprint"]
    again = segment("--example", "olive.png", "mask.png", "--example-mpp", "0.5")
    two = segment(*("--example", "olive.png", "mask.png") * 2, "--example-mpp", "0.5")
    assert json.loads(again.stdout) == found["olive"]
    ids = [json.loads(shown.stdout)["features"][0]["id"] for shown in (again, two)]
    assert ids[0] != ids[1]  # outlines made by other means are other objects


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--example", "olive.png", "mask.png"], "--example-mpp"),
        (["--example", "no.png", "mask.png", "--example-mpp", "0.5"], "no.png does not exist"),
        (["--query", "that", "--example", "olive.png", "mask.png", "--example-mpp", "0.5"], "one query at a time"),
        (["--example", "olive.png", "slide.tif", "--example-mpp", "0.5"], "slide.tif has several values or colours"),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_is_wrong_with_an_example_is_one_line(args: list[str], said: str) -> None:
    shown = segment(*args)
    assert shown.exit_code == 1
    assert shown.stdout == ""
    assert shown.stderr.startswith("wsiseg: error: ")
    assert shown.stderr.count("\n") == 1
    assert said in shown.stderr


def test_what_the_page_tells_people_to_type(place: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "one-shot.md").read_text()
    (place / "slide.tif").rename(place / "slide.svs")
    (place / "olive.png").rename(place / "crop.png")
    (shell,) = re.findall(r"```sh\n(wsiseg segment.*?)```", page, re.DOTALL)
    asked, measured = shell.splitlines()[:2]
    shown = CliRunner().invoke(main, shlex.split(asked)[1:])
    assert shown.exit_code == 0, shown.stderr
    evaluate.make_context("evaluate", shlex.split(measured)[2:])  # parses, and does not run
    first = (place / "out.geojson").read_bytes()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "one-shot.md", "exec"), {})
    assert json.loads((place / "out.geojson").read_bytes())["features"] == json.loads(first)["features"]


def test_a_model_that_takes_none_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: FakeModel())
    shown = segment("--example", "olive.png", "mask.png", "--example-mpp", "0.5")
    assert shown.exit_code == 1
    assert "the model fake takes no examples" in shown.stderr
    many = CliRunner().invoke(
        main, ["segment", str(place), "--query", "x", "--out", "o", "--example", "olive.png", "mask.png"]
    )
    assert many.exit_code == 2
    assert "--example is for one slide" in many.stderr
