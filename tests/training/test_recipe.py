"""Recipes: what is wrong is named, all of it, with its place and the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wsiseg.errors import DataError
from wsiseg.training.recipe import SHIPPED, load_recipe, save_recipe
from wsiseg.training.sft import SftRecipe


def test_overrides_win_over_the_file_and_options_over_both(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 5\nlearning_rate: 3e-4\nfrozen: [a, b]\nsource_weights: {x: 2}\nmodel: null\n")
    recipe = load_recipe(SftRecipe, path, ("steps=7", "seed=3"), steps=9, data=None)
    assert (recipe.steps, recipe.seed, recipe.learning_rate) == (9, 3, 3e-4)
    assert recipe.frozen == ("a", "b")
    assert recipe.source_weights == {"x": 2.0}
    assert recipe.model is None
    save_recipe(recipe, path)
    assert load_recipe(SftRecipe, path) == recipe


def test_a_bare_name_means_a_shipped_recipe_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(SftRecipe, "tiny-sft-gpu.yaml") == load_recipe(SftRecipe, SHIPPED / "tiny-sft-gpu.yaml")
    (tmp_path / "tiny-sft-gpu.yaml").write_text("steps: 7\n")
    assert load_recipe(SftRecipe, "tiny-sft-gpu.yaml").steps == 7
    with pytest.raises(DataError, match=r"wsiseg comes with .*tiny-sft-gpu\.yaml"):
        load_recipe(SftRecipe, "there/tiny-sft-gpu.yaml")


def test_every_mistake_is_named_with_its_line_and_the_nearest_right_word(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("stepps: 3\n\nprecision: bf15\nema: 2\nsteps: many\nseed: 1\nseed: 2\n")
    with pytest.raises(DataError) as caught:
        load_recipe(SftRecipe, path, ("tuning=lorra", "oops", "workers=true"))
    for part in (
        f"{path}",
        "line 1: there is no recipe key stepps (did you mean steps?)",
        "line 3: precision must be bf16 or fp32, not 'bf15' (did you mean bf16?)",
        "line 4: ema must be from 0 to 1, not 2",
        "line 5: steps must be a whole number, not 'many'",
        "line 7: seed stands already in line 6",
        "'tuning=lorra': tuning must be full or lora, not 'lorra' (did you mean lora?)",
        "'oops' is no override",
        "'workers=true': workers must be a whole number, not True",
    ):
        assert part in str(caught.value)


def test_numbers_that_no_run_can_take_are_mistakes_too(tmp_path: Path) -> None:
    path, huge = tmp_path / "recipe.yaml", "1" + "0" * 400
    path.write_text(f"learning_rate: {huge}\nsource_weights: {{glas: .inf}}\nseed: 99999999999999999999999\n")
    with pytest.raises(DataError) as caught:
        load_recipe(SftRecipe, path, ("clip_norm=.nan",))
    for part in (
        f"line 1: learning_rate must be a number, not {huge}",
        "line 2: source_weights must be a number, not inf",
        "line 3: seed must be from 0 to 9223372036854775807, not 99999999999999999999999",
        "'clip_norm=.nan': clip_norm must be a number, not nan",
    ):
        assert part in str(caught.value)
    most = load_recipe(SftRecipe, None, ("seed=9223372036854775807",)).seed
    torch.manual_seed(most + 1_000_003 * 10**9)  # as of a late step


def test_a_recipe_of_another_stage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: ssl\n")
    with pytest.raises(DataError, match="line 1: stage must be sft"):
        load_recipe(SftRecipe, path)
