"""What the pages on own data, QuPath and training tell people to type, typed: a step or two of a small model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import wsiseg.model
from wsiseg.cli.main import main
from wsiseg.geojson import Annotation, write_geojson
from wsiseg.testing import FakeModel, disk, synthetic_slide
from wsiseg.training import reference
from wsiseg.training import start as starting
from wsiseg.training.data.chance import split_of

DOCS = Path(__file__).parents[2] / "docs"
# In place of the laptop defaults, which take minutes to hours.
LIGHT = ["--steps", "1", "workers=0", "batch_images=2", "validation_images=2"]
LIGHT_RL = ["--steps", "2", "batch_images=1", "queries_per_image=1", "answers=2", "probes=1", "validation_images=2"]

# One patient in five, by the name, is for validation: among few perhaps none.
PATIENTS = [name for name in (f"p{i}" for i in range(40)) if split_of(name) == "train"][:3]
PATIENTS += [name for name in (f"p{i}" for i in range(40)) if split_of(name) == "val"][:2]


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("wsiseg ")]


def run(words: list[str]) -> None:
    if words[0] == "train" and "--resume" not in words:
        words = [*words, *(LIGHT_RL if "rl" in words else LIGHT)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, (words, done.stderr)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, where the bundled model is a small one."""
    find = starting.model_folder
    for module in (starting, reference):
        monkeypatch.setattr(module, "model_folder", lambda name: start if name == "tiny" else find(name))
    monkeypatch.chdir(tmp_path)


def test_own_data() -> None:
    rng = np.random.default_rng(0)
    for patient in PATIENTS:
        gland = np.zeros((140, 140), np.uint8)
        gland[20:60, 30:70], gland[80:120, 70:110] = 1, 2
        image = np.where(gland[..., None] > 0, [90, 60, 140], [225, 170, 200]) + rng.normal(0, 6, (140, 140, 3))
        for folder, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", gland)):
            Path("my-images", folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(f"my-images/{folder}/{patient}__a.png")
    synthetic_slide("slide.svs", {}, l0_width=400, l0_height=300)
    for words in commands("own-data.md"):
        run(words)
    assert json.loads(Path("glands.geojson").read_bytes())["wsiseg"]["model"]["name"] == "small"


def test_qupath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsiseg.model, "load_model", lambda *_, **__: GlandsAreOlive())
    glands = [disk(200, 150, 40), disk(280, 180, 20)]
    synthetic_slide("slide.svs", {"olive": glands}, l0_width=400, l0_height=300)
    Path("wsiseg-export").mkdir()
    for patient in PATIENTS:
        shutil.copy("slide.svs", f"wsiseg-export/{patient}.svs")
        with open(f"wsiseg-export/{patient}.geojson", "wb") as file:
            write_geojson([Annotation(uuid.uuid4(), g, "", "Gland", (0, 150, 100)) for g in glands], file)
    for words in commands("qupath.md"):
        run(words)
    assert len(json.loads(Path("glands.geojson").read_bytes())["features"]) == 2
    assert Path("runs/mine/model/model.safetensors").exists()


class GlandsAreOlive(FakeModel):
    def segment_tiles(self, tiles, query, mpp):  # type: ignore[no-untyped-def]
        return super().segment_tiles(tiles, query.replace("glands", "olive"), mpp)


def test_so_grpo(store: Path) -> None:
    Path("open.zarr").symlink_to(store)
    for words in commands("so-grpo.md"):
        run(words)
    assert Path("runs/rl/model/model.safetensors").exists()
    assert Path("runs/grpo/model/model.safetensors").exists()


def test_all_stages(shared_data: Path) -> None:
    Path("PATH").mkdir()
    Path("PATH/camelyon_resampled").symlink_to(shared_data / "open" / "camelyon_resampled")
    for i in range(4):
        Image.fromarray(np.full((140, 140, 3), 60 * i, np.uint8)).save(f"{i}.png")
    lines = [json.dumps({"image": f"{i}.png", "text": "Pink, and nothing else."}) for i in range(4)]
    Path("pairs.jsonl").write_text("\n".join(lines))
    for words in commands("training.md"):
        run(words)
    assert Path("runs/rl/model/model.safetensors").exists()
