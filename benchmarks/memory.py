"""What fits on which card, computed: `python -m benchmarks.memory` prints the table of docs/models.md."""

from __future__ import annotations

import dataclasses

from wsiseg.model.config import PathChatConfig, paper
from wsiseg.model.memory import WEIGHT_BITS, Memory, memory

CARDS_GB = (8, 12, 16, 24, 32, 48, 80)
BATCHES = (1, 16, 64)


def sizes() -> dict[str, PathChatConfig]:
    """The paper's model with Qwen2.5-VL-7B and -3B, each with H-optimus-0 and MedSAM ViT-B."""
    large = paper()
    small = dataclasses.replace(
        large.text,
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return {"7B": large, "3B": dataclasses.replace(large, text=small)}


def smallest_card(used: Memory) -> str:
    """The smallest card that holds it with a twentieth to spare."""
    return next((f"{card} GB" for card in CARDS_GB if used.total <= 0.95 * card * 1024**3), "none")


def table() -> list[str]:
    """The table's lines, in Markdown."""
    lines = [
        "| Qwen2.5-VL | its layers in | tiles at once | weights | KV cache | activations | total | smallest card |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, config in sizes().items():
        for precision in WEIGHT_BITS:
            for batch in BATCHES:
                used = memory(config, precision=precision, batch=batch)
                gb = [f"{v / 1e9:.1f} GB" for v in (used.weights, used.kv_cache, used.activations, used.total)]
                lines.append(f"| {name} | {precision} | {batch} | {' | '.join(gb)} | {smallest_card(used)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
