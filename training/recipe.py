"""A training run as one YAML file: strict, typed, every key overridable as `key=value` on the command line.

A stage's recipe is a frozen dataclass beside the stage (`SftRecipe` in sft.py); what all stages share is
`Recipe`. Types say what a value may be: int, float, bool, str, `Literal`, `X | None`, `tuple[X, ...]`,
`dict[str, X]`, and `Annotated[X, Range(...)]` for bounds.
"""

from __future__ import annotations

import difflib
import math
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from wsiseg.errors import DataError
from wsiseg.files import atomic_write
from wsiseg.model import BUNDLED


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.low}" if self.high == math.inf else f"from {self.low} to {self.high}"


SHIPPED = Path(__file__).parent / "recipes"

Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**63 - 1)]  # torch takes none of more than 64 bits, and steps are added to it
Amount = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Recipe:
    """What every stage is told.

    `model` is where the weights come from: `tiny` (the bundled model), a model folder, or null: fresh weights of
    `preset`, with `stem_weights` (EfficientNet-Lite0, ImageNet) in the stems. A step is `accumulation` batches of
    `batch_images` images on every process. The learning rate rises over `warmup_steps` and falls by
    half a cosine; pretrained backbones learn at `encoder_rate` of it. `clip_norm` is the largest
    norm that a step's gradient may have (0: any). `frozen` names parameter prefixes that
    keep their start values. `ema` is the decay of the moving average of the weights that becomes the model.
    `source_weights`: how often a source of the data set is drawn, relative to the others; unnamed ones count by
    the square root of their size. `cached_images` decoded images are kept in memory by every loading process.
    `wandb`: the project of Weights & Biases that gets the figures too.
    """

    data: str = ""
    model: str | None = BUNDLED
    preset: Literal["tiny", "paper"] = "tiny"
    stem_weights: str | None = None
    frozen: tuple[str, ...] = ()
    steps: Count = 2000
    batch_images: Count = 12
    accumulation: Count = 1
    learning_rate: Amount = 1e-3
    encoder_rate: Amount = 0.3
    warmup_steps: Natural = 100
    weight_decay: Amount = 0.02
    clip_norm: Amount = 1.0
    ema: Share = 0.998
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    workers: Natural = 1
    cached_images: Natural = 0
    seed: Seed = 0
    validate_every: Count = 250
    validation_images: Natural = 96
    checkpoint_every: Count = 250
    wandb: str | None = None
    source_weights: dict[str, Amount] = field(default_factory=dict)

    @property
    def largest_norm(self) -> float:
        return self.clip_norm or math.inf

    @property
    def reads_start(self) -> bool:
        """Whether a run reads `model` again when it is resumed (`wsiseg.training.reference`)."""
        return False


R = TypeVar("R")


def load_recipe(recipe_class: type[R], path: str | Path | None, overrides: tuple[str, ...] = (), **fixed: Any) -> R:
    """The recipe in `path` (or the defaults), with `key=value` overrides, then `fixed` values that are not None.

    path: of a file, or the name of a recipe that comes with wsiseg where no file has it.

    Raises:
        DataError: the file is missing, no mapping, or of another stage than is `fixed`; or keys or values are wrong,
            in which case every one of them is named, with its line in the file and the nearest right word.
    """
    given: dict[str, tuple[str, Any]] = {}  # key → where it was given, value
    wrong = _read(_find(Path(path)), given) if path is not None else []
    meant, asked = given.get("stage", ("", None))[1], fixed.get("stage")
    if meant and asked and meant != asked:
        raise DataError(f"{path} is a recipe of --stage {meant}, not {asked}")
    for override in overrides:
        wrong += _override(override, given)
    given |= {key: (f"{key} as an option", value) for key, value in fixed.items() if value is not None}
    hints = get_type_hints(recipe_class, include_extras=True)
    values: dict[str, Any] = {}
    for key, (where, value) in given.items():
        if key not in hints:
            wrong.append(f"{where}: there is no recipe key {key}{nearest(key, hints)}")
            continue
        try:
            values[key] = _fit(value, hints[key])
        except ValueError as error:
            wrong.append(f"{where}: {key} must be {error}")
    if wrong:
        name = f"the recipe {path}" if path is not None else "the recipe"
        known = "" if all(key in hints for key in given) else f"; {recipe_class.__name__} knows: {', '.join(hints)}"
        raise DataError(f"{name}: {'; '.join(wrong)}{known}")
    return recipe_class(**values)


def save_recipe(recipe: Any, path: Path) -> None:
    """Write the resolved recipe, so that the run can be repeated from its own folder. OutputError if that fails."""
    import yaml

    raw = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(recipe).items()}
    with atomic_write(path) as file:  # a resumed run has one already, which a full disk must not take
        file.write(yaml.safe_dump(raw, sort_keys=False).encode())


def _find(path: Path) -> Path:
    shipped = SHIPPED / path.name
    return shipped if path == Path(path.name) and not path.exists() and shipped.is_file() else path


def _read(path: Path, given: dict[str, tuple[str, Any]]) -> list[str]:
    """Fill `given` from a YAML file, with lines; returns what is wrong with its keys."""
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_text())
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise DataError(f"{path} must hold a mapping of recipe keys to values")
        wrong = []
        for key_node, value_node in root.value:
            key, where = str(key_node.value), f"line {key_node.start_mark.line + 1}"
            if key in given:
                wrong.append(f"{where}: {key} stands already in {given[key][0]}")
            given[key] = where, loader.construct_object(value_node, deep=True)
        return wrong
    except OSError as error:
        ours = ", ".join(sorted(file.name for file in SHIPPED.iterdir()))
        raise DataError(f"cannot read the recipe {path}: {error.strerror}; wsiseg comes with {ours}") from error
    except DataError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of bytes, dates and nesting that are none
        raise DataError(f"{path} is not YAML: {error}".replace("\n", " ")) from error


def _override(text: str, given: dict[str, tuple[str, Any]]) -> list[str]:
    import yaml

    key, separator, value = text.partition("=")
    if not separator:
        return [f"{text!r} is no override, write key=value"]
    try:
        given[key] = repr(text), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return [f"{text!r}: the value is not YAML"]
    return []


def _fit(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; ValueError says what it must be."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number, bounds = _fit(value, arguments[0]), arguments[1]
        if not bounds.low <= number <= bounds.high:
            raise ValueError(f"{bounds}, not {value!r}")
        return number
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{' or '.join(map(str, arguments))}, not {value!r}{nearest(value, arguments)}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _fit(value, next(kind for kind in arguments if kind is not types.NoneType))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"a list, not {value!r}")
        return tuple(_fit(item, arguments[0]) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"a mapping, not {value!r}")
        return {_fit(key, arguments[0]): _fit(item, arguments[1]) for key, item in value.items()}
    if hint is float:
        try:
            number = float(value if not isinstance(value, bool) else "no number")  # YAML 1.1 reads 1e-3 as text
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"a number, not {value!r}")
        return number
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", bool: "true or false", str: "text"}
        raise ValueError(f"{names.get(hint, hint.__name__)}, not {value!r}")
    return value


def nearest(word: Any, known: Any) -> str:
    """What to add to an error about `word`: the word of `known` that it is most like, or nothing."""
    close = difflib.get_close_matches(str(word), list(map(str, known)), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
