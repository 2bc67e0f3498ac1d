"""Prototypes: the log-odds that their docstring promises, on features whose classes are known."""

from __future__ import annotations

import pytest
import torch

from wsiseg.model.prototypes import prototypes


def gaussian_scene(seed: int, sides: tuple[int, ...] = (32, 64)) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features (2, 6, s, s) of two strides, correlated within classes, and the masks (2, 128, 128) behind them."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(2, 128, 128, dtype=torch.bool)
    masks[0, 32:96, :64], masks[1, :, 96:] = True, True
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    shift = torch.tensor([0.5, 0, 0, -0.5, 0, 0])
    features = []
    for side in sides:
        inside = torch.nn.functional.interpolate(masks[:, None].float(), size=side, mode="area")
        noise = torch.randn(2, 6, side, side, generator=generator)
        features.append(torch.einsum("bchw,dc->bdhw", noise + shift[:, None, None] * inside, mixing) + 3)
    return features, masks


def test_the_log_odds_are_those_of_the_two_gaussians() -> None:
    features, masks = gaussian_scene(0, sides=(128,))
    learnt = prototypes(features, masks)
    # Undo the mixing: the true log-odds of N(shift, 1) against N(0, 1) is shift · (x − shift / 2), here with the
    # spread that is learnt from 32,768 cells and shrunk by a tenth.
    other, truth = gaussian_scene(7, sides=(128,))
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    shift = torch.tensor([0.5, 0, 0, -0.5, 0, 0])
    plain = torch.einsum("bchw,dc->bdhw", other[0] - 3, torch.linalg.inv(mixing))
    exact = torch.einsum("bchw,c->bhw", plain - shift[:, None, None] / 2, shift)
    ours = learnt.log_odds(other, (128, 128))
    assert torch.corrcoef(torch.stack([ours.flatten(), exact.flatten()]))[0, 1] > 0.9
    assert ours[truth].mean() > 0 > ours[~truth].mean()


def test_strides_add_up() -> None:
    features, masks = gaussian_scene(0)
    both, (one, two) = prototypes(features, masks), (prototypes([f], masks) for f in features)
    summed = one.log_odds(features[:1], (128, 128)) + two.log_odds(features[1:], (128, 128))
    torch.testing.assert_close(both.log_odds(features, (128, 128)), summed)


def test_an_example_that_shows_no_difference_says_nothing() -> None:
    features = [torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))]
    masks = torch.zeros(1, 32, 32)
    masks[:, ::2] = 1  # has nothing to do with the features
    assert prototypes(features, masks).log_odds(features, (32, 32)).abs().mean() < 0.2


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_must_tell_two_classes_apart(value: float) -> None:
    with pytest.raises(ValueError, match="leave something out"):
        prototypes([torch.zeros(1, 4, 8, 8)], torch.full((1, 8, 8), value))
