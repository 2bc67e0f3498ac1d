"""Pathology encoders of the DINOv2 family, from the layouts of transformers and timm."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.nn import functional as F

from wsiseg.errors import ModelError
from wsiseg.model.config import PartRecord, PathologyEncoderConfig
from wsiseg.model.parts import Part, field, identity, licence_of, read_json, read_tensors, understood, weight_paths
from wsiseg.model.published import Published

_PREFIX = "vlm.model.visual.encoder."
# transformers as the hub stores it → timm; fused and dropped tensors are handled in `from_transformers`
_RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.(?:fc1|weights_in)\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.mlp\.(?:fc2|weights_out)\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.(\d+)\.norm", r"blocks.\1.norm"),
    (r"^layernorm\.", "norm."),
)


def read_pathology(folder: Path, *, known: Published | None, source: str, licence: str) -> Part:
    """A DINOv2-type encoder from a hub folder, to be used at 224 px.

    Args:
        known: needed for timm's layout, whose files do not say the number of heads and the normalisation, and where
            preprocessor_config.json is missing.

    Raises:
        ModelError: a file is missing or broken, or another architecture.
    """
    paths = weight_paths(folder)
    tensors = read_tensors(paths)
    if known is not None and known.layout == "timm":
        heads, mean, std = known.num_heads, known.mean, known.std
    else:
        with understood(folder / "config.json"):
            heads = _transformers_heads(folder / "config.json")
        preprocessor = folder / "preprocessor_config.json"
        if known is not None and not preprocessor.exists():  # Midnight's code normalises without one
            mean, std = known.mean, known.std
        else:
            raw = read_json(preprocessor)
            with understood(preprocessor):
                mean, std = (_three(field(raw, name, preprocessor)) for name in ("image_mean", "image_std"))
        tensors = from_transformers(tensors)
    config = pathology_config(tensors, heads, mean, std, source)
    if known is not None and known.layout == "timm":
        _check_size(config, known, source)
    elif heads < 1 or config.width % heads:
        raise ModelError(f"{folder / 'config.json'}: {heads} heads do not divide the width of {config.width}")
    tensors = fold_positions(tensors, config.grid)
    record = PartRecord("pathology encoder", source, identity(paths), licence_of(folder, licence))
    return Part(record, config, {_PREFIX + key: value for key, value in tensors.items()})


def from_transformers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of `Dinov2Model` and `Dinov2WithRegistersModel` on the hub → timm's; q, k and v become one tensor.

    The mask token serves pre-training only and is left out.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        if key == "embeddings.mask_token":
            continue
        if match := re.match(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(.*)$", key):
            if match[2] == "query":
                third = [tensors.get(key.replace(".query.", f".{name}.")) for name in ("query", "key", "value")]
                if all(part is not None for part in third):
                    renamed[f"blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat([p for p in third if p is not None])
            continue
        for pattern, ours in _RENAMED:
            key, changed = re.subn(pattern, ours, key)
            if changed:
                break
        renamed[key] = value
    return renamed


def pathology_config(
    tensors: dict[str, torch.Tensor], heads: int, mean: tuple[float, ...], std: tuple[float, ...], source: str
) -> PathologyEncoderConfig:
    """Read the dimensions off the tensors. Raises ModelError: not a DINOv2-type vision transformer."""
    needed = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", "pos_embed")
    if missing := [key for key in needed if key not in tensors]:
        raise ModelError(f"{source} is not a DINOv2-type vision transformer, missing: {', '.join(missing)}")
    patch, fc1, fc2 = (tensors[key] for key in needed[:3])
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    width, patch_size, mlp_width = patch.shape[0], patch.shape[-1], fc2.shape[1]
    return PathologyEncoderConfig(
        kind="dinov2",
        image_size=16 * patch_size if patch_size != 16 else 14 * patch_size,  # 224 px with patches of 14 or 16
        patch_size=patch_size,
        width=width,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        arguments={
            "depth": 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")),
            "num_heads": heads,
            "mlp_width": mlp_width,
            "swiglu": fc1.shape[0] == 2 * mlp_width,
            "registers": registers,
        },
    )


def fold_positions(tensors: dict[str, torch.Tensor], grid: int) -> dict[str, torch.Tensor]:
    """Bring `pos_embed` to 1 + grid² positions: the class token's and one for every patch.

    timm has three ways: class token and patches (UNI), patches alone (`no_embed_class`: H-optimus, UNI2-h), or class
    token, registers and patches (Virchow2). What is added to a constant token is a constant, so a missing position
    is a zero, and a register's goes into the register. Positions of another grid (DINOv2: 518 px) are resampled as
    DINOv2 does: bicubic, with anti-aliasing where there are registers.
    """
    tensors = dict(tensors)
    positions = tensors["pos_embed"]  # (1, n, D)
    count, width = positions.shape[1], positions.shape[2]
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    prefix = next((p for p in (0, 1, 1 + registers) if math.isqrt(count - p) ** 2 == count - p), None)
    if prefix is None:
        raise ModelError(
            f"pathology encoder: {count} positions are no square of patches, with or without a class token"
        )
    head, patches = positions[:, :prefix], positions[:, prefix:]
    if prefix == 0:
        head = positions.new_zeros(1, 1, width)
    if prefix > 1:
        tensors["reg_token"] = tensors["reg_token"] + head[:, 1:]
    side = math.isqrt(count - prefix)
    if side != grid:
        square = patches.float().reshape(1, side, side, width).permute(0, 3, 1, 2)
        square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=registers > 0)
        patches = square.permute(0, 2, 3, 1).reshape(1, grid * grid, width).to(positions.dtype)
    tensors["pos_embed"] = torch.cat([head[:, :1], patches], dim=1)
    return tensors


def _check_size(config: PathologyEncoderConfig, known: Published, source: str) -> None:
    """Heads and normalisation of other weights of the layout would be taken, and only the features be wrong."""
    registers = config.arguments["registers"]
    if (config.width, registers) != (known.width, known.registers):
        raise ModelError(
            f"{source} is not {known.name}: its width is {config.width} and it has {registers} register tokens, not "
            f"{known.width} and {known.registers}; `wsiseg models list` shows the names"
        )


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _transformers_heads(path: Path) -> int:
    raw = read_json(path)
    if raw.get("model_type") not in ("dinov2", "dinov2_with_registers"):
        raise ModelError(
            f"{path} describes a {raw.get('model_type')!r} model; the pathology encoder must be a DINOv2-type one "
            "(model_type dinov2 or dinov2_with_registers), or have a name that `wsiseg models list` shows"
        )
    usual = {"layer_norm_eps": 1e-6, "qkv_bias": True} | ({} if raw.get("use_swiglu_ffn") else {"hidden_act": "gelu"})
    for name, value in usual.items():
        if raw.get(name, value) != value:
            raise ModelError(f"{path}: {name} {raw[name]!r} is not supported, only {value!r}")
    return int(field(raw, "num_attention_heads", path))
