"""Pre-training: pairs are read strictly, the language side learns, the segmenting side stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsiseg.errors import DataError
from wsiseg.model.folder import load_folder
from wsiseg.training.captions import Caption, CaptionStream, read_captions
from wsiseg.training.pretrain import PretrainRecipe, train
from wsiseg.training.run import read_figures

RECIPE = PretrainRecipe(
    steps=4,
    batch_images=3,
    queries_per_image=2,
    learning_rate=3e-3,
    warmup_steps=1,
    precision="fp32",
    workers=0,
    validate_every=4,
    validation_images=3,
    checkpoint_every=4,
)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Forty plain pictures that say their colour."""
    lines = []
    for i in range(40):
        name, colour = [("pink", (230, 160, 190)), ("purple", (90, 40, 120))][i % 2]
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{i}.png")
        # With the ends of lines and paragraphs that copied captions hold.
        text = f"All \u2028of it\nis\x85{name}."
        lines.append(json.dumps({"image": f"{i}.png", "text": text}, ensure_ascii=False))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")  # as programs on Windows write it
    return path


def test_a_picture_is_seen_whole_and_some_are_kept_back(pairs: Path) -> None:
    captions = read_captions(pairs)
    assert {c.split for c in captions} == {"train", "val"}
    example = CaptionStream(captions, "train", 120, seed=0, length=9)[3]
    assert example.image.shape == (120, 120, 3)
    assert (example.image[:20] == 255).all()  # 60 × 40 becomes 120 × 80, with white above and below
    assert not (example.image[25:95] == 255).all(-1).any()
    (question,) = example.questions
    assert question.answer in ("All of it is pink.", "All of it is purple.")
    assert question.mask is None


def test_wrong_pairs_are_named_by_line(pairs: Path) -> None:
    with open(pairs, "a") as file:
        file.write('\n{"image": "gone.png", "text": "x"}\n{"image": "0.png"}\n{"image": "0.png", "text": " "}\n')
    with pytest.raises(DataError, match=r"line 41: there is no image .*gone.png; line 42 is no .*; line 43: the text"):
        read_captions(pairs)


@pytest.mark.parametrize(("text", "cut"), [("ab " * 1000, "ab " * 665 + "ab"), ("腺" * 2500, "腺" * 2000)])
def test_a_long_text_is_cut_at_a_word_or_where_it_has_none_anywhere(pairs: Path, text: str, cut: str) -> None:
    caption = Caption(pairs.with_name("0.png"), text)
    (question,) = CaptionStream([caption], caption.split, 60, seed=0, length=1)[0].questions
    assert question.answer == cut


@pytest.mark.parametrize("pair", [{"text": None}, {"text": ["a", "b"]}, {"text": 3}, {"image": None}, {"image": [1]}])
def test_what_is_no_text_is_no_caption(pairs: Path, pair: dict[str, object]) -> None:
    with open(pairs, "a") as file:
        file.write("\n" + json.dumps({"image": "0.png", "text": "x", **pair}))
    with pytest.raises(DataError, match="line 41 is no "):
        read_captions(pairs)


def test_language_learns_and_the_segmenting_half_stays(pairs: Path, store: Path, start: Path, tmp_path: Path) -> None:
    before = load_folder(start).state_dict()
    for data in (pairs, store):
        out = tmp_path / "runs" / data.stem
        after = load_folder(train(PretrainRecipe(**{**vars(RECIPE), "data": str(data), "model": str(start)}), out))
        losses = [line["loss"] for line in read_figures(out, "train")]
        assert losses[-1] < losses[0]
        assert [line["step"] for line in read_figures(out, "validation")] == [0, 4]
        for name, value in after.state_dict().items():
            if name.startswith(("image_encoder", "mask_head", "seg_adapter")):
                assert torch.equal(value, before[name]), name
        assert not torch.equal(
            after.vlm.model.language_model.layers[0].mlp.up_proj.weight,
            before["vlm.model.language_model.layers.0.mlp.up_proj.weight"],
        )
    assert np.isfinite(losses).all()
