"""A model of the real classes at toy width, for tests of the machinery. Its weights are random: it knows nothing."""

from __future__ import annotations

import dataclasses

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from wsiseg.model.config import LanguageModelConfig, PathChatConfig, tiny
from wsiseg.model.folder import build_model
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.model.prompt import SPECIAL_TOKENS, PromptTokenizer


def byte_tokenizer() -> PromptTokenizer:
    """One token per byte, plus the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PromptTokenizer(tokenizer)


def small_config() -> PathChatConfig:
    base = tiny()
    return dataclasses.replace(
        base,
        name="small",
        text=LanguageModelConfig(
            vocab_size=300,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            mrope_section=(2, 3, 3),
        ),
        pathology=dataclasses.replace(base.pathology, image_size=128),
        image=dataclasses.replace(base.image, embed_dim=32, depth=1, num_heads=2, prompt_dim=32, decoder_mlp_dim=64),
        tile_size=128,
        max_new_tokens=24,
    )


def small_model(seed: int = 0, boost_stops: float = 0.0) -> PathChatSegR1:
    """`boost_stops` pulls random weights towards `<SEG>` and the end, so that answers of all lengths occur."""
    torch.manual_seed(seed)
    model = build_model(small_config(), byte_tokenizer()).eval()
    with torch.no_grad():
        table = model.vlm.model.language_model.embed_tokens.weight
        table.mul_(30.0)  # spread the logits, so that the arg-max is not a matter of rounding
        table[[model.tokenizer.seg, model.tokenizer.end]] *= 1 + boost_stops
    return model
