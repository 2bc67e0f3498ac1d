"""Virtual restaining: RandStainNA (Shen et al. 2022, arXiv:2206.12694) in CIELAB, as tensor operations.

A stain template is what the staining of one image looks like: mean A and standard deviation D of lightness and
the two colour axes over its tissue. The templates of a data set follow a distribution; an image is restained by
drawing a template from it and moving the image's own statistics there (Reinhard et al. 2001). Other than the
published code, which works on 8-bit BGR images one by one: no rounding, statistics of tissue alone, and draws
that stay within what the data show (no negative deviations, which would invert contrast).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import orjson
import torch

from wsiseg.errors import DataError
from wsiseg.files import atomic_write
from wsiseg.training.data.store import QuadrupletStore

NAMES = ("mean L", "mean a", "mean b", "deviation L", "deviation a", "deviation b")
_MIN_TISSUE = 0.02  # of an image; less of it says nothing about its stain
_SIDE = 256  # pixels a side that are looked at: mean and deviation need no more
_TRUNCATION = 2.5  # standard deviations
_MIN_DEVIATION = 0.2  # of the data set's, below which an image would come out flat

# sRGB primaries to CIE XYZ for D65, divided by the white point (IEC 61966-2-1).
_TO_XYZ = ((0.433953, 0.376219, 0.189828), (0.212671, 0.715160, 0.072169), (0.017758, 0.109477, 0.872765))


def rgb_to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB (B, 3, H, W) in [0, 1] → CIELAB D65 (B, 3, H, W): L in 0..100, a and b about −128..127."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    x, y, z = torch.einsum("kc,bchw->bkhw", rgb.new_tensor(_TO_XYZ), linear).unbind(1)
    x, y, z = (torch.where(v > 0.008856, v.clamp(min=0.008856) ** (1 / 3), 7.787 * v + 16 / 116) for v in (x, y, z))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """Undo of `rgb_to_lab`; colours that no screen can show are clipped to [0, 1]."""
    light, a, b = lab.unbind(1)
    y = (light + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    linear = torch.einsum("ck,bkhw->bchw", torch.linalg.inv(lab.new_tensor(_TO_XYZ)), xyz)
    high = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, high, 12.92 * linear).clamp(0.0, 1.0)


def tissue(lab: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) → (B, 1, H, W) bool: what is neither bare glass (bright, colourless) nor black."""
    light, chroma = lab[:, :1], lab[:, 1:].norm(dim=1, keepdim=True)
    return ((light < 85) | (chroma > 8)) & (light > 5)


def templates(lab: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stain templates (A; D) of images (B, 3, H, W) over their tissue, and its share.

    Returns:
        (B, 6): means of L, a, b, then their standard deviations; and (B,), the share of tissue.
    """
    mask = tissue(lab).to(lab.dtype)
    count = mask.sum((2, 3)).clamp(min=1)  # (B, 1)
    mean = (lab * mask).sum((2, 3)) / count
    variance = ((lab - mean[..., None, None]) ** 2 * mask).sum((2, 3)) / count
    return torch.cat([mean, variance.sqrt()], 1), mask.mean((1, 2, 3))


def restain(rgb: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1] with their stain moved to `template` (B, 6).

    Reinhard et al. 2001: y = (x − A_own) · D / D_own + A per channel of CIELAB. An image that is nearly all glass
    has no stain to move and stays as it is.
    """
    lab = rgb_to_lab(rgb)
    own, share = templates(lab)
    mean, deviation = own[..., None, None].split(3, 1)
    new_mean, new_deviation = template[..., None, None].split(3, 1)
    moved = (lab - mean) * new_deviation / deviation.clamp(min=0.5) + new_mean
    return torch.where((share >= _MIN_TISSUE)[:, None, None, None], lab_to_rgb(moved), rgb)


@dataclass(frozen=True)
class Fitted:
    """Distribution of one number over the images of a data set; `scale` is its standard deviation."""

    distribution: Literal["normal", "laplace"]
    location: float
    scale: float

    def draw(self, uniform: torch.Tensor) -> torch.Tensor:
        """Quantiles of the distribution truncated at ±2.5 standard deviations; `uniform` in [0, 1]."""
        # Laplace: b = σ/√2, quantile −b·sign(p − ½)·ln(1 − 2|p − ½|).
        if self.distribution == "normal":
            end = 0.5 * (1 + math.erf(_TRUNCATION / math.sqrt(2)))
        else:
            end = 1 - 0.5 * math.exp(-_TRUNCATION * math.sqrt(2))
        p = (1 - end) + uniform * (2 * end - 1) - 0.5
        if self.distribution == "normal":
            z = torch.erfinv(2 * p) * math.sqrt(2)
        else:
            z = -torch.sign(p) * torch.log1p(-2 * p.abs()) / math.sqrt(2)
        return self.location + self.scale * z


@dataclass(frozen=True)
class StainStatistics:
    """How the stain templates of a data set are spread: six distributions in the order of `NAMES`."""

    data: str
    images: int
    fitted: tuple[Fitted, ...]

    def draw(self, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Templates (count, 6), drawn independently per number with torch's own generator."""
        uniform = torch.rand(count, 6, device=device)
        drawn = torch.stack([fitted.draw(u) for fitted, u in zip(self.fitted, uniform.unbind(1), strict=True)], 1)
        least = _MIN_DEVIATION * drawn.new_tensor([fitted.location for fitted in self.fitted])
        return torch.where(torch.arange(6, device=device) < 3, drawn, torch.maximum(drawn, least))


def fit(values: np.ndarray) -> Fitted:
    """The likelier of a normal and a Laplace distribution for `values` (N,), by maximum likelihood."""
    mean, deviation = float(values.mean()), float(values.std())
    middle = float(np.median(values))
    width = float(np.abs(values - middle).mean())
    normal = -math.log(max(deviation, 1e-9) * math.sqrt(2 * math.pi)) - 0.5
    laplace = -math.log(max(2 * width, 1e-9)) - 1
    if normal >= laplace:
        return Fitted("normal", mean, deviation)
    return Fitted("laplace", middle, width * math.sqrt(2))


def measure(store: QuadrupletStore, progress: Callable[[int, int], None] | None = None) -> StainStatistics:
    """Stain statistics of a store's training images.

    Raises:
        DataError: there are fewer than two training images with tissue.
    """
    indices = store.indices(split="train")
    seen = []
    for done, index in enumerate(indices, 1):
        image = store.sample(index).image
        every = max(1, min(image.shape[:2]) // _SIDE)
        rgb = torch.from_numpy(image[::every, ::every]).permute(2, 0, 1)[None].float() / 255
        template, share = templates(rgb_to_lab(rgb))
        if share[0] >= _MIN_TISSUE:
            seen.append(template[0].numpy())
        if progress:
            progress(done, len(indices))
    if len(seen) < 2:
        raise DataError(f"{store.path} has {len(seen)} training images with tissue; a distribution needs two or more")
    values = np.stack(seen).astype(np.float64)  # (N, 6)
    return StainStatistics(store.path.name, len(indices), tuple(fit(column) for column in values.T))


def statistics_path(data: str | Path) -> Path:
    """Beside the data set: open.zarr → open.stain.json, and set.v1 → set.v1.stain.json."""
    path = Path(os.path.abspath(data))  # "." has a name, too
    return path.with_name(path.name.removesuffix(".zarr") + ".stain.json")


def save_statistics(statistics: StainStatistics, path: Path) -> None:
    """OutputError if that fails."""
    with atomic_write(path) as file:
        file.write(orjson.dumps(dataclasses.asdict(statistics), option=orjson.OPT_INDENT_2))


def load_statistics(store: QuadrupletStore) -> StainStatistics:
    """The statistics saved beside `store`.

    Raises:
        DataError: there are none, they are damaged, or the store has changed since.
    """
    path = statistics_path(store.path)
    again = f"run: wsiseg data stain-stats {store.path}"
    try:
        raw = orjson.loads(path.read_bytes())
        statistics = StainStatistics(raw["data"], raw["images"], tuple(Fitted(**fitted) for fitted in raw["fitted"]))
    except FileNotFoundError as error:
        raise DataError(f"{store.path} has no stain statistics ({path}); {again}") from error
    except (orjson.JSONDecodeError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); {again}") from error
    images = len(store.indices(split="train"))
    if statistics.images != images or len(statistics.fitted) != len(NAMES):
        raise DataError(f"{path} is of {statistics.images} training images, {store.path} has {images}; {again}")
    return statistics
