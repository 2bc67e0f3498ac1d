"""Whatever a recipe holds, it is a recipe or a sentence."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.strategies import json_like
from wsiseg.errors import DataError
from wsiseg.training.recipe import load_recipe
from wsiseg.training.sft import SftRecipe

keys = st.sampled_from([field.name for field in fields(SftRecipe)])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


@given(data=st.binary(max_size=60))
@example(b"steps: !!python/object/apply:os.system [echo]")
@example(b"? [1, 2]\n: 3")
@example(b"a: &a [*a]")
@example(b"<<: {steps: 3}")
@example(b"[" * 3000)
@example(b"steps: 2001-02-30")
@settings(deadline=None)
def test_any_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with suppress(DataError):
        load_recipe(SftRecipe, path)


@given(said=st.dictionaries(keys, json_like, max_size=4))
@settings(deadline=None)
def test_any_values_under_the_right_keys(path: Path, said: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump(said), "utf-8")
    with suppress(DataError):
        load_recipe(SftRecipe, path)


@given(text=st.text(max_size=30))
@example("steps=[")
@example("steps={? : }")
@example("source_weights={1: 2}")
@settings(deadline=None)
def test_any_override(text: str) -> None:
    with suppress(DataError):
        load_recipe(SftRecipe, None, (text,))
