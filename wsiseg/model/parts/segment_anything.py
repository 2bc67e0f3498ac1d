"""MedSAM or SAM from its published checkpoint: image encoder, prompt encoder and mask decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wsiseg.errors import ModelError
from wsiseg.model.config import ImageEncoderConfig, PartRecord
from wsiseg.model.parts import Part, identity, read_pickle
from wsiseg.model.published import IMAGENET_MEAN, IMAGENET_STD

# MedSAM was trained on pixels in [0, 1] as they are, SAM on ImageNet's normalisation. The files do not differ in
# anything else, and a model that is fed the wrong one still draws masks, only worse ones.
_NORMALISATION = {
    "MedSAM": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "SAM": (IMAGENET_MEAN, IMAGENET_STD),
}


def read_sam(path: Path, *, kind: str) -> Part:
    """A SAM checkpoint of any size; the dimensions are read off its tensors.

    Args:
        path: `medsam_vit_b.pth`, `sam_vit_{b,l,h}_*.pth`, or what MedSAM's training writes.
        kind: `MedSAM` or `SAM`: how pixels are normalised.

    Raises:
        ModelError: no such file, not a SAM checkpoint.
    """
    state = unwrapped(read_pickle(path), path)
    config = sam_config(state, kind, path)
    record = PartRecord(kind, path.name, identity([path]), "Apache-2.0")
    return Part(record, config, {our_name(key): value for key, value in state.items()})


def our_name(key: str) -> str:
    """`image_encoder.` lies in `image_encoder.vit.`, the prompt encoder and the mask decoder in `mask_head.`."""
    inside = key.removeprefix("image_encoder.")
    return f"mask_head.{key}" if inside == key else f"image_encoder.vit.{inside}"


def unwrapped(state: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The plain state dict out of the three forms there are: published, saved by MedSAM's training ({'model': …}),
    and that of several GPUs (keys begin with `module.`)."""
    inner = state.get("model", state)
    if not isinstance(inner, dict) or not all(isinstance(value, torch.Tensor) for value in inner.values()):
        raise ModelError(f"{path} holds no SAM state dict")
    return {key.removeprefix("module."): value for key, value in inner.items()}


def sam_config(state: dict[str, torch.Tensor], kind: str, path: Path) -> ImageEncoderConfig:
    """ViT-B, -L, -H or any other size: width, depth, heads, windows and decoder, all from the shapes."""
    try:
        _, side, _, embed_dim = state["image_encoder.pos_embed"].shape
        depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("image_encoder.blocks."))
        rel_pos = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]  # (2·span - 1, d)
        spans = [(len(table) + 1) // 2 for table in rel_pos]
        mean, std = _NORMALISATION[kind]
        return ImageEncoderConfig(
            stem="patch",
            image_size=side * 16,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=embed_dim // rel_pos[0].shape[1],
            window_size=min(spans),
            global_attn_indexes=tuple(i for i, span in enumerate(spans) if span == side),
            use_abs_pos=True,
            prompt_dim=state["image_encoder.neck.0.weight"].shape[0],
            num_multimask_outputs=len(state["mask_decoder.mask_tokens.weight"]) - 1,
            decoder_mlp_dim=len(state["mask_decoder.transformer.layers.0.mlp.lin1.weight"]),
            mean=mean,
            std=std,
        )
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} is not a SAM checkpoint: it lacks {error}") from error
