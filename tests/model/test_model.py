"""PathChat-SegR1: positions, sizes, and a folder that gives back the very model that was saved."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.small import byte_tokenizer, small_config, small_model
from wsiseg.errors import ModelError, OutputError, QueryError
from wsiseg.inference import MASK_FEATURES
from wsiseg.inference.decode import Completion
from wsiseg.inference.devices import in_turn
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.room import Room
from wsiseg.inference.shots import Shot
from wsiseg.model import load_model
from wsiseg.model.build import write_shards
from wsiseg.model.config import load_config, paper, save_config, tiny
from wsiseg.model.efficientnet import EfficientNetLite0
from wsiseg.model.folder import build_model, folder_fingerprint, load_folder, save_model
from wsiseg.model.pathchat import interleaved_positions
from wsiseg.model.prompt import PromptTokenizer


def test_positions_equal_transformers_rope_index() -> None:
    model = small_model()
    pad = model.tokenizer.image_pad
    n = model.config.image_token_count
    for before, after in ((1, 1), (9, 4), (30, 17)):
        ids = torch.tensor([[20] * before + [pad] * n + [21] * after])
        grid = torch.tensor([[1, model.config.pathology.grid, model.config.pathology.grid]])
        theirs, _ = model.vlm.model.get_rope_index(ids, (ids == pad).int(), image_grid_thw=grid)
        assert torch.equal(model.positions(before, after), theirs[:, 0])


@pytest.mark.parametrize("texts", [(5, 8, 3), (1, 1, 1, 1), (30, 2, 17)])
def test_positions_of_several_images_equal_transformers_rope_index(texts: tuple[int, ...]) -> None:
    model = small_model()
    pad, images = model.tokenizer.image_pad, len(texts) - 1
    pads = [pad] * model.config.image_token_count
    ids = torch.tensor([[token for length in texts for token in [*[20] * length, *pads]][: -len(pads)]])
    grid = torch.tensor([[1, model.config.pathology.grid, model.config.pathology.grid]] * images)
    theirs, _ = model.vlm.model.get_rope_index(ids, (ids == pad).int(), image_grid_thw=grid)
    assert torch.equal(model.positions(*texts), theirs[:, 0])


def test_positions_by_hand() -> None:
    # Two words, a 2 × 2 image at counter 2, two words: the text goes on at 2 + 2.
    assert interleaved_positions((2, 2), 2).tolist() == [
        [0, 1, 2, 2, 2, 2, 4, 5],
        [0, 1, 2, 2, 3, 3, 4, 5],
        [0, 1, 2, 3, 2, 3, 4, 5],
    ]


def test_image_tokens_are_in_raster_order_of_merged_cells() -> None:
    # A change in the top-left eighth of the picture moves the first token most, bottom-right the last.
    model = small_model()
    base = torch.full((1, 3, 128, 128), 0.5)
    with torch.inference_mode():
        reference = model.image_tokens(base)
        for corner, token in (((0, 0), 0), ((0, 112), 3), ((112, 0), 12), ((112, 112), 15)):
            changed = base.clone()
            changed[:, :, corner[0] : corner[0] + 16, corner[1] : corner[1] + 16] = 1.0
            moved = (model.image_tokens(changed) - reference).norm(dim=-1)[0]
            assert moved.argmax() == token


def test_paper_preset_has_the_published_size() -> None:
    with torch.device("meta"):
        model = build_model(paper(), byte_tokenizer())
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    language = sum(p.numel() for p in model.vlm.model.language_model.parameters())
    assert round(language / 1e9, 2) == 7.07  # Qwen2.5-VL-7B's text model
    assert model.vlm.lm_head.weight.numel() == 152064 * 3584
    assert round(count["image_encoder"] / 1e6, 2) == 89.67  # MedSAM ViT-B
    assert sum(p.numel() for p in model.mask_head.mask_decoder.parameters()) == 4_058_340


def test_a_model_that_was_saved_or_sent_to_another_process_is_the_same(tmp_path: Path) -> None:
    model = small_model(seed=3)
    save_model(model, tmp_path / "m")
    (tmp_path / "m" / "._model.safetensors").write_bytes(b"what macOS writes beside a file on a foreign disk")
    again = load_folder(tmp_path / "m")
    tiles = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)
    segmenter = PathChatSegmenter(model, name="a", fingerprint="a", caution="trust no gland")
    sent = pickle.loads(pickle.dumps(segmenter))
    assert (sent.name, sent.fingerprint, sent.caution_for("glands")) == ("a", "a", "trust no gland")
    one, *others = (
        [answer.reasoning for answer in each.segment_tiles(tiles, "glands", 1.0)]
        for each in (segmenter, PathChatSegmenter(again, name="a", fingerprint="a"), sent)
    )
    assert others == [one, one]


@pytest.mark.parametrize("files", [0, 1])
def test_a_checkpoint_for_which_the_disk_has_no_room_leaves_the_last_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    save_model(small_model(seed=3), tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    (tmp_path / "m" / ".tmpK1lled").touch()  # where a process was killed in safetensors
    left, sync = [0] * files, os.fsync

    def full(handle: int) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        sync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            save_model(small_model(seed=3), tmp_path / "m")
    load_folder(tmp_path / "m")
    save_model(small_model(seed=3), tmp_path / "m")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_weights_may_be_read_by_whom_a_new_file_may(tmp_path: Path, umask: int) -> None:
    """Trap: what safetensors writes only its owner may read, and a model on a shared disk is for all."""
    before = os.umask(umask)
    try:
        save_model(small_model(), tmp_path)
        write_shards({"a": torch.zeros(1)}, tmp_path, "part")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_a_folder_that_was_written_anew_has_another_fingerprint(tmp_path: Path) -> None:
    # Else what the old weights saw would be served to the new ones, which a running notebook may load.
    save_model(small_model(seed=3), tmp_path / "m")
    before = folder_fingerprint(tmp_path / "m")
    assert folder_fingerprint(tmp_path / "m") == before
    save_model(small_model(seed=4), tmp_path / "m")
    assert folder_fingerprint(tmp_path / "m") != before


@pytest.mark.parametrize("size", [100, 120, 200])
def test_tiles_of_any_size_get_a_mask(size: int) -> None:
    # As `wsiseg tile --tile-size` makes them: the strides of the encoder must not have to divide it.
    model = small_model()
    with torch.inference_mode():
        masks = model.masks(torch.rand(1, 3, size, size + 1), torch.randn(1, model.config.text.hidden_size))
    assert masks.shape == (1, size, size + 1)


def test_a_model_in_half_precision_answers_too(tmp_path: Path) -> None:
    save_model(small_model(seed=3), tmp_path / "m")
    half = load_folder(tmp_path / "m", dtype=torch.bfloat16)
    tiles = np.random.default_rng(0).integers(0, 255, (2, 128, 128, 3), dtype=np.uint8)
    answers = PathChatSegmenter(half, name="a", fingerprint="a").segment_tiles(tiles, "glands", 1.0)
    assert all(answer.reasoning and 0 <= answer.seg_probability <= 1 for answer in answers)


def test_tied_embeddings_stay_tied_and_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(small_config(tie_word_embeddings=True), byte_tokenizer())
    save_model(model, tmp_path)
    again = load_folder(tmp_path)
    table = again.vlm.model.language_model.embed_tokens.weight
    assert again.vlm.lm_head.weight.data_ptr() == table.data_ptr()
    assert torch.equal(table, model.vlm.lm_head.weight)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no model at"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text('{"nme": "x"}'), "unknown field nme"),
        (lambda folder: (folder / "config.json").write_text('{"tile_size": "big"}'), "tile_size must be int"),
        (lambda folder: _change_config(folder, image={"mean": ["high", 0, 0]}), "image.mean must be float, not 'high'"),
        (
            lambda folder: _change_config(folder, pathology={"kind": "dinov2"}),
            "pathology.arguments .* missing .*'depth'",
        ),
        (
            lambda folder: _change_config(folder, pathology={"kind": "dinov2", "arguments": {"dept": 1}}),
            "pathology.arguments .* unexpected .*'dept'",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot read the tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 64), "is damaged"),
        (lambda folder: _truncate(folder / "model.safetensors"), "is damaged"),
        (lambda folder: _replace_by_folder(folder / "model.safetensors"), "cannot be read: Is a directory"),
        (lambda folder: _change_config(folder, seg_tokens=2), "wrong shape"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    save_model(small_model(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("page.pth", "is not loaded: it is damaged, or no checkpoint"),
        ("no.pth", "no checkpoint at"),
        ("other.pth", "other.pth is not EfficientNet-Lite0, missing: _blocks"),
    ],
)
def test_stem_weights_that_are_none_are_refused(tmp_path: Path, name: str, message: str) -> None:
    # Trap: the words of torch's loader, which advise to run whatever the file holds.
    (tmp_path / "page.pth").write_bytes(b"<html>")
    torch.save({"conv_stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=message):
        EfficientNetLite0().load_imagenet_weights(tmp_path / name)


def test_configs_survive_the_file(tmp_path: Path) -> None:
    for config in (tiny(), paper(), small_config()):
        save_config(config, tmp_path / "config.json")
        assert load_config(tmp_path / "config.json") == config


def test_special_tokens_in_a_query_stay_plain_text() -> None:
    tokenizer: PromptTokenizer = byte_tokenizer()
    prompt = tokenizer.prompt("glands <SEG><|im_end|><|image_pad|>", None)
    assert prompt.before.count(tokenizer.seg) == 0
    assert prompt.before.count(tokenizer.end) == 0
    assert prompt.before.count(tokenizer.image_pad) == 0


@pytest.mark.parametrize(
    ("where", "full"),
    [
        ("_encode", torch.OutOfMemoryError("injected")),
        ("_encode", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        ("_complete", RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB).")),
    ],
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, where: str, full: RuntimeError
) -> None:
    segmenter = PathChatSegmenter(small_model(seed=1), name="a", fingerprint="a")
    tiles = np.random.default_rng(0).integers(0, 255, (7, 128, 128, 3), dtype=np.uint8)
    expected = [answer.reasoning for answer in segmenter.segment_tiles(tiles, "glands", 1.0)]
    sizes: dict[str, list[int]] = {"_encode": [], "_complete": []}

    def on_a_small_device(step: str) -> Any:
        whole = getattr(segmenter, step)

        def limited(*arguments: Any) -> Any:
            part, count = (arguments[0], len(arguments[1])) if step == "_encode" else (None, len(arguments[0]))
            if part != MASK_FEATURES:
                sizes[step].append(count)
            if step == where and count > 2:
                raise full
            return whole(*arguments)

        return limited

    for step in sizes:
        monkeypatch.setattr(segmenter, step, on_a_small_device(step))
    told: list[list[str]] = []
    monkeypatch.setattr(segmenter, "_tell", told.append)
    assert [answer.reasoning for answer in segmenter.segment_tiles(tiles, "glands", 1.0)] == expected
    assert told[-2] == expected  # what is told of a part of the batch stands at its place
    assert sizes[where] == [7, 3, 1, 1, 1, 1, 1, 1, 1]  # what fits is remembered
    if where == "_complete":  # what was seen of the tiles before is not looked at again
        assert sizes["_encode"] == [7]


def test_out_of_memory_beside_another_batch_takes_one_at_a_time_before_it_halves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = PathChatSegmenter(small_model(seed=1), name="a", fingerprint="a")
    batches = np.random.default_rng(0).integers(0, 255, (5, 4, 128, 128, 3), dtype=np.uint8)
    expected = [answer.reasoning for tiles in batches for answer in segmenter.segment_tiles(tiles, "glands", 1.0)]
    whole, both, at_work, sizes = segmenter._complete, threading.Barrier(2), [0], list[int]()

    def limited(tokens: torch.Tensor, *rest: Any) -> Any:
        at_work[0] += 1
        try:
            sizes.append(len(tokens))
            if len(sizes) <= 2:
                both.wait(10)  # the first two are in memory together
            if at_work[0] > 1 or len(tokens) > 2:
                raise torch.OutOfMemoryError("injected")
            return whole(tokens, *rest)
        finally:
            at_work[0] -= 1

    monkeypatch.setattr(segmenter, "_complete", limited)
    found = in_turn(lambda copy, tiles: copy.segment_tiles(tiles, "glands", 1.0), [segmenter] * 2, batches)
    assert [answer.reasoning for answers in found for answer in answers] == expected
    assert sizes == [4, 4, 4, *[2] * 10]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with several batches at once; going on with one",
        "out of memory with 4 tiles at once; going on with 2",
    ]


def test_room_is_never_more_again() -> None:
    room = Room()
    with room.taken() as first:
        pass
    with room.taken() as second:
        pass
    assert "going on with 4" in room.less(first, 8)
    assert "going on with 2" in room.less(first, 4)
    assert "going on with 2" in room.less(second, 8)  # it had begun before
    assert room.fitting(64) == 2


def test_examples_are_tried_before_a_batch_takes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: what is asked about them takes room of its own, and waits for ever where there is room for one batch.
    taken: list[int] = []

    def tried(segmenter: PathChatSegmenter, query: str, mpp: float) -> float:
        taken.append(len(segmenter._room._running))
        return 0.5

    monkeypatch.setattr(PathChatSegmenter, "_try_on_shots", tried)
    model = small_model()
    model.config = dataclasses.replace(model.config, shot_weight=1.0)
    shot = Shot(np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=bool), 0.5)
    shown = PathChatSegmenter(model, name="a", fingerprint="a").with_shots([shot])
    shown.segment_tiles(np.zeros((2, 128, 128, 3), np.uint8), "glands", 0.5)
    assert taken == [0]


def test_a_device_without_room_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    segmenter = PathChatSegmenter(small_model(), name="a", fingerprint="a")
    monkeypatch.setattr(segmenter, "_encode", full)
    with pytest.raises(ModelError, match=r"cpu has no room for one tile beside the model: .*--weights 8bit"):
        segmenter.segment_tiles(np.zeros((2, 128, 128, 3), np.uint8), "glands", 1.0)
    monkeypatch.setattr("wsiseg.model.folder.load_folder", full)
    with pytest.raises(ModelError, match=r"cpu has no room for the model in .*tiny"):
        load_model(device="cpu")


def test_a_mask_of_nan_is_an_error_and_not_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    with torch.no_grad():
        next(model.mask_head.mask_decoder.parameters()).view(-1)[0] = torch.nan
    segmenter = PathChatSegmenter(model, name="a", fingerprint="a")
    emitted = Completion([model.tokenizer.seg], torch.zeros(model.config.text.hidden_size), 1.0, [])
    monkeypatch.setattr(segmenter, "_complete", lambda tokens, *_: [emitted] * len(tokens))
    with pytest.raises(ModelError, match="the model small computes NaN in the place of masks"):
        segmenter.segment_tiles(np.zeros((2, 128, 128, 3), np.uint8), "glands", 1.0)


def test_a_query_that_is_longer_than_the_model_was_taught_is_refused() -> None:
    # Trap: a small model does not fail on it, it writes nonsense and outlines empty tiles.
    model, tiles = small_model(), np.zeros((1, 128, 128, 3), np.uint8)
    model.config = dataclasses.replace(model.config, max_query_tokens=60)
    segmenter = PathChatSegmenter(model, name="a", fingerprint="a")
    assert len(model.prompt(2 * "glands ", 1.0).before) <= 60 < len(model.prompt(10 * "glands ", 1.0).before) < 120
    assert segmenter.segment_tiles(tiles, 2 * "glands ", 1.0)
    with pytest.raises(QueryError, match="shorten it to 59 % or less"):
        segmenter.segment_tiles(tiles, 10 * "glands ", 1.0)
    assert len(model.prompt((10 * "glands ")[: 70 * 59 // 100], 1.0).before) <= 60


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _change_config(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))
