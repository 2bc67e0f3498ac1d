"""The scripts that price cheaper decisions: what they print is what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import torch

from benchmarks.quality.first_pass import compare, from_afar, quarters
from benchmarks.quality.shared_state import compare as compare_shared
from benchmarks.quality.shared_state import log_likelihood
from benchmarks.quality.structure import view
from benchmarks.quality.touching import Tally, tally
from benchmarks.quality.typed import ask as ask_typed
from benchmarks.quality.typed import page
from benchmarks.quality.wordings import ask
from tests.model.small import small_model
from wsiseg.inference import IMAGE_TOKENS, TileMask
from wsiseg.inference.decode import decode, encode_prefix
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.testing import FakeModel
from wsiseg.training.data.concepts import concept_of
from wsiseg.training.data.queries import FRAMES
from wsiseg.training.data.store import Sample
from wsiseg.training.rl.policy import read_answers, read_prompt


class _Dark(FakeModel):
    """Draws what is black, and from afar misses what is small."""

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        dark = tiles.max(-1) < 100
        least = 40 if mpp > 0.5 else 0
        return [TileMask(d.astype(np.float32) if d.sum() > least else None, "", 0.5) for d in dark]


@pytest.mark.parametrize(("height", "width"), [(30, 41), (120, 90), (30, 90)])
def test_the_truth_of_a_tile_lies_where_its_pixels_do(height: int, width: int) -> None:
    rows, columns = np.ogrid[:height, :width]
    there = (rows - height // 2 - 4) ** 2 + (columns - width // 2) ** 2 < 11**2
    image = np.where(there[..., None], 0, 255).astype(np.uint8).repeat(3, 2)
    sample = Sample(image, {"gland": there.astype(np.uint16)}, ("gland",), (), 0.5, "disks", "g", "val", "image")
    for mpp in (0.5, 0.7):
        tile, truth = view(sample, "gland", mpp, 64)
        assert np.mean((tile[..., 0] < 128) != truth) < (0.02 if mpp != 0.5 else 1e-9)
        assert truth.shape == (64, 64)
        assert truth[30, 32]


def test_a_field_from_afar_shows_its_quarters_where_they_lie() -> None:
    fields = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    mean = fields.reshape(2, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(from_afar(quarters(fields)), mean, atol=0.5)


def test_quarters_lie_in_reading_order() -> None:
    field = np.arange(16).reshape(1, 4, 4)
    assert [q.tolist() for q in quarters(field)] == [
        [[0, 1], [4, 5]], [[2, 3], [6, 7]], [[8, 9], [12, 13]], [[10, 11], [14, 15]],
    ]  # fmt: skip


def test_a_first_pass_loses_what_only_the_fine_look_sees() -> None:
    truth = np.zeros((2, 64, 64), bool)
    truth[0, 4:24, 4:24] = True  # seen from afar: 100 of its pixels are left there
    truth[1, 40:46, 40:46] = True  # not: 9
    fine = np.where(truth[..., None], 30, 220).astype(np.uint8).repeat(3, -1)
    printed = compare(_Dark(tile_size=32, overlap=8), quarters(fine), quarters(truth), "dark", 0.5).splitlines()
    assert printed[0] == "8 tiles, 2 with it; Dice 1.000, area drawn in vain 0.0000"
    assert "asks 0.12 of the tiles" in printed[1]
    assert "keeps 0.500 of those with an outline; Dice 0.500" in printed[1]


def test_a_first_pass_of_a_silent_model_asks_nothing() -> None:
    light = np.full((8, 32, 32, 3), 220, np.uint8)
    printed = compare(_Dark(tile_size=32, overlap=8), light, np.ones((8, 32, 32), bool), "dark", 0.5)
    assert "asks 0.00 of the tiles" in printed


class _Hard(_Dark):
    """Answers only a plain request for glands."""

    def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
        if "glands" in query and "where" not in query:
            return super().segment_tiles(tiles, query, mpp)
        return [TileMask(None, "", 0.5) for _ in tiles]


def test_a_wording_counts_as_understood_where_the_structure_is_drawn() -> None:
    truth = np.zeros((2, 32, 32), bool)
    truth[:, 4:24, 4:24] = True
    tiles = np.where(truth[..., None], 30, 220).astype(np.uint8).repeat(3, -1)
    tiles[1] = 220  # where the model sees nothing
    glands = concept_of("gland").names[:1]
    *lines, means = ask(_Hard(tile_size=32, overlap=8), tiles, truth, glands, 0.2).splitlines()
    shares = {line.partition("  ")[2]: float(line.partition("  ")[0]) for line in lines}
    assert list(shares) == list(FRAMES["val"])
    assert all(share == (0.0 if "where" in frame.replace("{where}", "") else 0.5) for frame, share in shares.items())
    assert means.endswith(f"found {np.mean(list(shares.values())):.3f}, silent to nonsense 1.000")


def test_a_typed_request_is_asked_where_the_plain_one_is_answered_and_at_its_own_scale() -> None:
    truth = np.zeros((3, 32, 32), bool)
    truth[:, 4:24, 4:24] = True
    tiles = np.where(truth[..., None], 30, 220).astype(np.uint8).repeat(3, -1)
    tiles[1] = 220  # where the model sees nothing
    scales = []

    def views(mpp: float) -> tuple[np.ndarray, np.ndarray]:
        scales.append(mpp)
        return tiles, truth

    model = _Hard(tile_size=32, overlap=8, mpp=0.4)
    present, absent = ["all glands", "where are they?"], ["cats", "the glands of cats"]
    answered = list(ask_typed(model, views, "gland", present, absent, 4))
    assert [(a.structure, a.share) for a in answered] == [("gland", 1), ("gland", 0), ("absent", 1), ("absent", 0)]
    assert set(scales) == {0.4}
    assert page(answered).splitlines()[2:] == [
        "| gland | 2 | 0.500 |", "| all of these | 2 | 0.500 |", "| what is not there | 2 | 0.500 |",
    ]  # fmt: skip


def test_the_chance_of_a_chain_is_that_of_its_tokens_one_by_one() -> None:
    model = small_model(seed=1, stops=1.5)
    segmenter = PathChatSegmenter(model, name="small", fingerprint="one")
    tiles = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3), dtype=np.uint8)
    (tokens,) = segmenter._encode(IMAGE_TOKENS, tiles)
    prompt = model.prompt("glands", 0.5)
    chain = decode(model, tokens, encode_prefix(model, prompt))[0].ids
    with torch.inference_mode():
        at_once = log_likelihood(segmenter, tokens, prompt, chain)
        for tile, expected in zip(tokens, at_once, strict=True):
            states = read_answers(model, read_prompt(model, prompt, tile), torch.tensor([chain]))[0, :-1]
            chances = model.vlm.lm_head(states).float().log_softmax(-1)
            np.testing.assert_allclose(chances[range(len(chain)), chain].sum(), expected, rtol=1e-4, atol=1e-3)


def test_all_tiles_are_counted_where_one_speaks_for_others() -> None:
    segmenter = PathChatSegmenter(small_model(seed=3, stops=2.0), name="small", fingerprint="one")
    tiles = np.random.default_rng(0).integers(0, 255, (6, 128, 128, 3), dtype=np.uint8)
    alone = segmenter.segment_tiles(tiles, "glands", 0.5)
    truth = np.zeros((6, 128, 128), bool)
    for k in (1, 4):
        drawn = alone[k].probability
        assert drawn is not None, "choose another seed: this model is silent"
        truth[k] = drawn > 0.5
    lines = compare_shared(segmenter, tiles, truth, "glands", 0.5).splitlines()
    assert lines[0] == "2 tiles with it (2 found), 4 without"
    assert lines[1].startswith("own chain: Dice 1.000, ")  # the truth is what the model itself drew
    assert [line.partition(" speaks")[0] for line in lines[2:]] == ["tile 1", "tile 4"]


def test_cells_that_are_drawn_as_one_are_no_hits() -> None:
    truth = np.zeros((20, 40), np.uint16)
    truth[5:15, 5:15], truth[5:15, 15:25], truth[2:4, 30:35] = 1, 2, 4  # two that touch, and one that is overlooked
    cells = [shapely.box(5, 5, 15, 15), shapely.box(15, 5, 25, 15)]
    in_vain = shapely.box(35, 10, 45, 14)  # reaches beyond the image
    assert tally([*cells, in_vain], truth) == Tally(3, 3, 2, 200, 200 + 10 + 20)
    assert tally([shapely.union_all(cells)], truth) == Tally(1, 3, 0, 2 * 100, 2 * 200 + 10)  # AJI counts it for both
