"""The tiny model's own tokenizer: byte-level BPE over the questions and answers that it will read and write."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from wsiseg.model.prompt import SPECIAL_TOKENS, PromptTokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PromptTokenizer:
    """Train on `texts`. Every byte is a token, so that any query in any script can be read."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=3,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PromptTokenizer(tokenizer)
