"""Restaining: colours as others compute them, templates that are reached, draws that stay within the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from wsiseg.cli.data import command
from wsiseg.errors import DataError
from wsiseg.training.data.store import QuadrupletStore, Sample, SourceInfo, write_quadruplets
from wsiseg.training.stain import (
    Fitted,
    StainStatistics,
    fit,
    lab_to_rgb,
    load_statistics,
    restain,
    rgb_to_lab,
    statistics_path,
    templates,
)


def test_known_colours() -> None:
    rgb = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [1.0, 1.0, 1.0], [0, 0, 0]])[..., None, None]
    lab = torch.tensor([[53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(rgb_to_lab(rgb)[..., 0, 0], lab, atol=0.02, rtol=0)


def test_lab_is_that_of_opencv_to_its_own_precision_and_comes_back() -> None:
    rgb = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=1e-4, rtol=0)
    cv2 = pytest.importorskip("cv2")
    theirs = [cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2LAB) for image in rgb]
    difference = (rgb_to_lab(rgb) - torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2)).abs()
    # OpenCV looks colours up in a coarse table, and is off by as much; exact values are tested above.
    assert difference.max() < 0.7
    assert difference.mean() < 0.1


def tissue_images(count: int, seed: int = 0) -> torch.Tensor:
    """Pink with purple blobs, (count, 3, 64, 64)."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.nn.functional.interpolate(torch.rand(count, 1, 8, 8, generator=generator), size=64, mode="bicubic")
    pink, purple = (torch.tensor(colour).reshape(1, 3, 1, 1) for colour in ((0.85, 0.6, 0.75), (0.4, 0.25, 0.55)))
    image = torch.where(blobs > 0.6, purple, pink) + 0.05 * torch.randn(count, 3, 64, 64, generator=generator)
    return image.clamp(0, 1)


def test_a_restained_image_has_the_stain_that_was_asked_for() -> None:
    images = tissue_images(2)
    wanted = torch.tensor([[60.0, 30, -15, 10, 6, 5], [50, 20, -10, 8, 5, 4]])
    got, _ = templates(rgb_to_lab(restain(images, wanted)))
    torch.testing.assert_close(got, wanted, atol=0.5, rtol=0.02)
    own, _ = templates(rgb_to_lab(images))
    torch.testing.assert_close(restain(images, own), images, atol=2e-3, rtol=0)


def test_glass_stays_glass() -> None:
    glass = torch.full((1, 3, 32, 32), 0.93)
    assert torch.equal(restain(glass, torch.tensor([[60.0, 30, -15, 10, 6, 5]])), glass)


def test_distributions_are_recognised_and_drawn_within_bounds() -> None:
    rng = np.random.default_rng(0)
    normal, laplace = fit(rng.normal(50, 8, 4000)), fit(rng.laplace(3, 2, 4000))
    assert (normal.distribution, laplace.distribution) == ("normal", "laplace")
    assert (normal.location, normal.scale) == pytest.approx((50, 8), rel=0.05)
    assert (laplace.location, laplace.scale) == pytest.approx((3, 2 * 2**0.5), rel=0.1)
    uniform = torch.linspace(0, 1, 10001)
    for fitted in (normal, laplace):
        drawn = fitted.draw(uniform)
        assert (drawn - fitted.location).abs().max() == pytest.approx(2.5 * fitted.scale, rel=1e-3)
        assert drawn.median() == pytest.approx(fitted.location, abs=1e-2)
        assert 0.8 < drawn.std() / fitted.scale < 1
    wide = StainStatistics("x", 2, (Fitted("normal", 10.0, 20.0),) * 6).draw(1000)
    assert wide[:, :3].min() < 0  # a mean may be anywhere
    assert wide[:, 3:].min() >= 0.2 * 10  # a deviation never inverts contrast


def test_statistics_are_of_training_images_lie_beside_the_store_and_notice_its_change(tmp_path: Path) -> None:
    def write(name: str, count: int) -> QuadrupletStore:
        images = (tissue_images(count).permute(0, 2, 3, 1) * 255).byte().numpy()
        images[0] = 255 - images[0]  # the validation image is of another colour altogether
        samples = [
            Sample(image, {}, (), (), 0.5, "s", f"p{i}", "train" if i else "val", f"i{i}")
            for i, image in enumerate(images)
        ]
        return write_quadruplets(tmp_path / name, samples, {"s": SourceInfo("s", "CC0", "us", "made", "none")})

    store = write("a.zarr", 6)
    with pytest.raises(DataError, match="wsiseg data stain-stats"):
        load_statistics(store)
    done = CliRunner().invoke(command, ["stain-stats", str(tmp_path / "a.zarr")])
    assert done.exit_code == 0, done.output
    statistics = load_statistics(store)
    assert statistics.images == 5
    own, _ = templates(rgb_to_lab(tissue_images(6)[1:]))
    for fitted, column in zip(statistics.fitted, own.T, strict=True):
        assert column.min() - 0.5 <= fitted.location <= column.max() + 0.5
    assert statistics_path(tmp_path / "set.v1") == tmp_path / "set.v1.stain.json"
    assert statistics_path(".").name == f"{Path.cwd().name}.stain.json"
    (tmp_path / "a.stain.json").rename(tmp_path / "b.stain.json")
    with pytest.raises(DataError, match="5 training images"):
        load_statistics(write("b.zarr", 9))
