"""Examples: read, seen at the model's scale, and joined with the mask as far as the model fails on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.model.small import small_model
from wsiseg.errors import MissingMppError, QueryError, SlideError
from wsiseg.inference import MASK_FEATURES
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.shots import InContext, Shot, read_shot
from wsiseg.model.prototypes import prototypes


def scene(height: int = 128, width: int = 128, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a darker square."""
    rng = np.random.default_rng(seed)
    image = rng.integers(120, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    image[mask] //= 2
    return image, mask


def segmenter(seed: int = 4, **changes: object) -> PathChatSegmenter:
    model = small_model(seed=seed, stops=2.5)
    model.config = dataclasses.replace(model.config, **changes)
    return PathChatSegmenter(model, name="small", fingerprint="one")


def save(folder: Path, image: np.ndarray, mask: np.ndarray, mpp: float | None = 0.5) -> tuple[Path, Path]:
    Image.fromarray(image).save(folder / "i.png", **({} if mpp is None else {"dpi": (25400 / mpp, 25400 / mpp)}))
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "m.png")
    return folder / "i.png", folder / "m.png"


def test_an_example_is_read_from_two_files(tmp_path: Path) -> None:
    image, mask = scene(60, 80)
    files = save(tmp_path, image, mask)
    shot = read_shot(*files)
    assert np.array_equal(shot.image, image)
    assert np.array_equal(shot.mask, mask)
    assert shot.mpp == pytest.approx(0.5, rel=1e-3)
    assert shot.name == str(files[0])
    labels = mask.astype(np.uint16) * 7  # instance labels, and what a drawing program saves
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(np.dstack([mask * 200, 0 * mask, 0 * mask, 0 * mask + 255]).astype(np.uint8)).save(
        tmp_path / "rgba.png"
    )
    for name in ("labels.png", "rgba.png"):
        again = read_shot(files[0], tmp_path / name)
        assert np.array_equal(again.mask, mask)
        assert again.fingerprint == shot.fingerprint
        with Image.open(files[0]) as opened:  # what a notebook has at hand
            assert Shot(opened, labels, shot.mpp).view(0.5, 32)[1].sum() == again.view(0.5, 32)[1].sum() > 0
    others = [read_shot(*files, 0.25), Shot(image, ~mask, shot.mpp), Shot(image[::-1], mask, shot.mpp)]
    assert len({shot.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_what_is_wrong_with_an_example_is_said(tmp_path: Path) -> None:
    image, mask = scene()
    i, m = save(tmp_path, image, mask, mpp=None)
    with pytest.raises(MissingMppError, match="--example-mpp"):
        read_shot(i, m)
    with pytest.raises(SlideError, match=r"no\.png"):
        read_shot(i, tmp_path / "no.png", 0.5)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SlideError, match="as a mask"):
        read_shot(i, tmp_path / "text.png", 0.5)
    with pytest.raises(QueryError, match="100 x 100 px and the image 128 x 128"):
        Shot(image, mask[:100, :100], 0.5)
    with pytest.raises(QueryError, match="128 x 128 x 3 px and the image 128 x 128"):
        Shot(image, image, 0.5)
    for other in (image / 255, image[..., 0], image[..., [0, 1, 2, 2]]):
        with pytest.raises(QueryError, match=r"must be height x width x 3 uint8 \(RGB, 0 to 255\), not 128 x 128"):
            Shot(other, mask, 0.5)
    with pytest.raises(QueryError, match="marks nothing"):
        Shot(image, mask & False, 0.5)
    with pytest.raises(QueryError, match="marks all"):
        Shot(image, mask | True, 0.5)


@pytest.mark.parametrize(
    ("height", "width", "mpp"), [(300, 420, 0.25), (301, 421, 0.25), (128, 128, 0.5), (50, 90, 0.5), (90, 300, 1.0)]
)
def test_a_view_shows_image_and_mask_at_the_models_scale_and_both_classes(height: int, width: int, mpp: float) -> None:
    image, mask = scene(height, width)
    tile, marked = Shot(image, mask, mpp).view(0.5, 128)
    assert tile.shape == (128, 128, 3)
    assert marked.shape == (128, 128)
    assert 0.02 < marked.mean() < 0.9
    # The square is dark: image and mask lie on each other, reflected parts included.
    assert tile[marked].mean() < 0.6 * tile[~marked].mean()


def test_a_view_is_the_example_pixel_by_pixel() -> None:
    seen = scene(150, 210)[0]
    mask = np.zeros((600, 840), bool)
    mask[202:310, 606:790] = True
    tile, marked = Shot(seen.repeat(4, axis=0).repeat(4, axis=1), mask, 0.125).view(0.5, 128)
    assert np.abs(tile.astype(int) - seen[:128, 82:210]).mean() < 15  # of any other place 40
    assert np.array_equal(marked, mask[2::4, 2::4][:128, 82:210])  # what lies under the centres of pixels
    image, mask = scene(50, 90)
    tile, marked = Shot(image, mask, None).view(0.25, 128)  # without a scale: as it is
    assert np.array_equal(tile[50:100, :90], image[::-1])
    assert np.array_equal(marked[50:100, :90], mask[::-1])


def test_the_view_of_a_large_example_is_where_the_structure_is() -> None:
    image, mask = scene(600, 600)
    mask[:] = False
    mask[236:276, 30:60] = True
    assert Shot(image, mask, 0.5).view(0.5, 128)[1].sum() == 40 * 30
    assert Shot(image, ~mask, 0.5).view(0.5, 128)[1].sum() == 128 * 128 - 40 * 30
    tiny = np.zeros_like(mask)
    tiny[300, 301] = True
    with pytest.raises(QueryError, match="no tile shows both"):
        Shot(image, tiny, 0.05).view(1.0, 128)


def test_masks_are_mixed_by_how_well_the_model_does_on_the_example() -> None:
    plain = segmenter()
    assert isinstance(plain, InContext)
    image, mask = scene()
    shown = plain.with_shots([Shot(image, mask, 0.5)])
    tiles = np.stack([scene(seed=s)[0] for s in range(6)])
    alone, together = plain.segment_tiles(tiles, "glands", 0.5), shown.segment_tiles(tiles, "glands", 0.5)
    drawn = [i for i, a in enumerate(alone) if a.probability is not None]
    assert drawn, "this seed no longer emits <SEG>; choose another"
    (own,) = plain.segment_tiles(image[None], "glands", 0.5)
    found = np.zeros_like(mask) if own.probability is None else own.probability > 0.5
    trust = 2 * (found & mask).sum() / (found.sum() + mask.sum())
    assert trust < 1
    features = plain.look(np.arange(1), (128, 128), lambda: image[None]).part(MASK_FEATURES, [0])
    learnt = prototypes([f.float() for f in features], torch.from_numpy(mask)[None])
    seen = plain.look(np.arange(6), (128, 128), lambda: tiles).part(MASK_FEATURES, range(6))
    odds = learnt.log_odds([f.float() for f in seen], (128, 128)).detach().numpy()
    for i in range(6):
        assert (alone[i].probability is None) == (together[i].probability is None)
        assert alone[i].reasoning == together[i].reasoning  # not in context: this model never learnt to read them
    for i in drawn:
        logits = np.log(alone[i].probability / (1 - alone[i].probability))
        wanted = trust * logits + (1 - trust) * 0.5 * odds[i]
        np.testing.assert_allclose(together[i].probability, 1 / (1 + np.exp(-wanted)), atol=0.01)


def test_in_context_the_example_is_read_once_and_what_is_seen_of_tiles_stays_the_same() -> None:

    plain = segmenter(shots_in_context=True)
    shots = [Shot(*scene(seed=s), 0.5) for s in (7, 8)]
    shown = plain.with_shots(shots)
    tiles = np.stack([scene(seed=s)[0] for s in range(4)])
    first = shown.segment_tiles(tiles, "glands", 0.5)
    prefix = shown._prefix("glands", 0.5)
    assert [a.reasoning for a in first] == [a.reasoning for a in shown.segment_tiles(tiles, "glands", 0.5)]
    assert shown._prefix("glands", 0.5) is prefix
    assert [a.reasoning for a in first] != [a.reasoning for a in plain.segment_tiles(tiles, "glands", 0.5)]
    assert shown.fingerprint == plain.fingerprint  # embeddings in a store serve with and without examples


def test_more_examples_than_the_model_can_read_are_refused() -> None:
    shown = segmenter(shots_in_context=True).with_shots(40 * [Shot(*scene(), 0.5)])
    with pytest.raises(QueryError, match="too many"):
        shown.segment_tiles(scene()[0][None], "glands", 0.5)
