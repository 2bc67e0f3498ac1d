"""A closed-set U-Net of a given size: what the same images, start and parameters give without language.

Ronneberger, Fischer & Brox 2015 over the encoder that the model's own image stems have, EfficientNet-Lite0, so
that it can start from the same ImageNet weights. Bilinear up-sampling and padded convolutions: the output has the
input's size. One sigmoid channel per concept, because a data set labels only some.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from wsiseg.model.efficientnet import CHANNELS, EfficientNetLite0
from wsiseg.model.published import IMAGENET_MEAN, IMAGENET_STD

STRIDES = (16, 8, 4, 2, 1)  # of the blocks on the way up


class UNet(nn.Module):
    """(B, 3, H, W) float in [0, 1] -> (B, classes, H, W) logits; H and W are multiples of 32.

    Args:
        width: channels of the last block, at full resolution; they double with each halving of the resolution.
        classes: number of output channels.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = EfficientNetLite0(32)
        channels = [width * stride for stride in (32, *STRIDES)]
        self.bottom = _convolutions(CHANNELS[32], channels[0])
        self.up = nn.ModuleList(
            _convolutions(deep + CHANNELS.get(stride, 0), here)
            for (deep, here), stride in zip(pairwise(channels), STRIDES, strict=True)
        )
        self.head = nn.Conv2d(width, classes, 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.encoder((images - self.mean) / self.std)
        x = self.bottom(features[32])
        for stride, block in zip(STRIDES, self.up, strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, features[stride]], dim=1) if stride in features else x)
        return self.head(x)

    def load_imagenet_weights(self, path: str | Path) -> None:
        """Start the encoder from the file that the model's recipe calls `stem_weights`."""
        self.encoder.load_imagenet_weights(path)


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
    """The width whose U-Net comes nearest to a number of parameters, from 1 to 128."""

    def size(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(UNet(width, classes))

    above = bisect_left(range(128), parameters, lo=1, key=size)
    return min((max(1, above - 1), above), key=lambda width: abs(size(width) - parameters))
