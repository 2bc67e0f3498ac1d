"""Self-supervision: what is masked does not leak, what is weighed is the stain, and what is learned is no collapse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.model.small import byte_tokenizer, small_config, small_paper_config
from wsiseg.errors import DataError
from wsiseg.model import model_folder
from wsiseg.model.config import PathChatConfig
from wsiseg.model.folder import build_model, load_folder, save_model
from wsiseg.training import loop, ssl
from wsiseg.training.mae import random_mask, shape_target
from wsiseg.training.recipe import load_recipe
from wsiseg.training.ssl import SslModel, SslRecipe, build, compare, stain_weight, train


@pytest.mark.parametrize("config", [small_config(), small_paper_config()], ids=["tiny", "paper"])
def test_features_know_nothing_of_masked_pixels(config: PathChatConfig) -> None:
    torch.manual_seed(0)
    module = build(build_model(config, byte_tokenizer()), SslRecipe(), None).eval()
    tiles = torch.rand(2, 3, 128, 128)
    for _, branch, pixels in module.branches(tiles):
        mask = random_mask(2, pixels.shape[-1] // branch.patch, 0.75)
        hidden = mask.repeat_interleave(branch.patch, 1).repeat_interleave(branch.patch, 2)[:, None]
        with torch.no_grad():
            features = branch.masked_features(pixels, mask)
            masked_changed = branch.masked_features(torch.where(hidden, pixels + 1, pixels), mask)
            visible_changed = branch.masked_features(torch.where(hidden, pixels, pixels + 1), mask)
        assert torch.equal(features, masked_changed)
        assert not torch.allclose(features, visible_changed)
        assert features.shape[-1] * branch.cell == pixels.shape[-1]


def test_where_nothing_is_masked_nothing_is_to_be_drawn() -> None:
    module = build(build_model(small_config(), byte_tokenizer()), SslRecipe(), None).eval()
    for _, branch, pixels in module.branches(torch.rand(1, 3, 128, 128)):
        loss, _ = branch(pixels, random_mask(1, pixels.shape[-1] // branch.patch, 0.0))
        assert loss == 0


def test_every_image_keeps_a_quarter_in_places_of_its_own() -> None:
    mask = random_mask(8, 6, 0.75)
    assert (~mask).sum((1, 2)).tolist() == [9] * 8
    assert len({tuple(m.flatten().tolist()) for m in mask}) == 8


def test_the_target_has_shape_and_no_stain() -> None:
    pixels = torch.rand(1, 3, 32, 32)
    stained = pixels * torch.tensor([0.3, 0.7, 0.5])[:, None, None] + torch.tensor([0.5, 0.1, 0.2])[:, None, None]
    assert shape_target(pixels, 16).std() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(shape_target(pixels, 16), shape_target(stained, 16), atol=0.2, rtol=0)


def test_views_weigh_more_the_more_their_stains_differ() -> None:
    first = torch.tensor([[60.0, 20, -10, 10, 5, 5]]).repeat(3, 1)
    second = first.clone()
    second[1, 1] += 10
    second[2, 1] += 20
    weight = stain_weight(first, second)
    assert weight[0] < 1e-4
    assert weight[1] < weight[2]
    assert weight.mean() == pytest.approx(1)
    literal = stain_weight(first, second, literal=True)
    assert literal[0] > literal[1] > literal[2] > 0.8


def test_agreement_of_a_single_image_cannot_be_learned_and_is_refused() -> None:
    with pytest.raises(DataError, match="batch_images: 1; "):
        load_recipe(SslRecipe, None, ("batch_images=1",))


@pytest.mark.parametrize("images", [0, 1, 2, 6, 7, 8, 12])
def test_no_image_is_validated_alone(
    images: int, store: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its consistency is 4, and counted as much as that of a whole batch."""
    sizes: list[int] = []

    def no_training(stage: loop.Stage, recipe: SslRecipe, out: Path, **options: object) -> Path:
        sizes.extend(map(len, loop._validation_batches(stage, recipe)))
        return out

    monkeypatch.setattr(ssl, "fit", no_training)
    train(
        SslRecipe(data=str(store), model=str(start), batch_images=6, validation_images=images, workers=0),
        tmp_path / "run",
    )
    assert sum(sizes) == images - (images % 6 == 1)
    assert 1 not in sizes


def test_figures_by_hand() -> None:
    tiles = torch.eye(4)[:, None].repeat(1, 3, 1)  # four tiles that no staining changes
    figures = compare(tiles)
    assert figures == pytest.approx({"stain_variance": 0, "rank": 3, "retrieval": 1}, abs=1e-3)
    stained = tiles + torch.tensor([[0.0] * 4, [1.0] * 4, [-1.0] * 4])
    assert compare(stained)["stain_variance"] == pytest.approx((8 / 3) / 0.75)
    line = torch.arange(4.0)[:, None, None] * torch.ones(4, 3, 4)
    assert compare(line)["rank"] == pytest.approx(1, abs=1e-3)


def test_only_the_encoders_train() -> None:
    module = build(build_model(small_paper_config(), byte_tokenizer()), SslRecipe(), None)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    encoders = ("model.image_encoder.", "model.vlm.model.visual.encoder.")
    for name, _ in module.named_parameters():
        assert (name in trained) == name.startswith((*encoders, "image.", "pathology.")), name
    assert isinstance(module, SslModel)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with the bundled model's stems: features that are worth keeping."""
    model, bundled = build_model(small_config(), byte_tokenizer()), load_folder(model_folder(None))
    model.vlm.model.visual.encoder.load_state_dict(bundled.vlm.model.visual.encoder.state_dict())
    stem = bundled.image_encoder.vit.patch_embed.backbone.state_dict()
    model.image_encoder.vit.patch_embed.backbone.load_state_dict(stem)
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(model, folder)
    return folder


def test_features_vary_less_with_the_stain_and_do_not_collapse(store: Path, pretrained: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = SslRecipe(
        data=str(store),
        model=str(pretrained),
        steps=18,
        batch_images=6,
        learning_rate=1e-3,
        alpha=0.3,
        warmup_steps=3,
        ema=0.8,
        precision="fp32",
        workers=0,
        validation_images=12,
        validate_every=18,
        checkpoint_every=18,
    )
    folder = train(recipe, tmp_path / "run", say=said.append)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before, after = (line for line in lines if line["kind"] == "validation")
    for encoder in ("image", "pathology"):
        assert after[f"{encoder}_stain_variance"] < 0.8 * before[f"{encoder}_stain_variance"]
        # Differences of stain that restaining did not average out count as rank, too: before more than after.
        # A collapse brings it to about 1, an eighth of what it was.
        assert after[f"{encoder}_rank"] > 0.5 * before[f"{encoder}_rank"]
        assert after[f"{encoder}_retrieval"] >= 0.9 * before[f"{encoder}_retrieval"]
        assert after[f"{encoder}_mae"] < before[f"{encoder}_mae"]
    assert "pathology_stain_variance" in said[-1]
    start, end = load_folder(pretrained).state_dict(), load_folder(folder).state_dict()
    assert all(torch.equal(start[key], end[key]) for key in start if key.endswith(("running_mean", "running_var")))
    assert not torch.equal(*(s["vlm.model.visual.encoder.backbone._conv_stem.weight"] for s in (start, end)))
