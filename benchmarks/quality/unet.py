"""A closed-set U-Net of a given size: what the same images, parameters and minutes give without language.

Ronneberger, Fischer & Brox 2015 with batch normalisation, bilinear up-sampling and padded convolutions, so
that the output has the input's size; one sigmoid channel per concept, because a data set labels only some.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

LEVELS = 5  # 256 px -> 16 px at the bottom, as in the original


class UNet(nn.Module):
    """(B, 3, H, W) float in [0, 1] -> (B, classes, H, W) logits; H and W are multiples of 16.

    Args:
        width: channels at full resolution; they double with each halving of the resolution.
        classes: number of output channels.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in pairwise([3, *channels]))
        self.up = nn.ModuleList(_convolutions(deep + skip, skip) for skip, deep in pairwise(channels))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images * 2 - 1
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for level in reversed(range(LEVELS - 1)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.up[level](torch.cat([x, skips[level]], dim=1))
        return self.head(x)


def _convolutions(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def width_for(parameters: int, classes: int) -> int:
    """The width whose U-Net comes nearest to a number of parameters."""
    guess = round(math.sqrt(parameters / 7670))  # nearly all are in 3 × 3 kernels: 7670 · width² of them
    with torch.device("meta"):
        sizes = {
            width: count_parameters(UNet(width, classes)) for width in range(max(1, guess - 1), guess + 2)
        }
    return min(sizes, key=lambda width: abs(sizes[width] - parameters))
