"""A model of the real classes at toy width, for tests of the machinery. Its weights are random: it knows nothing."""

from __future__ import annotations

import dataclasses

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from wsiseg.model.config import LanguageModelConfig, PathChatConfig, paper, tiny
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


def small_config(tie_word_embeddings: bool = False) -> PathChatConfig:
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
            tie_word_embeddings=tie_word_embeddings,
        ),
        pathology=dataclasses.replace(base.pathology, image_size=128),
        image=dataclasses.replace(base.image, embed_dim=32, depth=1, num_heads=2, prompt_dim=32, decoder_mlp_dim=64),
        tile_size=128,
        max_query_tokens=256,  # a byte each
        max_new_tokens=24,
    )


def small_paper_config(tie_word_embeddings: bool = False) -> PathChatConfig:
    """The paper's parts at toy width: a DINOv2 encoder with SwiGLU and SAM's own image encoder."""
    small, large = small_config(tie_word_embeddings), paper()
    return dataclasses.replace(
        small,
        pathology=dataclasses.replace(
            large.pathology,
            image_size=56,
            width=32,
            arguments={"depth": 2, "num_heads": 2, "mlp_width": 64, "swiglu": True, "registers": 4},
        ),
        image=dataclasses.replace(
            large.image,
            image_size=128,
            embed_dim=32,
            depth=2,
            num_heads=2,
            window_size=3,
            global_attn_indexes=(1,),
            prompt_dim=32,
            decoder_mlp_dim=64,
        ),
    )


def small_model(seed: int = 0, stops: float = 1.0) -> PathChatSegR1:
    """`stops` scales the logits of `<SEG>` and the end, so that random weights give answers of all lengths."""
    torch.manual_seed(seed)
    model = build_model(small_config(), byte_tokenizer()).eval()
    with torch.no_grad():
        model.vlm.lm_head.weight.normal_()  # well-spread logits: the arg-max is no matter of rounding
        model.vlm.lm_head.weight[[model.tokenizer.seg, model.tokenizer.end]] *= stops
        model.vlm.model.language_model.embed_tokens.weight.normal_()
        for name, weight in model.vlm.model.named_parameters():  # heavy layers: the next token depends on context
            if name.endswith("proj.weight") or name == "visual.projector.3.weight":
                weight.mul_(9.0)
    return model
