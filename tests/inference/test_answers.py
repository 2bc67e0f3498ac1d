"""A second query on a store reads no pixel and encodes no image, and answers as if it had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.model.small import small_model
from wsiseg.errors import ModelError, StoreError, WsisegError
from wsiseg.inference import MASK_FEATURES, TileMask
from wsiseg.inference.answers import _sound, _together, answers
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.features import TileFeatures
from wsiseg.inference.journal import Journal
from wsiseg.model import load_model
from wsiseg.model.pathchat import tiles_to_tensor
from wsiseg.slide import open_slide
from wsiseg.testing import FakeModel, synthetic_slide
from wsiseg.tiles import GridSpec, SlideTiles, TileSource, TileStore, plan_grid, write_store
from wsiseg.tiles.stream import Batches

QUERIES = ["glands", "nuclei"]


class Counting(PathChatSegmenter):
    """Counts the tiles that it encodes, part by part."""

    def __init__(self, fingerprint: str = "one") -> None:
        super().__init__(small_model(seed=4, stops=1.5), name="small", fingerprint=fingerprint)
        self.encoded: dict[str, int] = {}

    def _encode(self, part: str, tiles: np.ndarray):  # type: ignore[no-untyped-def]
        self.encoded[part] = self.encoded.get(part, 0) + len(tiles)
        return super()._encode(part, tiles)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.tif"
    synthetic_slide(path, {}, l0_width=700, l0_height=420)
    return path


@pytest.fixture
def store(slide_file: Path, tmp_path: Path) -> TileStore:
    with open_slide(slide_file) as slide:
        return write_store(slide, plan_grid(slide, GridSpec(0.5, 128, 32)), tmp_path / "slide.zarr")


def ask(source: TileSource, queries: Sequence[str], model: PathChatSegmenter) -> dict[str, list[TileMask]]:
    said: dict[str, list[TileMask]] = {q: [] for q in queries}
    tiles = []
    for indices, masks in answers(source, queries, model, batch_size=5):
        tiles += indices.tolist()
        for q in queries:
            said[q] += masks[q]
    assert tiles == list(range(len(source.grid)))
    return said


def assert_same(found: Sequence[TileMask], expected: Sequence[TileMask], atol: float = 0.0) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.reasoning == b.reasoning
        assert a.seg_probability == pytest.approx(b.seg_probability, abs=atol)
        assert (a.probability is None) == (b.probability is None)
        if a.probability is not None:
            np.testing.assert_allclose(a.probability, b.probability, rtol=0, atol=atol)


def test_slide_first_and_second_query_answer_bit_for_bit_the_same(slide_file: Path, store: TileStore) -> None:
    with open_slide(slide_file) as slide:
        from_slide = ask(SlideTiles(slide, store.grid), QUERIES, Counting())
    first, second = Counting(), Counting()
    from_store = ask(store, QUERIES, first)
    masks = sum(any(from_store[q][i].probability is not None for q in QUERIES) for i in range(len(store.grid)))
    assert masks > 0
    # Both queries of a run share what was seen of a tile.
    assert first.encoded == {"image_tokens": len(store.grid), MASK_FEATURES: masks}
    shutil.rmtree(store.path / "pixels")
    from_kept = ask(store, QUERIES, second)
    assert second.encoded == {}
    for q in QUERIES:
        assert_same(from_store[q], from_slide[q])
        assert_same(from_kept[q], from_store[q])


def test_a_new_query_encodes_only_masks_that_no_earlier_one_asked_for(store: TileStore) -> None:
    first, second = Counting(), Counting()
    nuclei = ask(store, ["nuclei"], first)["nuclei"]
    glands = ask(store, ["glands"], second)["glands"]
    new = sum(a.probability is None and b.probability is not None for a, b in zip(nuclei, glands, strict=True))
    assert 0 < new < len(store.grid)
    assert second.encoded == {MASK_FEATURES: new}
    # Encoders round differently in batches of other sizes: that, and no more, may differ.
    shutil.rmtree(store.path / "embeddings")
    assert_same(glands, ask(store, ["glands"], Counting())["glands"], atol=1e-3)


def test_a_run_that_was_stopped_goes_on_from_what_it_has_seen(store: TileStore) -> None:
    stopped, again = Counting(), Counting()
    run = answers(store, QUERIES, stopped, batch_size=4)
    next(run)
    next(run)
    run.close()
    whole = ask(store, QUERIES, again)
    assert again.encoded["image_tokens"] == len(store.grid) - stopped.encoded["image_tokens"]
    shutil.rmtree(store.path / "embeddings")
    for q in QUERIES:
        assert_same(whole[q], ask(store, QUERIES, Counting())[q], atol=1e-3)


def test_a_run_that_was_stopped_after_the_last_answer_goes_on(store: TileStore, tmp_path: Path) -> None:
    assert len(store.grid) % 9  # the last batch is a small one
    for _ in range(3):  # what the second leaves in the journal must not stop the third
        with Journal(tmp_path / "store.answers", 128) as journal:
            run = list(answers(store, QUERIES, Counting(), batch_size=9, journal=journal))
        assert np.concatenate([indices for indices, _ in run]).tolist() == list(range(len(store.grid)))


def test_another_model_looks_for_itself(store: TileStore) -> None:
    ask(store, ["glands"], Counting())
    other = Counting("two")
    ask(store, ["glands"], other)
    assert other.encoded["image_tokens"] == len(store.grid)


def test_half_precision_moves_no_probability_of_the_bundled_model_by_a_thousandth(sample_slide: Path) -> None:
    segmenter = load_model(device="cpu")
    assert isinstance(segmenter, PathChatSegmenter)
    with open_slide(sample_slide) as slide:
        tiles = slide.read_at_mpp(500, 900, 512, 256, 0.5).reshape(256, 2, 256, 3).swapaxes(0, 1)
    features = segmenter.look(np.arange(2), (256, 256), lambda: tiles)
    embedding, *finer = (array.float() for array in features.part(MASK_FEATURES, range(2)))
    states = torch.randn(2, segmenter.model.config.text.hidden_size, generator=torch.manual_seed(0))
    with torch.inference_mode():
        rounded = segmenter.model.decode_masks(embedding, finer, states, (256, 256)).sigmoid()
        whole = segmenter.model.masks(tiles_to_tensor(tiles), states).sigmoid()
    assert 0 < (rounded - whole).abs().max() < 1e-3


def test_a_store_without_pixels_answers_as_one_with_them(slide_file: Path, store: TileStore, tmp_path: Path) -> None:
    here = shutil.copy(slide_file, tmp_path / "there.tif")
    with open_slide(here) as slide:
        bare = write_store(slide, plan_grid(slide, store.grid.spec), tmp_path / "moved" / "bare.zarr", pixels=False)
    assert not (bare.path / "pixels").exists()
    assert (bare.tiles([3, 0]) == store.tiles([3, 0])).all()
    expected = ask(store, ["nuclei"], Counting())["nuclei"]
    shutil.move(here, tmp_path / "moved" / "there.tif")  # the slide may lie beside its store
    assert_same(ask(bare, ["nuclei"], Counting())["nuclei"], expected)

    with open_slide(slide_file) as slide, pytest.raises(StoreError, match="holds coordinates only"):
        write_store(slide, store.grid, bare.path)
    shutil.copy(store.path / "zarr.json", tmp_path / "moved" / "there.tif")
    with pytest.raises(WsisegError):
        bare.tiles([0])
    synthetic_slide(tmp_path / "moved" / "there.tif", {}, l0_width=701, l0_height=420)
    with pytest.raises(StoreError, match="has changed, or is another slide"):
        bare.tiles([0])
    (tmp_path / "moved" / "there.tif").unlink()
    with pytest.raises(StoreError, match="lies neither at"):
        bare.tiles([0])
    second = Counting()
    assert_same(ask(bare, ["nuclei"], second)["nuclei"], expected)  # all that was seen is kept
    assert second.encoded == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_is_seen_once_in_the_order_asked_for_and_never_infinite(dtype: torch.dtype) -> None:
    asked: list[object] = []

    def encode(part: str, tiles: np.ndarray) -> list[torch.Tensor]:
        asked.append(tiles.tolist())
        return [torch.from_numpy(tiles)[:, None].to(dtype)]

    def read() -> np.ndarray:
        asked.append("read")
        return np.array([1.0, -1e6, 1e6], np.float32)

    features = TileFeatures(encode, np.array([7, 8, 9]), (1, 1), read, None, torch.device("cpu"))  # type: ignore[arg-type]
    assert features.part("a", [2])[0].tolist() == [[65504]]
    assert features.part("a", [2, 0, 1])[0].tolist() == [[65504], [1], [-65504]]
    assert asked == ["read", [1e6], [1, -1e6]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.array([[0, 255], [9, 9]], np.uint8), "probabilities from 0 to 255, which must be 0 to 1"),
        (np.array([[-4.0, 0.5], [0, 0]]), "probabilities from -4 to 0.5"),
        (np.array([[0, np.nan], [0, 0]], np.float32), "probabilities from nan to nan"),
        (np.zeros((1, 2, 2), np.float32), r"masks of \(1, 2, 2\) about tiles of 2 x 2 px"),
        (np.zeros((2, 3), np.float32), r"masks of \(2, 3\) about tiles of 2 x 2 px"),
        (None, "1 answers about 2 tiles"),
        (np.array([[True, False], [False, False]]), ""),
        (np.array([[-0.0005, 1.0005], [0.3, 0.7]]), ""),  # kept or not, in the steps of a journal
    ],
)
def test_what_a_model_of_the_users_own_gives_is_looked_at(given: np.ndarray | None, said: str) -> None:
    class Own(FakeModel):
        def segment_tiles(self, tiles: np.ndarray, query: str, mpp: float) -> list[TileMask]:
            return [TileMask(given, "", 1.0)] * (1 if given is None else len(tiles))

    class Two:
        grid = SimpleNamespace(spec=GridSpec(1.0, 2, 0))

        def batches(self, size: int, first: int = 0) -> Batches:
            yield np.arange(2), np.zeros((2, 2, 2, 3), np.uint8)

    asked = answers(Two(), ["q"], Own(), batch_size=2)  # type: ignore[arg-type]
    if not said:
        ((_, masks),) = asked
        assert masks["q"][1].probability == pytest.approx(np.rint(given * 255.0) / 255, abs=1e-7)  # type: ignore[operator]
        return
    with pytest.raises(ModelError, match=f"the model fake gives {said}"):
        next(asked)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "a NoneType as answer, which must be a TileMask"),
        ([None], "a NoneType as answer"),
        ([np.zeros((2, 2))], "a ndarray as answer"),
        ([TileMask([[0.0, 0.0], [0.0, 0.0]], "", 1.0)], "a list as probability, which must be an array"),  # type: ignore[arg-type]
        ([TileMask(torch.zeros(2, 2), "", 1.0)], "a Tensor as probability"),  # type: ignore[arg-type]
        ([TileMask(np.zeros((2, 2), complex), "", 1.0)], "a ndarray as probability"),
        ([TileMask(None, None, 1.0)], "a NoneType as reasoning, which must be a text"),  # type: ignore[arg-type]
        ([TileMask(None, "", None)], "a NoneType as seg_probability, which must be a number"),  # type: ignore[arg-type]
        ([TileMask(None, "", 1.0, 0.5)], "a float as seg_position, which must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_answer_is_told_as_that(given: object, said: str) -> None:
    with pytest.raises(ModelError, match=f"the model own gives {said}"):
        _sound(given, 1, 2, "own")  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    (answer,) = _sound([TileMask(np.zeros((2, 2)), "", np.float32(0.5), np.int64(3))], 1, 2, "own")
    assert json.dumps(answer.seg_position) == "3"


@pytest.mark.parametrize(
    ("tiles", "batch_size", "refills", "together"),
    [
        (10, 16, 1, 16),
        (10, 64, 4, 64),
        (600, 64, 4, 64),
        (1100, 64, 4, 128),
        (2048, 64, 4, 256),
        (99999, 64, 4, 256),
        (99999, 16, 1, 16),
    ],
)
def test_batches_are_given_together_where_a_slide_has_many(
    tiles: int, batch_size: int, refills: int, together: int
) -> None:
    assert _together(tiles, batch_size, refills) == together
