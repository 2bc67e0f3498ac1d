"""`wsiseg models` on the command line: parts in, a folder out, and what must be said about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from tests.model.published import small_sam, timm_state, write_qwen
from wsiseg.cli.main import main
from wsiseg.model.config import load_config
from wsiseg.model.published import PUBLISHED


def models(*args: object) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, args)])


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(PUBLISHED, "uni", dataclasses.replace(PUBLISHED["uni"], width=32))
    write_qwen(tmp_path / "qwen", tied=True)
    (tmp_path / "uni").mkdir()
    torch.save(timm_state(registers=0, positions=257, swiglu=False), tmp_path / "uni/pytorch_model.bin")
    torch.save(small_sam().state_dict(), tmp_path / "sam.pth")
    return tmp_path


def test_parts_become_a_folder_that_says_what_it_is(parts: Path) -> None:
    start = ["--language", parts / "qwen", "--pathology", f"uni={parts / 'uni'}"]
    done = models("build", parts / "out", *start, "--sam", parts / "sam.pth")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert "not trained yet: projector, Seg-Adapter, <SEG> token" in done.stderr
    assert "must not be passed on: pathology encoder MahmoodLab/UNI" in done.stderr
    config = load_config(parts / "out/config.json")
    assert config.pathology.arguments["num_heads"] == PUBLISHED["uni"].num_heads  # not in the file: from the list
    assert config.image.mean == (0.485, 0.456, 0.406)
    assert "CC-BY-NC-ND-4.0" in (parts / "out/README.md").read_text()
    shown = models("show", parts / "out").stdout
    for said in ("language model", "pathology encoder", "torch.bfloat16", "licence toy-research", "not trained yet"):
        assert said in shown


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        (["--language", "{}/qwen", "--pathology", "uni={}/uni"], 2, "give one of --medsam and --sam"),
        (["--language", "{}/no", "--pathology", "{}/uni", "--sam", "{}/sam.pth"], 1, "neither a published name"),
        (["--language", "{}/qwen", "--pathology", "{}/uni", "--sam", "{}/sam.pth"], 1, "config.json is missing"),
        (["--language", "uni={}/uni", "--pathology", "{}/uni", "--sam", "{}/sam.pth"], 1, "not a language one"),
        (["--language", "{}/qwen", "--pathology", "uni={}/uni", "--sam", "{}/no.pth"], 1, "no checkpoint at"),
    ],
)
def test_what_cannot_be_built_is_one_line(parts: Path, options: list[str], exit_code: int, said: str) -> None:
    done = models("build", parts / "out", *(option.format(parts) for option in options))
    assert (done.exit_code, done.stderr.count("\n")) == (exit_code, 1), done.stderr
    assert said in done.stderr
    assert not (parts / "out").exists()


def test_the_list_names_every_part_with_its_licence() -> None:
    listed = models("list").stdout
    for entry in PUBLISHED.values():
        assert entry.name in listed
        assert entry.licence in listed


def test_a_folder_without_its_tokenizer_is_one_line(parts: Path) -> None:
    start = ["--language", parts / "qwen", "--pathology", f"uni={parts / 'uni'}"]
    models("build", parts / "out", *start, "--sam", parts / "sam.pth")
    (parts / "out/tokenizer.json").unlink()
    done = models("show", parts / "out")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"wsiseg: error: {parts / 'out'} lacks tokenizer.json; is the folder complete?\n"
