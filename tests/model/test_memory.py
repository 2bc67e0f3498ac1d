"""The computed table of what fits where: numbers by hand, and the page that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory import table
from wsiseg.model import BUNDLED, model_folder
from wsiseg.model.config import paper, tiny
from wsiseg.model.folder import stored_tensors
from wsiseg.model.memory import memory, parameter_counts


def test_the_papers_model_by_hand() -> None:
    used = memory(paper(), precision="bf16", batch=2)
    # 7.07 B text model, 0.54 B head, 1.13 B ViT-g/14, 0.09 B SAM, 0.04 B projector and adapter; two bytes each
    assert used.weights / 2 / 1e9 == pytest.approx(7.07 + 0.545 + 1.134 + 0.094 + 0.049, abs=0.02)
    token = 28 * 2 * 512 * 2  # layers, k and v, 4 heads of 128, two bytes
    assert used.kv_cache == (2 * (128 + 64 + 512) + 8 * (128 + 64)) * token  # two at work, eight prompts read
    seen = 64 * 3584 * 2 + 64**2 * 256 * 2 + 512**2 * 3  # image tokens, SAM's embedding, pixels
    attention = 64**2 * 2 * (4 * (768 + 2 * 12 * 64) + 5 * 768 + 4 * 12 * 64)
    assert used.activations == 8 * seen + 2 * attention
    assert attention == pytest.approx(0.139e9, rel=0.06)  # measured on an H100: 1.11 GB for eight
    four = memory(paper(), precision="4-bit", batch=2)
    assert used.weights - four.weights == pytest.approx(6.526e9 * (16 - 4.127) / 8, rel=0.01)


def test_counts_of_the_bundled_model_are_those_of_its_file() -> None:
    stored = stored_tensors(model_folder(BUNDLED))
    counts = parameter_counts(stored)
    assert sum(counts.values()) == sum(value.numel() for value in stored.values())
    assert memory(tiny(), precision="bf16", batch=1).weights == 2 * sum(counts.values())


def test_the_page_shows_the_table_as_it_is_computed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    assert "\n".join(table()) in page
