"""A model is a folder: config.json, model.safetensors, tokenizer.json, README.md. No pickle, strict keys."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch

from wsiseg.errors import ModelError
from wsiseg.model.config import PathChatConfig, load_config, save_config
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.model.prompt import PromptTokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def save_model(model: PathChatSegR1, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the folder; floating-point weights are stored as `dtype`, tied weights once."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for key, value in model.state_dict().items()
        if not (key == "vlm.lm_head.weight" and model.config.text.tie_word_embeddings)
    }
    save_config(model.config, folder / CONFIG)
    model.tokenizer.tokenizer.save(str(folder / TOKENIZER))
    temporary = folder / (WEIGHTS + ".tmp")
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.replace(folder / WEIGHTS)


def load_folder(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PathChatSegR1:
    """Build the model that the folder describes and fill every weight.

    Raises:
        ModelError: a file is missing or broken, or keys or shapes do not match the configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = load_config(folder / CONFIG)
    tokenizer = PromptTokenizer.from_file(folder / TOKENIZER)
    model = build_model(config, tokenizer)
    try:
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise ModelError(f"{folder} holds no {WEIGHTS}") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS} is damaged: {error}") from error
    if config.text.tie_word_embeddings:
        state["vlm.lm_head.weight"] = state.get("vlm.model.language_model.embed_tokens.weight", torch.empty(0))
    _check(model, state, folder)
    model.load_state_dict(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    )
    return model.to(device).eval()


def build_model(config: PathChatConfig, tokenizer: PromptTokenizer) -> PathChatSegR1:
    """A model with fresh weights: the start of training, never a result."""
    if tokenizer.tokenizer.get_vocab_size() > config.text.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokenizer.tokenizer.get_vocab_size()} tokens, "
            f"the model only {config.text.vocab_size} rows"
        )
    return PathChatSegR1(config, tokenizer)


@cache
def folder_fingerprint(folder: Path) -> str:
    """Hex digest of configuration, tokenizer and weights: two models with the same one answer alike."""
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _check(model: PathChatSegR1, state: dict[str, torch.Tensor], folder: Path) -> None:
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    for problem, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong)):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise ModelError(f"{folder / WEIGHTS}, {problem}: {', '.join(keys[:5])}{more}")
