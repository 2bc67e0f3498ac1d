"""Weights as publishers store them, at toy width: file names, key names and configs of the hub, random values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from wsiseg.model.prompt import SPECIAL_TOKENS
from wsiseg.model.sam import _modeling

ROWS = 300  # of the embedding table, more than the tokenizer's 262 words, as in Qwen2.5-VL


def write_qwen(folder: Path, *, tied: bool) -> None:
    """Qwen2.5-VL as of 2025: flat config.json, `model.` and `visual.` keys, shards with an index, no `<SEG>`."""
    folder.mkdir(parents=True)
    special = [token for token in SPECIAL_TOKENS if token != "<SEG>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    text: dict[str, Any] = {
        "vocab_size": ROWS,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64}
    ids = {name: words.index(f"<|{token}|>") for name, token in _IDS.items()}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    torch.manual_seed(1)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope, "tie_word_embeddings": tied},
            vision_config=vision,
            tie_word_embeddings=tied,
            **ids,
        )
    )
    flat = text | {"model_type": "qwen2_5_vl", "vision_config": vision, "tie_word_embeddings": tied} | ids
    flat |= {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "use_sliding_window": False}
    flat |= {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    (folder / "config.json").write_text(json.dumps(flat))
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: toy-research\n---\n# Toy\n")
    state = {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value.bfloat16()
        for key, value in model.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    keys = sorted(state)
    index = {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    size = sum(value.numel() * value.element_size() for value in state.values())
    whole = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole))


_IDS = {"image_token_id": "image_pad", "vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}


def write_dinov2(folder: Path, *, registers: int = 0, swiglu: bool = False, image_size: int = 224) -> torch.nn.Module:
    """Phikon-v2, Midnight or DINOv2 as transformers saves them; returns transformers' own model."""
    torch.manual_seed(2)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
    sizes |= {"image_size": image_size, "use_swiglu_ffn": swiglu, "layerscale_value": 0.7}
    model: torch.nn.Module
    if registers:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=registers, **sizes))
    else:
        model = Dinov2Model(Dinov2Config(**sizes))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "embeddings." in name and "patch" not in name:
                value.normal_()
    model.save_pretrained(folder)  # type: ignore[operator]
    normalisation = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
    return model.eval()


def timm_state(*, registers: int, positions: int, swiglu: bool = True) -> dict[str, torch.Tensor]:
    """The state dict of a timm ViT of two blocks of 32, patches of 14; `positions` differ between publishers."""
    generator = torch.Generator().manual_seed(3)
    width, inner = 32, 40
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        shapes["reg_token"] = (1, registers, width)
    for i in range(2):
        block: dict[str, tuple[int, ...]] = {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        rows = 2 * inner if swiglu else inner
        for name, size in {
            "norm1": (width,),
            "norm2": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (rows, width),
            "mlp.fc2": (width, inner),
        }.items():
            block |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
        shapes |= {f"blocks.{i}.{name}": size for name, size in block.items()}
    return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def timm_forward(state: dict[str, torch.Tensor], pixels: torch.Tensor, heads: int) -> torch.Tensor:
    """What timm's VisionTransformer computes from such a state dict, written out: patch features (B, cells, D)."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    patches = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    patches = patches.flatten(2).transpose(1, 2)
    prefix = [state[key].expand(len(pixels), -1, -1) for key in ("cls_token", "reg_token") if key in state]
    if state["pos_embed"].shape[1] == patches.shape[1]:  # no_embed_class=True
        x = torch.cat([*prefix, patches + state["pos_embed"]], dim=1)
    else:
        x = torch.cat([*prefix, patches], dim=1) + state["pos_embed"]
    for i in range(2):
        block = f"blocks.{i}"
        batch, length, width = x.shape
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).reshape(batch, length, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1) @ v
        y = linear(f"{block}.attn.proj", attention.transpose(1, 2).reshape(batch, length, width))
        x = x + state[f"{block}.ls1.gamma"] * y
        y = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))
        inner = state[f"{block}.mlp.fc2.weight"].shape[1]
        y = F.silu(y[..., :inner]) * y[..., inner:] if y.shape[-1] == 2 * inner else F.gelu(y)
        x = x + state[f"{block}.ls2.gamma"] * linear(f"{block}.mlp.fc2", y)
    return norm("norm", x)[:, -patches.shape[1] :]


def small_sam() -> Any:
    """segment_anything's own Sam at toy width: 256 px, windows of 4, the last block global."""
    torch.manual_seed(4)
    model = _modeling.Sam(
        image_encoder=_modeling.ImageEncoderViT(
            img_size=256,
            embed_dim=32,
            depth=2,
            num_heads=2,
            out_chans=32,
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=(1,),
            norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6),
        ),
        prompt_encoder=_modeling.PromptEncoder(
            embed_dim=32, image_embedding_size=(16, 16), input_image_size=(256, 256), mask_in_chans=16
        ),
        mask_decoder=_modeling.MaskDecoder(
            transformer_dim=32,
            transformer=_modeling.TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=64),
            num_multimask_outputs=3,
        ),
    )
    with torch.no_grad():
        for name, value in model.image_encoder.named_parameters():
            if "rel_pos" in name or name == "pos_embed":  # zero in a fresh model
                value.normal_(std=0.3)
    return model.eval()
