"""A training run as one YAML file: strict, typed, every field overridable as `key=value` on the command line."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsiseg.errors import DataError


@dataclass(frozen=True)
class SftRecipe:
    """Supervised fine-tuning (DESIGN §4.3).

    `tuning` is `full`, or `lora` (rank and dropout of the paper: 16, 0.1) on the language model and, where it
    is a transformer, the pathology encoder; Seg-Adapter, mask head and projector always train in full.
    `frozen` names parameter prefixes that keep their start values. Loss: λ_CoT·CE + λ_seg·(Dice + BCE), plus
    `lambda_presence` times the BCE of a training-only probe that reads "is it there?" off the last prompt
    token, which makes the decision learnable from few images, plus `lambda_wording` times the CE of another
    that reads which concept is meant off the text before the image: `wordings_per_image` further wordings for
    every image, at the price of their few tokens, so that language is learned from more than the images' own
    questions.
    """

    stage: str = "sft"
    data: str = ""
    model: str | None = None
    preset: str = "tiny"
    stem_weights: str | None = None
    tuning: str = "full"
    lora_rank: int = 16
    lora_dropout: float = 0.1
    frozen: tuple[str, ...] = ()
    steps: int = 2000
    batch_images: int = 12
    queries_per_image: int = 3
    accumulation: int = 1
    learning_rate: float = 1e-3
    encoder_rate: float = 0.3
    warmup_steps: int = 100
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    lambda_cot: float = 1.0
    lambda_seg: float = 1.0
    lambda_presence: float = 0.5
    lambda_wording: float = 0.5
    wordings_per_image: int = 0
    ema: float = 0.998
    precision: str = "bf16"
    workers: int = 1
    cached_images: int = 0
    seed: int = 0
    validate_every: int = 250
    validation_images: int = 96
    checkpoint_every: int = 250
    source_weights: dict[str, float] = field(default_factory=dict)


def load_recipe(path: str | Path | None, overrides: tuple[str, ...] = (), **fixed: Any) -> SftRecipe:
    """The recipe in `path` (or the defaults), with `key=value` overrides, then `fixed` values that are not None.

    Raises:
        DataError: the file is missing or no mapping, a key is unknown, a value has the wrong type.
    """
    import yaml

    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise DataError(f"cannot read the recipe {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not YAML: {error}".replace("\n", " ")) from error
        if not isinstance(raw, dict):
            raise DataError(f"{path} must hold a mapping of recipe keys to values")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise DataError(f"{override!r} is no override; write key=value")
        raw[key] = yaml.safe_load(text)
    raw |= {key: value for key, value in fixed.items() if value is not None}
    known = {f.name: f for f in dataclasses.fields(SftRecipe)}
    if unknown := sorted(set(raw) - set(known)):
        raise DataError(f"unknown recipe key {', '.join(unknown)}; known: {', '.join(known)}")
    defaults = SftRecipe()
    value: Any
    for key, value in raw.items():
        default = getattr(defaults, key)
        if isinstance(value, list):
            raw[key] = value = tuple(value)
        if isinstance(default, float) and isinstance(value, str):
            with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as text
                raw[key] = value = float(value)
        fits = isinstance(value, type(default)) or (isinstance(default, float) and isinstance(value, int))
        if default is not None and not fits:
            raise DataError(f"recipe key {key} must be {type(default).__name__}, not {value!r}")
    recipe = SftRecipe(**raw)
    if recipe.tuning not in ("full", "lora"):
        raise DataError(f"tuning must be full or lora, not {recipe.tuning!r}")
    if recipe.precision not in ("bf16", "fp32"):
        raise DataError(f"precision must be bf16 or fp32, not {recipe.precision!r}")
    return recipe


def save_recipe(recipe: SftRecipe, path: Path) -> None:
    """Write the resolved recipe, so that the run can be repeated from its own folder."""
    import yaml

    raw = dataclasses.asdict(recipe)
    raw["frozen"] = list(raw["frozen"])
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
