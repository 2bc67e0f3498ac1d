"""The segmenting half: MedSAM's image encoder, prompt encoder and mask decoder, batched over images.

Modules come from the `segment-anything` package. Its top-level import pulls in torchvision (which may be
absent, or not load beside a CPU build of torch), while its `modeling` folder needs torch alone and imports
only from itself: it is loaded here under a name of our own.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F

from wsiseg.errors import ModelError
from wsiseg.model.config import ImageEncoderConfig
from wsiseg.model.efficientnet import CHANNELS, EfficientNetLite0


def _load_modeling() -> ModuleType:
    name = "wsiseg._segment_anything_modeling"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("segment_anything")
    if package is None or not package.submodule_search_locations:
        raise ModelError("the package segment-anything is missing; run: pip install segment-anything")
    folder = f"{package.submodule_search_locations[0]}/modeling"
    spec = importlib.util.spec_from_file_location(name, f"{folder}/__init__.py", submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_LARGE = 1024  # cells of an image
STRIDE = 16  # of the coarsest features: the sides of what the image encoder sees are multiples of it

_modeling = _load_modeling()
_get_rel_pos = _modeling.image_encoder.get_rel_pos


class _ConvStem(nn.Module):
    """EfficientNet-Lite0 in the place of SAM's patch embedding; keeps the finer strides for the decoder."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0(last_stride=16)
        self.project = _lateral(CHANNELS[16], embed_dim)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        pyramid = self.backbone(pixels)
        return self.project(pyramid[16]).permute(0, 2, 3, 1), pyramid  # (B, H/16, W/16, C)


class ImageEncoder(nn.Module):
    """Image embedding for the mask decoder, with the finer features where the stem has them.

    With the `patch` stem this is SAM's ImageEncoderViT, state dict included (under `vit.`).
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = _modeling.ImageEncoderViT(
            img_size=config.image_size or 1024,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            out_chans=config.prompt_dim,
            use_abs_pos=config.use_abs_pos,
            use_rel_pos=True,
            window_size=config.window_size,
            global_attn_indexes=config.global_attn_indexes,
            norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
        )
        dim = config.prompt_dim
        if config.stem == "efficientnet":
            self.vit.patch_embed = _ConvStem(config.embed_dim)
            self.lateral16, self.fuse16 = _lateral(CHANNELS[16], dim), _Mix(dim)
            self.lateral8, self.fuse8 = _lateral(CHANNELS[8], dim), _Mix(dim)
            self.skip4 = _lateral(CHANNELS[4], dim // 4)
            self.skip2 = _lateral(CHANNELS[2], dim // 8)
        elif config.stem != "patch":
            raise ModelError(f"image encoder stem must be 'patch' or 'efficientnet', not {config.stem!r}")

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`pixels` (B, 3, H, W), normalised → embedding (B, D, H/stride, W/stride), finer features or []."""
        if self.config.stem == "patch":
            return self.vit(pixels), []
        x, pyramid = self.vit.patch_embed(pixels)
        for block in self.vit.blocks:
            x = block(x)
        coarse = self.vit.neck(x.permute(0, 3, 1, 2)) + self.lateral16(pyramid[16])  # (B, D, H/16, W/16)
        coarse = F.interpolate(self.fuse16(coarse), scale_factor=2.0, mode="bilinear", align_corners=False)
        embedding = self.fuse8(coarse + self.lateral8(pyramid[8]))  # (B, D, H/8, W/8)
        return embedding, [self.skip4(pyramid[4]), self.skip2(pyramid[2])]


class _Attention(_modeling.image_encoder.Attention):  # type: ignore[misc, name-defined]
    """SAM's attention through PyTorch's fused kernels: its relative positions are a bias on the logits.

    q·k/√C + q·R_h[row] + q·R_w[column] (segment_anything, `add_decomposed_rel_pos`); upstream holds three tables
    (heads, N, N) of an image, this one the bias, or on a GPU in 16 bits none.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (B, H, W, C) → the same shape."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, H·W, C/heads) each
        cells = q.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", cells, _get_rel_pos(height, height, self.rel_pos_h))
        columns = torch.einsum("bnhwc,wkc->bnhwk", cells, _get_rel_pos(width, width, self.rel_pos_w))
        if is_flash_better(q):
            seen = _biased_by_channels(q, k, v, rows.flatten(2, 3), columns.flatten(2, 3))
        else:
            bias = (rows[..., :, None] + columns[..., None, :]).reshape(batch, self.num_heads, height * width, -1)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(seen.transpose(1, 2).reshape(batch, height, width, channels))


def is_flash_better(q: torch.Tensor) -> bool:
    """Whether kernels that never hold a table of all pairs of cells are: on CUDA, in 16 bits, where the table is large.

    They take no bias. Of windows of 14 x 14 cells the table is smaller than what stands for it (docs/speed.md).
    """
    return q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[2] > _LARGE


def _biased_by_channels(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """softmax(q·k/√C + rows[row of k] + columns[column of k]) v, without a bias of N × N.

    A key says in H + W further channels where it lies (one in its row's, one in its column's, else 0), and a query has
    there what it adds for each row and column: their product is the bias.

    Args:
        q, k, v: (B, heads, N, C), N = H·W cells. rows (B, heads, N, H), columns (B, heads, N, W).
    """
    channels, height, width = q.shape[-1], rows.shape[-1], columns.shape[-1]
    place = torch.cat(
        [
            torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, 0),
            torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1),
        ],
        dim=1,
    )  # (N, H + W)
    root = channels**0.5
    q = torch.cat([q, root * rows, root * columns], dim=-1)  # (B, heads, N, C + H + W)
    k = torch.cat([k, place.expand(*k.shape[:2], -1, -1)], dim=-1)
    v = F.pad(v, (0, height + width))
    return F.scaled_dot_product_attention(q, k, v, scale=1 / root)[..., :channels]


_modeling.image_encoder.Attention = _Attention  # in our own copy of the module: the package keeps its own


def _lateral(inputs: int, outputs: int) -> nn.Sequential:
    """1 × 1 projection of stem features, normalised first: their linear bottlenecks have a standard deviation of
    about 5, and unnormalised they drown the ten times smaller coarse features that they are added to."""
    return nn.Sequential(_LayerNorm2d(inputs), nn.Conv2d(inputs, outputs, 1))


class _LayerNorm2d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Mix(nn.Sequential):
    """3 × 3 convolution, batch norm, ReLU: features of two strides become one."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels, momentum=0.03), nn.ReLU()
        )


class MaskHead(nn.Module):
    """SAM's prompt encoder and mask decoder for one prompt per image, batched over images.

    Upstream's `MaskDecoder.predict_masks` repeats the image embedding by the number of prompts, so that B
    images with B prompts become B × B; calling its parts directly pairs them one to one (same result as a
    loop over images, see tests). Finer features, where there are any, are added while upscaling, as in
    SAM 2 (arXiv:2408.00714 §4).
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        dim = config.prompt_dim
        side = (config.image_size or 1024) // STRIDE
        self.prompt_encoder = _modeling.PromptEncoder(
            embed_dim=dim, image_embedding_size=(side, side), input_image_size=(STRIDE * side,) * 2, mask_in_chans=16
        )
        self.mask_decoder = _modeling.MaskDecoder(
            transformer_dim=dim,
            transformer=_modeling.TwoWayTransformer(
                depth=2, embedding_dim=dim, num_heads=8, mlp_dim=config.decoder_mlp_dim
            ),
            num_multimask_outputs=config.num_multimask_outputs,
        )
        if config.stem == "efficientnet":
            self.mix4, self.mix2 = _Mix(dim // 4), _Mix(dim // 8)

    def forward(self, embedding: torch.Tensor, finer: list[torch.Tensor], prompts: torch.Tensor) -> torch.Tensor:
        """`embedding` (B, D, h, w), `prompts` (B, n, D) → mask logits (B, 4h, 4w) of mask token 0."""
        decoder = self.mask_decoder
        batch, _, height, width = embedding.shape
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(batch, -1, -1).to(prompts.dtype), prompts], dim=1)
        position = self.prompt_encoder.pe_layer((height, width)).to(embedding.dtype).expand(batch, -1, -1, -1)
        source = embedding + self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        states, source = decoder.transformer(source, position, tokens)
        source = source.transpose(1, 2).reshape(batch, -1, height, width)
        up1, norm, act1, up2, act2 = decoder.output_upscaling
        if finer:
            source = self.mix4(norm(up1(source + embedding) + finer[0]))  # (B, D/4, 2h, 2w)
            source = self.mix2(up2(source) + finer[1])  # (B, D/8, 4h, 4w)
        else:
            source = act2(up2(act1(norm(up1(source)))))
        weights = decoder.output_hypernetworks_mlps[0](states[:, 1])  # (B, D/8)
        return torch.einsum("bc,bchw->bhw", weights, source)
