"""The published weights that a model is built from: where they are, in which layout, under which licence.

Sources: the model cards as read on 2026-11-23 (research/lineage.md §5.2). A card that lies beside the weights
has the last word on the licence (`wsiseg.model.parts.licence_of`).
"""

from __future__ import annotations

from dataclasses import dataclass

from wsiseg.errors import ModelError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)
_OPTIMUS_MEAN, _OPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)


@dataclass(frozen=True)
class Published:
    """One set of weights on the hub.

    `role` is `language` or `pathology`. `layout` is `transformers` (config.json says all that is needed) or
    `timm` (the number of heads and the normalisation are not in the files: `num_heads`, `mean`, `std`; `width` and
    `registers`, which are, tell whether these are the weights of that name). The normalisation is also for what has
    no preprocessor_config.json beside its config.json.
    `gated`: the publisher wants its licence accepted on the hub first.
    """

    name: str
    role: str
    repository: str
    licence: str
    layout: str = "transformers"
    gated: bool = False
    num_heads: int = 0
    width: int = 0
    registers: int = 0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


_NC_ND = "CC-BY-NC-ND-4.0"
PUBLISHED = {
    entry.name: entry
    for entry in (
        Published("qwen2.5-vl-3b", "language", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen Research (non-commercial)"),
        Published("qwen2.5-vl-7b", "language", "Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0"),
        Published("dinov2-base", "pathology", "facebook/dinov2-base", "Apache-2.0"),
        Published("dinov2-large", "pathology", "facebook/dinov2-large", "Apache-2.0"),
        Published("phikon-v2", "pathology", "owkin/phikon-v2", "Owkin (non-commercial)"),
        Published("midnight", "pathology", "kaiko-ai/midnight", "MIT", mean=_HALF, std=_HALF),
        Published(
            "h-optimus-0",
            "pathology",
            "bioptimus/H-optimus-0",
            "Apache-2.0",
            "timm",
            gated=True,
            num_heads=24,
            width=1536,
            registers=4,
            mean=_OPTIMUS_MEAN,
            std=_OPTIMUS_STD,
        ),
        Published(
            "h-optimus-1",
            "pathology",
            "bioptimus/H-optimus-1",
            _NC_ND,
            "timm",
            gated=True,
            num_heads=24,
            width=1536,
            registers=4,
            mean=_OPTIMUS_MEAN,
            std=_OPTIMUS_STD,
        ),
        Published(
            "h0-mini",
            "pathology",
            "bioptimus/H0-mini",
            _NC_ND,
            "timm",
            gated=True,
            num_heads=12,
            width=768,
            registers=4,
            mean=_OPTIMUS_MEAN,
            std=_OPTIMUS_STD,
        ),
        Published("uni", "pathology", "MahmoodLab/UNI", _NC_ND, "timm", gated=True, num_heads=16, width=1024),
        Published(
            "uni2-h",
            "pathology",
            "MahmoodLab/UNI2-h",
            _NC_ND,
            "timm",
            gated=True,
            num_heads=24,
            width=1536,
            registers=8,
        ),
        Published(
            "virchow", "pathology", "paige-ai/Virchow", "Apache-2.0", "timm", gated=True, num_heads=16, width=1280
        ),
        Published(
            "virchow2",
            "pathology",
            "paige-ai/Virchow2",
            _NC_ND,
            "timm",
            gated=True,
            num_heads=16,
            width=1280,
            registers=4,
        ),
    )
}


def published(name: str) -> Published:
    """Raises ModelError: no such name."""
    if name not in PUBLISHED:
        raise ModelError(f"no published weights are called {name!r}; `wsiseg models list` shows the names")
    return PUBLISHED[name]
