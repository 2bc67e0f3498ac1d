"""What a PathChat-SegR1 model is made of: one config, two presets (`tiny`, `paper`), stored as config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import orjson

from wsiseg.errors import ModelError
from wsiseg.files import atomic_write
from wsiseg.model.plain import PLAIN, Known, asked_for, known_names, passes_over
from wsiseg.model.spelling import corrected
from wsiseg.strict import record_of

Weights = Literal["full", "8bit", "4bit"]  # how the language model's layers are held


@dataclass(frozen=True)
class PathologyEncoderConfig:
    """The encoder that the language model looks through.

    `kind` is `efficientnet` (a convolutional stem, features at stride `patch_size`) or `dinov2` (a DINOv2-type
    vision transformer; `arguments` are the further ones of `wsiseg.model.dinov2.Dinov2`). The image is resized
    to `image_size`², so that it gives (image_size / patch_size)² cells of `width` channels.
    """

    kind: str = "efficientnet"
    image_size: int = 256
    patch_size: int = 16
    width: int = 432
    mean: tuple[float, float, float] = (0.498, 0.498, 0.498)
    std: tuple[float, float, float] = (0.502, 0.502, 0.502)
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> int:
        """Cells along one side, before the 2 × 2 merge of the projector."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The MedSAM image encoder (segment_anything's ImageEncoderViT) and the size of the mask decoder.

    `stem` is `patch` (SAM's own 16 × 16 patch embedding) or `efficientnet` (a convolutional stem that also
    hands its strides 8, 4 and 2 to the mask decoder; the image embedding is then at stride 8). `mean` and
    `std` apply to pixels in [0, 1]: MedSAM uses none (`(0, 0, 0)`, `(1, 1, 1)`), SAM ImageNet's.
    `image_size` None: the encoder takes tiles at their own size, brought up to a multiple of 16; else they are
    resized to it.
    """

    stem: str = "efficientnet"
    image_size: int | None = None
    embed_dim: int = 192
    depth: int = 4
    num_heads: int = 6
    window_size: int = 8
    global_attn_indexes: tuple[int, ...] = ()
    use_abs_pos: bool = False
    prompt_dim: int = 128
    num_multimask_outputs: int = 0
    decoder_mlp_dim: int = 512
    mean: tuple[float, float, float] = (0.498, 0.498, 0.498)
    std: tuple[float, float, float] = (0.502, 0.502, 0.502)


@dataclass(frozen=True)
class LanguageModelConfig:
    """The Qwen2.5-VL text model (names as in transformers' Qwen2_5_VLTextConfig).

    `rms_norm_eps`: Qwen2.5-VL is published with 1e-6, while transformers' default, with which `tiny` was
    trained, is 1e-5.
    """

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e4
    mrope_section: tuple[int, int, int] = (8, 12, 12)
    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = True


@dataclass(frozen=True)
class PartRecord:
    """Published weights that went into a model: `sha256` is that of their files, `source` says which they were."""

    role: str = ""
    source: str = ""
    sha256: str = ""
    licence: str = ""


@dataclass(frozen=True)
class PathChatConfig:
    """A whole model.

    A query with one of `cell_words`, or one of `cell_hints` and none of `tissue_words`, is looked at at `cell_mpp`
    microns per pixel, any other at `mpp`. `seg_state` is `self` (state of `<SEG>` itself) or `predictor` (the LISA
    way). `fold_case`: queries are read in lower case, which a small vocabulary needs, and without slips of the pen in
    `words`, the words of training's queries with spaces between them ("" for any). `names`: of each structure, what it
    may be called, and by which name of training it is asked for then (see `wsiseg.model.plain`); `outlines`: those of
    the structures whose masks training showed, none if that is not known. `max_query_tokens`: a longer query, system
    prompt included, is refused. (`tiny` was asked in at most 70 in training; from about 170 on it begins to write
    nonsense, from 200 on to outline empty tiles.) `shot_weight`: of the log-odds that follow from
    a user's examples (`wsiseg.model.prototypes`), against the decoder's own; 0 leaves them out. `shots_in_context`:
    examples also stand in the prompt; only for a model that was trained to read them there. `parts` are the published
    weights it was built from; `untrained` names what holds fresh weights still: such a model is a start for training,
    never an answer.
    """

    name: str = "tiny"
    pathology: PathologyEncoderConfig = PathologyEncoderConfig()
    image: ImageEncoderConfig = ImageEncoderConfig()
    text: LanguageModelConfig = LanguageModelConfig()
    seg_tokens: int = 4
    seg_state: str = "self"
    system_prompt: str = ""
    fold_case: bool = True
    max_query_tokens: int = 160
    max_new_tokens: int = 96
    tile_size: int = 256
    overlap: int = 64
    mpp: float = 0.8
    cell_mpp: float = 0.5
    cell_words: tuple[str, ...] = (
        "nucle", "mitos", "mitot", "lymphocyt", "karyo", "chromatin", "haematoxylin", "hematoxylin", "dots", "dna",
        "bodies",
    )  # fmt: skip
    cell_hints: tuple[str, ...] = ("cell",)
    tissue_words: tuple[str, ...] = (
        "gland", "lumen", "tub", "crypt", "opening", "rounded", "columnar", "epitheli", "goblet", "tumo", "cancer",
        "malignan", "carcinom", "dysplas", "necro", "dead", "died", "stroma", "fat",
    )  # fmt: skip
    words: str = ""
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    outlines: tuple[str, ...] = ()
    shot_weight: float = 0.5
    shots_in_context: bool = False
    parts: tuple[PartRecord, ...] = ()
    untrained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seg_state not in ("self", "predictor"):
            raise ModelError(f"seg_state must be 'self' or 'predictor', not {self.seg_state!r}")
        if self.pathology.grid % 2 or self.pathology.image_size % self.pathology.patch_size:
            raise ModelError(
                f"pathology encoder: {self.pathology.image_size} px in patches of {self.pathology.patch_size} px "
                "must give an even number of cells a side, because the projector merges 2 × 2 of them"
            )
        head = self.text.hidden_size // self.text.num_attention_heads
        if sum(self.text.mrope_section) * 2 != head:
            raise ModelError(f"mrope_section {self.text.mrope_section} must add up to half the head width {head}")

    def read(self, query: str) -> str:
        """A query as the language model is given it."""
        return corrected(query.casefold(), self.words) if self.fold_case else query

    def plain(self, query: str) -> str:
        """The plainest query that asks for the same, as `read`: what a model that is not in training is asked."""
        read = self.read(query)
        meant = asked_for(read, self._known_names)
        return PLAIN.format(meant[1]) if meant else read

    def structure(self, query: str) -> str:
        """Which of `names` a query asks for, and for nothing else; "" if it may ask for another."""
        meant = asked_for(self.read(query), self._known_names)
        return meant[0] if meant else ""

    def passes_over(self, query: str) -> bool:
        """Whether `plain` leaves out what may say more after all."""
        return passes_over(self.read(query), self._known_names)

    @cached_property
    def _known_names(self) -> Known:
        return known_names(self.names)

    def asks_for_cells(self, query: str) -> bool:
        """Whether a query is looked at close up. "Cells" alone may be either: tumour cells are a tissue."""
        text = self.read(query).casefold()
        cells, hints, tissue = (
            any(word in text for word in words) for words in (self.cell_words, self.cell_hints, self.tissue_words)
        )
        return cells or (hints and not tissue)

    @property
    def image_token_count(self) -> int:
        """Tokens that one tile takes in the language model."""
        return (self.pathology.grid // 2) ** 2


def tiny() -> PathChatConfig:
    """Small enough for a laptop without a GPU; trained here, bundled in the package."""
    return PathChatConfig()


def paper() -> PathChatConfig:
    """The paper's size: Qwen2.5-VL-7B, a DINOv2 ViT-g/14 (H-optimus-0's shape), MedSAM ViT-B at 1024 px."""
    return PathChatConfig(
        name="paper",
        pathology=PathologyEncoderConfig(
            kind="dinov2",
            image_size=224,
            patch_size=14,
            width=1536,
            mean=(0.707223, 0.578729, 0.703617),
            std=(0.211883, 0.230117, 0.177517),
            arguments={"depth": 40, "num_heads": 24, "mlp_width": 4096, "swiglu": True, "registers": 4},
        ),
        image=ImageEncoderConfig(
            stem="patch",
            image_size=1024,
            embed_dim=768,
            depth=12,
            num_heads=12,
            window_size=14,
            global_attn_indexes=(2, 5, 8, 11),
            use_abs_pos=True,
            prompt_dim=256,
            num_multimask_outputs=3,
            decoder_mlp_dim=2048,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        ),
        text=LanguageModelConfig(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            mrope_section=(16, 24, 24),
            max_position_embeddings=128000,
            tie_word_embeddings=False,
        ),
        seg_tokens=2,
        fold_case=False,
        system_prompt="You are a helpful assistant.",
        max_query_tokens=256,
        max_new_tokens=512,
        tile_size=512,
        mpp=0.5,
        cell_mpp=0.25,
    )


PRESETS = {"tiny": tiny, "paper": paper}


def save_config(config: PathChatConfig, path: Path) -> None:
    """Write config.json. OutputError if that fails."""
    with atomic_write(path) as file:
        file.write(orjson.dumps(dataclasses.asdict(config), option=orjson.OPT_INDENT_2))


def load_config(path: Path) -> PathChatConfig:
    """Read config.json.

    Raises:
        ModelError: not JSON, an unknown field, a value of the wrong type.
    """
    try:
        raw = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"no model configuration at {path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object")
    if kind := raw.get("model_type", raw.get("architecture")):  # of transformers, of timm
        raise ModelError(
            f"{path} describes published weights ({kind}), not a model of wsiseg; `wsiseg models build` makes one of "
            "such parts, to be trained"
        )
    known = orjson.loads(orjson.dumps(dataclasses.asdict(PathChatConfig())))
    stated = _completed(raw, known, str(path))
    try:
        return record_of(PathChatConfig, stated)
    except (ValueError, ArithmeticError) as error:
        raise ModelError(f"{path}: {error}") from error


def _completed(raw: object, known: object, where: str) -> object:
    """`raw` with the defaults of the fields that it lacks: a model may be older than they are.

    Raises:
        ModelError: it has a field that is not `known`.
    """
    if not (isinstance(raw, dict) and isinstance(known, dict) and known):  # none are: a field of any names
        return raw
    if unknown := sorted(raw.keys() - known.keys()):
        raise ModelError(f"{where}: unknown field {', '.join(unknown)}; this model needs a newer wsiseg")
    return known | {key: _completed(value, known[key], f"{where}: {key}") for key, value in raw.items()}
