"""Stain-invariant self-distillation of both encoders: masked autoencoding of two restained views that must agree.

L_SSL = α/N Σᵢ wᵢ·‖ẑᵢᵃ − ẑᵢᵇ‖² + L_MAE, with wᵢ = Cos(s₁, s₂) / mean over the batch, Cos the cosine distance of the
two stain templates of image i (lineage.md §4.2), and ẑ the mean features less those of the batch, at unit length.
A plain ‖zᵃ − zᵇ‖ is smallest where all features are zero, and one of unit vectors where all features share one large
constant: the second is what training found within 25 steps when it was tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from wsiseg.errors import DataError
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.loop import Report, Say, Stage, fit, plan
from wsiseg.training.mae import MaskedEncoder, image_branch, pathology_branch, random_mask
from wsiseg.training.mix import training_store
from wsiseg.training.recipe import Amount, Count, Natural, Recipe, Share
from wsiseg.training.stain import StainStatistics, load_statistics, restain
from wsiseg.training.start import answers, begin, outline
from wsiseg.training.trainable import LANGUAGE, checkpoint_activations, train_all_but
from wsiseg.training.views import ViewStream, collate_views

# All but the two encoders, and the finer features that only the mask decoder uses.
_FROZEN = (
    LANGUAGE,
    "vlm.lm_head",
    "vlm.model.visual.projector",
    "seg_adapter",
    "mask_head",
    "image_encoder.skip",
)
_MAX_WEIGHT = 5.0
_MEASURED, _STAININGS = 64, 4


@dataclass(frozen=True)
class SslRecipe(Recipe):
    """Stain-invariant self-distillation (DESIGN §4.1).

    `alpha` weighs the agreement of the two views, `mask_ratio` is the share of an image that is masked.
    `literal_weight` takes the seed's formula as printed, the cosine similarity of the templates, not normalised:
    it weighs views the less the more their stains differ, and is there to be compared with.
    """

    stage: Literal["ssl"] = "ssl"
    alpha: Amount = 0.1
    mask_ratio: Share = 0.75
    literal_weight: bool = False
    steps: Count = 1000
    batch_images: Count = 16
    learning_rate: Amount = 3e-4
    warmup_steps: Natural = 40
    weight_decay: Amount = 0.05
    ema: Share = 0.99

    def __post_init__(self) -> None:
        """Raises DataError: of a single image, less the mean of its two views, ẑᵃ = −ẑᵇ whatever the encoder does."""
        if self.batch_images < 2:
            raise DataError("batch_images: 1; ssl compares an image with the others of its batch: give 2 or more")


def stain_weight(first: torch.Tensor, second: torch.Tensor, literal: bool = False) -> torch.Tensor:
    """wᵢ of templates (B, 6) and (B, 6): 1 − cos, divided by its batch mean, at most 5; or cos itself, `literal`.

    >>> a, b = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    >>> stain_weight(a, b).tolist(), stain_weight(a, b, literal=True).tolist()
    ([0.0, 2.0], [1.0, 0.0])
    """
    similarity = F.cosine_similarity(first, second, dim=1)
    if literal:
        return similarity
    distance = 1 - similarity
    return (distance / distance.mean().clamp(min=1e-8)).clamp(max=_MAX_WEIGHT)


class SslModel(nn.Module):
    """The model with a mask token and a reconstruction head for either encoder; `forward` gives the losses."""

    def __init__(self, model: PathChatSegR1, recipe: SslRecipe, statistics: StainStatistics | None) -> None:
        super().__init__()
        self.model, self.recipe, self.statistics = model, recipe, statistics
        self.image, self.pathology = image_branch(model), pathology_branch(model)

    def train(self, mode: bool = True) -> SslModel:
        super().train(mode)
        for module in self.modules():  # see mae.py: blank images must not enter running statistics
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def branches(self, tiles: torch.Tensor) -> Iterator[tuple[str, MaskedEncoder, torch.Tensor]]:
        """Name, branch and input pixels of both encoders for tiles (B, 3, S, S) in [0, 1]."""
        yield "image", self.image, self.model.image_pixels(tiles)
        yield "pathology", self.pathology, self.model.pathology_pixels(tiles)

    def restained(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tiles (B, 3, S, S) in another stain each, and its template (B, 6)."""
        assert self.statistics is not None
        template = self.statistics.draw(len(tiles), tiles.device)
        return restain(tiles, template), template

    def forward(self, tiles: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses of tiles (B, 3, S, S) in [0, 1]."""
        with torch.no_grad(), torch.autocast(tiles.device.type, enabled=False):
            (one, first), (two, second) = self.restained(tiles), self.restained(tiles)
            weight = stain_weight(first, second, self.recipe.literal_weight)  # (B,)
        losses = {}
        for name, branch, pixels in self.branches(torch.cat([one, two])):
            # The same mask for both views: else the term below would compare different content.
            mask = random_mask(len(tiles), pixels.shape[-1] // branch.patch, self.recipe.mask_ratio, tiles.device)
            losses[f"{name}_mae"], z = branch(pixels, mask.repeat(2, 1, 1))  # z: (2B, D)
            za, zb = F.normalize(z - z.mean(0), dim=1).chunk(2)
            losses[f"{name}_consistency"] = (weight * ((za - zb) ** 2).sum(1)).mean()
        total = sum(
            losses[f"{name}_mae"] + self.recipe.alpha * losses[f"{name}_consistency"]
            for name in ("image", "pathology")
        )
        return {"loss": torch.as_tensor(total), **losses}


@torch.no_grad()
def restaining_figures(module: SslModel, tiles: torch.Tensor) -> dict[str, float]:
    """How much the features of tiles (N, 3, S, S) change with their stain, and whether they still tell tiles apart.

    Every tile is seen whole (unmasked) in several stainings; z is its mean feature. For each encoder:
    `stain_variance`: variance of z over stainings of a tile, summed over dimensions, mean over tiles, divided by
    the variance of the tiles' means, so that it does not fall merely because features shrink;
    `rank`: effective rank of the tiles' means, exp of the entropy of their singular values (Roy & Vetterli 2007);
    `retrieval`: share of tiles whose nearest neighbour (cosine, centred) among all tiles in another staining is
    the tile itself.
    """
    module.eval()
    torch.manual_seed(0)
    stainings = [_mean_features(module, tiles) for _ in range(_STAININGS)]
    return {
        f"{name}_{figure}": value
        for name in stainings[0]
        for figure, value in compare(torch.stack([features[name] for features in stainings], 1)).items()
    }


def _mean_features(module: SslModel, tiles: torch.Tensor) -> dict[str, torch.Tensor]:
    """Encoder → mean features (N, D) of `tiles`, each in another stain."""
    device = next(module.parameters()).device
    features: dict[str, list[torch.Tensor]] = {}
    for batch in tiles.split(module.recipe.batch_images):
        for name, branch, pixels in module.branches(module.restained(batch.to(device))[0]):
            features.setdefault(name, []).append(branch.features(pixels).float().mean((2, 3)).cpu())
    return {name: torch.cat(parts) for name, parts in features.items()}


def compare(features: torch.Tensor) -> dict[str, float]:
    """The figures of `restaining_figures` for features (N, K, D) of N tiles in K stainings."""
    means = features.mean(1)  # (N, D)
    centre = means.mean(0)
    between = ((means - centre) ** 2).sum(1).mean()
    within = ((features - means[:, None]) ** 2).sum(2).mean()
    spectrum = torch.linalg.svdvals(means - centre)
    share = spectrum / spectrum.sum()
    rank = torch.exp(-(share * share.clamp(min=1e-12).log()).sum())
    unit = F.normalize(features - centre, dim=2)
    found = [
        (unit[:, k] @ unit[:, 0].T).argmax(1) == torch.arange(len(unit)) for k in range(1, features.shape[1])
    ]
    return {
        "stain_variance": float(within / between),
        "rank": float(rank),
        "retrieval": float(torch.stack(found).float().mean()),
    }


def build(model: PathChatSegR1, recipe: SslRecipe, statistics: StainStatistics | None) -> SslModel:
    """`model` with both branches; all but the encoders frozen."""
    train_all_but(model, recipe, _FROZEN)
    if recipe.gradient_checkpointing:
        checkpoint_activations(model)
    torch.manual_seed(recipe.seed)
    return SslModel(model, recipe, statistics)


def train(
    recipe: SslRecipe,
    out: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    report: Report | None = None,
    say: Say | None = None,
) -> Path:
    """Run the recipe in the folder `out`, as `wsiseg.training.sft.train` does.

    Raises:
        DataError: no training images, or no stain statistics beside them (`wsiseg data stain-stats`).
    """
    if dry_run:
        return plan(build(outline(recipe), recipe, None), recipe, out, say)
    store = training_store(recipe)
    statistics = load_statistics(store)
    model = begin(recipe, out, resume, lambda config: answers(store, config, recipe.seed))
    module = build(model, recipe, statistics)

    def views(split: str, seed: int, length: int) -> ViewStream:
        return ViewStream(
            store,
            split,
            model.config,
            seed=seed,
            length=length,
            source_weights=recipe.source_weights,
            cache=recipe.cached_images if split == "train" else 0,
        )

    held_out = views("val", 7, min(_MEASURED, recipe.validation_images))
    # A single one differs from no other.
    tiles = collate_views([held_out[i] for i in range(len(held_out))]) if len(held_out) > 1 else None
    stage = Stage(
        module=module,
        model=model,
        examples=lambda length: views("train", recipe.seed, length),
        # The consistency of a last image alone in its batch is 4 whatever the encoder does; see `SslRecipe`.
        validation=lambda length: views("val", 7, length - (length % recipe.batch_images == 1)),
        collate=collate_views,
        measure=(lambda: restaining_figures(module, tiles)) if tiles is not None else None,
    )
    return fit(stage, recipe, out, resume=resume, report=report, say=say)
