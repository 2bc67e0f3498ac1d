"""The worked examples in docstrings are true."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"wsiseg": "wsiseg", "cli": "wsiseg.cli", "training": "wsiseg.training", "benchmarks": "benchmarks"}


def rooms_with_examples() -> list[str]:
    return [
        ".".join([name, *path.relative_to(ROOT / folder).with_suffix("").parts])
        for folder, name in ROOMS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ">>> " in path.read_text()
    ]


@pytest.mark.parametrize("room", rooms_with_examples())
def test_worked_examples(room: str) -> None:
    result = doctest.testmod(import_module(room))
    assert result.attempted
    assert not result.failed
