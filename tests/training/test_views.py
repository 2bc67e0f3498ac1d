"""Training views: what may change in a picture and in a question, and what must not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.model.small import small_config, small_model
from wsiseg.training.augment import random_crop, restain
from wsiseg.training.batch import collate
from wsiseg.training.composite import on_other_tissue, open_lumens, patchwork, stroma_ground
from wsiseg.training.data.annotate import describe, find_in, refuse
from wsiseg.training.data.concepts import CONCEPTS
from wsiseg.training.data.queries import FRAMES, VERBS, WHERE, idle_words, nouns, sample_noisy_query, sample_query
from wsiseg.training.data.store import Sample, SourceInfo, write_quadruplets
from wsiseg.training.examples import (
    Example,
    ExampleStream,
    Question,
    View,
    _misled,
    ask,
    is_close,
    random_scale,
    random_view,
    random_wording,
)


def _words(texts: list[str]) -> set[str]:
    return set(re.findall(r"[a-z]+", " ".join(texts).lower()))


def test_idle_words_name_nothing_and_give_no_validation_wording_away() -> None:
    idle = set(idle_words())
    names = _words([noun.text for concept in CONCEPTS.values() for noun in nouns(concept, "val")])
    frames = {
        split: _words([*FRAMES[split], *WHERE[split], *(text for pair in VERBS[split] for text in pair)])
        for split in ("train", "val")
    }
    assert len(idle) > 400
    assert not idle & names
    assert not idle & (frames["val"] - frames["train"])


def test_a_noisy_query_still_names_its_structure() -> None:
    rng = np.random.default_rng(0)
    known = [noun.text.lower() for noun in nouns(CONCEPTS["cartilage"], "train")]
    queries = [sample_noisy_query("cartilage", rng).lower() for _ in range(200)]
    named = sum(any(name in query for name in known) for query in queries)
    assert named > 180  # the others carry a typing slip in the name
    assert len(set(queries)) > 195


def test_what_is_held_back_is_no_training_wording() -> None:
    names = list(CONCEPTS)
    rng = np.random.default_rng(0)
    drawn = {names[random_wording(rng, "train")[1]] for _ in range(3000)}
    assert not {name for name in drawn if CONCEPTS[name].held_back}


def _tissue(colour: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(colour) + rng.normal(0, 25, (64, 64, 1)), 0, 255).astype(np.uint8)


def test_restaining_moves_colours_and_leaves_glass_and_structure() -> None:
    rng = np.random.default_rng(1)
    view = _tissue((140, 80, 160), rng)
    view[:16] = 245
    seen = []
    for _ in range(8):
        out = restain(view, rng)
        assert np.abs(out[:16].astype(int) - 245).max() <= 1
        seen.append(out[16:].reshape(-1, 3).mean(0))
        # what was darker stays darker
        assert np.corrcoef(out[16:].mean(2).ravel(), view[16:].mean(2).ravel())[0, 1] > 0.8
    assert np.std(seen, axis=0).max() > 15
    glass = np.full((64, 64, 3), 245, np.uint8)
    assert np.array_equal(restain(glass, rng), glass)


@pytest.fixture
def pictures() -> tuple[Sample, Sample]:
    rng = np.random.default_rng(2)
    gland = np.zeros((64, 64), np.uint16)
    gland[16:48, 16:48] = 1
    stroma = (gland == 0).astype(np.uint16)
    own = Sample(
        np.where(gland[..., None] > 0, _tissue((90, 40, 140), rng), _tissue((220, 150, 200), rng)),
        {"gland": gland, "stroma": stroma}, ("gland", "stroma"), ("cartilage", "necrosis"), 1.0,
        "ebhi", "p1", "train", "a",
    )  # fmt: skip
    ground = Sample(
        _tissue((230, 90, 110), rng), {}, (), ("cartilage", "gland"), 0.5, "other", "o1", "train", "b"
    )
    return own, ground


def test_glands_keep_their_pixels_on_other_tissue(pictures: tuple[Sample, Sample]) -> None:
    own, ground = pictures
    out = on_other_tissue(own, ground, np.random.default_rng(3))
    inside, outside = (slice(24, 40), slice(24, 40)), (slice(0, 8), slice(None))
    assert np.abs(out.image[inside].astype(int) - own.image[inside]).max() <= 1
    assert np.abs(out.image[outside].astype(int) - own.image[outside]).mean() > 5
    assert np.array_equal(out.layers["gland"], own.layers["gland"])
    # stroma is no longer where its layer said, and only what both pictures rule out is absent
    assert "stroma" not in out.layers
    assert out.absent == ("cartilage",)


def test_some_glands_may_be_left_out_but_never_all(pictures: tuple[Sample, Sample]) -> None:
    own, ground = pictures
    own.layers["gland"][:] = 0
    corners = [(slice(4, 24), slice(4, 24)), (slice(40, 60), slice(40, 60))]
    for corner in corners:
        own.layers["gland"][corner] = 1
    kept = set()
    for seed in range(20):
        out = on_other_tissue(own, ground, np.random.default_rng(seed))
        there = tuple(bool(out.layers["gland"][corner].all()) for corner in corners)
        for corner, kept_here in zip(corners, there, strict=True):
            inner = out.image[corner][8:-8, 8:-8].astype(int) - own.image[corner][8:-8, 8:-8]
            assert (np.abs(inner).max() <= 1) == kept_here
            assert kept_here or not out.layers["gland"][corner].any()
        kept.add(there)
    assert kept == {(True, True), (True, False), (False, True)}


@pytest.mark.parametrize("healthy", [True, False])
def test_carcinoma_is_laid_only_where_no_other_tumour_can_be(
    pictures: tuple[Sample, Sample], healthy: bool, tmp_path: Path
) -> None:
    own, ground = pictures
    gland = own.layers["gland"]
    carcinoma = replace(own, layers={"gland": gland, "malignant": gland}, present=("gland", "malignant"))
    ground = replace(ground, absent=("gland", "malignant") if healthy else ("gland",))
    sources = {"other": SourceInfo("other", "CC0", "us", "made", "none")}
    store = write_quadruplets(tmp_path / "s.zarr", [ground], sources)
    stream = ExampleStream(store, small_config(), split="train", seed=0, questions=1, length=1)
    laid = {stream._resettled(carcinoma, np.random.default_rng(seed)).name for seed in range(20)}
    assert laid == ({"a", "a on b"} if healthy else {"a"})
    stromal = replace(carcinoma, layers={**carcinoma.layers, "stroma": own.layers["stroma"]})
    laid = {stream._resettled(stromal, np.random.default_rng(seed)).name for seed in range(20)}
    assert "a on stroma of a" in laid
    assert ("a on b" in laid) == healthy


def test_stroma_alone_is_made_of_stroma_only(pictures: tuple[Sample, Sample]) -> None:
    own, _ = pictures
    out = stroma_ground(own, np.random.default_rng(4))
    assert out is not None
    assert out.image.shape == own.image.shape
    glands_are_dark = own.image[own.layers["gland"] > 0].mean() < 120
    assert glands_are_dark
    assert out.image.mean() > 170
    assert {"gland", "cartilage"} <= set(out.absent)
    assert not out.layers
    own.layers["stroma"][:] = 0
    assert stroma_ground(own, np.random.default_rng(4)) is None


def test_a_lumen_is_empty_and_belongs_to_its_gland(pictures: tuple[Sample, Sample]) -> None:
    own, _ = pictures
    out = next(
        out
        for seed in range(20)
        if not np.array_equal((out := open_lumens(own, np.random.default_rng(seed))).image, own.image)
    )
    white = (out.image.min(2) > 200) & (own.image.min(2) < 200)
    assert white.sum() > 20
    assert (out.layers["gland"][white] > 0).all()
    assert np.array_equal(out.layers["gland"], own.layers["gland"])
    assert np.array_equal(out.image[own.layers["gland"] == 0][:64], own.image[own.layers["gland"] == 0][:64])


def test_painted_lumens_leave_unknown_where_tissue_and_glass_are(pictures: tuple[Sample, Sample]) -> None:
    own, _ = pictures
    there = {name: np.ones((64, 64), np.uint16) for name in ("lumen", "tissue", "glass")}
    out = open_lumens(replace(own, layers={**own.layers, **there}), np.random.default_rng(0))
    assert set(out.layers) == set(out.present) == {"gland", "stroma"}
    out = open_lumens(replace(own, absent=("cartilage", "glass", "lumen")), np.random.default_rng(0))
    assert out.absent == ("cartilage",)


def test_a_mirrored_object_counts_as_one_of_its_own_unless_the_seam_joins_it_to_its_image() -> None:
    layer = np.zeros((100, 100), np.uint16)
    layer[6:10, 40:46] = 2  # its image is another
    layer[60:66, 97:] = 3  # cut by the edge: one with its image
    layer[40:44, 40:44], layer[40:44, 60:64] = 65535, 65535  # one in two parts
    layer[92:96, 3:7] = 1  # in a corner: four
    image = np.zeros((100, 100, 3), np.uint8)
    for seed in range(8):  # all turns
        _, cut = random_crop(image, {"nucleus": layer}, size=128, scale=1, rng=np.random.default_rng(seed))
        assert cut["nucleus"].dtype == np.uint16
        found = find_in(np.zeros((128, 128, 3), np.uint8), cut["nucleus"])
        assert found is not None
        assert found.count == 2 + 1 + 1 + 4
        assert (cut["nucleus"] == 65535).sum() == 32


def test_glass_is_not_absent_where_an_edge_was_cut(
    pictures: tuple[Sample, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = replace(pictures[0], absent=("cartilage", "glass"))
    for share, absent in ((0.0, ("cartilage", "glass")), (1.0, ("cartilage",))):
        monkeypatch.setattr("wsiseg.training.examples._EDGE_SHARE", share)
        assert random_view(sample, np.random.default_rng(0), 64, False).absent == absent


def test_what_no_body_holds_is_refused_without_repeating_its_name() -> None:
    rng = np.random.default_rng(5)
    asked = {sample_query("nonsense", rng) for _ in range(50)}
    assert len(asked) > 45
    image = np.full((32, 32, 3), 200, np.uint8)
    for key in ("nonsense", "cat"):
        said = refuse(image, key, rng)
        assert "such thing" in said or "looks like that" in said
        assert "cat" not in said
    assert "cartilage" in refuse(image, "cartilage", rng)


def test_a_misled_outline_is_drawn_after_facts_of_another_and_these_are_not_learned() -> None:
    rng = np.random.default_rng(3)
    layer = np.zeros((64, 64), np.uint16)
    layer[4:20, 4:20] = 1
    view = View(_tissue((140, 80, 160), rng), {"gland": layer}, (), 0.9)
    told = describe(view.image, layer, "gland", 0.9, rng)
    right = Question("the glands", told, layer > 0, "gland")
    tried = [_misled(right, view, 0.9, rng) for _ in range(30)]
    wrong = [question for question in tried if not question.taught]  # in the others there was nothing to tell of
    assert len(wrong) > 15
    assert all(question.mask is right.mask for question in tried)
    assert "upper left" in told
    assert sum("upper left" in question.answer for question in wrong) < len(wrong) / 2
    shares = [int(share) for question in wrong for share in re.findall(r"(\d+) % of the tile", question.answer)]
    (said,) = (int(share) for share in re.findall(r"(\d+) % of the tile", told))
    assert len(set(shares)) > 3  # how much there is cannot be believed either
    assert max(shares) > 3 * said
    assert _misled(replace(right, mask=None), view, 0.9, rng).taught
    model = small_model()
    batch = collate([Example(view.image, 0.9, (right, wrong[0]))], model.config, model.tokenizer)
    assert (batch.labels[0] >= 0).any()
    assert (batch.labels[1] < 0).all()


def test_a_healthy_organ_is_seen_from_afar_and_holds_no_tumour(pictures: tuple[Sample, Sample]) -> None:
    rng = np.random.default_rng(5)
    layers = {"nucleus": np.ones((64, 64), np.uint16)}
    tongue = replace(pictures[1], layers=layers, absent=("malignant", "gland"), mpp=0.25)
    far = patchwork([tongue] * 8 + [replace(tongue, absent=("malignant",))], rng)
    near, away = (is_close(sample, small_config()) for sample in (tongue, far))
    assert random_scale(tongue, rng, 64, near) * 0.25 < 0.35  # all that so small a picture allows
    assert min(random_scale(far, rng, 64, away) * 0.25 for _ in range(20)) > 0.5
    assert abs(float(far.image.mean()) - float(tongue.image.mean())) < 3  # seams add no light and take none
    asked = ask(random_view(far, rng, 64, False), rng, 2, "train").questions
    assert [(q.concept, q.mask) for q in asked] == [("malignant", None)]


@pytest.mark.parametrize(
    ("name", "close"),
    [("nucleus", True), ("mitosis", True), ("plasma_cells", True), ("gland", False), ("tumour_cells", False)],
)
def test_what_is_asked_for_close_up_is_shown_close_up(pictures: tuple[Sample, Sample], name: str, close: bool) -> None:
    """From afar a mitosis is a speck, of which nothing is asked: a model learned only where there is none."""
    sample = replace(pictures[0], layers={name: np.ones((64, 64), np.uint16)}, present=(name,))
    assert is_close(sample, small_config()) == close


def test_a_yes_and_a_no_differ_in_one_word_first() -> None:
    """Greedy decoding then takes the likelier answer; a yes split over several first words could not win."""
    rng, image = np.random.default_rng(0), np.full((64, 64, 3), 150, np.uint8)
    mask = np.zeros((64, 64), np.uint16)
    mask[8:20, 8:20], mask[30:40, 30:44] = 1, 2
    second = {
        said.split(". ")[1].split()[0]
        for key in ("gland", "nucleus", "malignant", "stroma")
        for _ in range(10)
        for said in (describe(image, mask, key, 0.5, rng), refuse(image, key, rng))
    }
    assert second == {"There", "Dark"}
