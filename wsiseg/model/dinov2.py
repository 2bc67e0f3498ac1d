"""The DINOv2 vision transformer: one network for every pathology encoder of that family.

Written anew after Oquab et al. 2023 (arXiv:2304.07193), with registers (Darcet et al. 2023, arXiv:2309.16588) and
the SwiGLU variant of the larger sizes. Parameter names are timm's, which most pathology encoders are published
under; `wsiseg.model.parts.pathology` translates those of transformers. Our own class, because the names inside
transformers change between its versions, and a model folder must not.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)  # (B, cells, D)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, D / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    """GELU, or SwiGLU: the first half of `fc1` gates the second."""

    def __init__(self, width: int, mlp_width: int, swiglu: bool) -> None:
        super().__init__()
        self.swiglu = swiglu
        self.fc1 = nn.Linear(width, 2 * mlp_width if swiglu else mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if self.swiglu:
            gate, x = x.chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * x)
        return self.fc2(F.gelu(x))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, mlp_width: int, swiglu: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = _Attention(width, num_heads), _Mlp(width, mlp_width, swiglu)
        self.ls1, self.ls2 = _LayerScale(width), _LayerScale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Dinov2(nn.Module):
    """Features of every patch; the class token and the registers take part and are dropped at the end.

    Args:
        grid: patches along one side; `pos_embed` holds the class token's position and grid² of them.
    """

    def __init__(
        self,
        *,
        width: int,
        patch_size: int,
        grid: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        swiglu: bool = False,
        registers: int = 0,
    ) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid**2, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, num_heads, mlp_width, swiglu) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.cells = grid**2

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`pixels` (B, 3, S, S), normalised, S = grid · patch_size → (B, grid², D) in raster order."""
        batch = len(pixels)
        x = torch.cat([self.cls_token.expand(batch, -1, -1), self.patch_embed(pixels)], dim=1) + self.pos_embed
        if self.reg_token is not None:
            x = torch.cat([x[:, :1], self.reg_token.expand(batch, -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, -self.cells :]
