"""Random views of a sample: geometry on image and layers together, stain and optics on pixels alone."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

# Rows: stain vectors of haematoxylin, eosin and the residual in optical density (Ruifrok & Johnston 2001).
_HED = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], np.float32)
_HED /= np.linalg.norm(_HED, axis=1, keepdims=True)

# RGB → log LMS → lαβ (Reinhard et al. 2001, Color transfer between images)
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]], np.float32)
_OPPONENT = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]], np.float32) / np.sqrt([[3], [6], [2]]).astype(np.float32)

_LABELS = 1 << 16  # of uint16


def random_crop(
    image: np.ndarray,
    layers: dict[str, np.ndarray],
    *,
    size: int,
    scale: float,
    rng: np.random.Generator,
    center: tuple[int, int] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A `size`² view at `scale` source pixels per output pixel, turned by a multiple of 90° and mirrored.

    Args:
        image: (H, W, 3) uint8.
        layers: name → (H, W) uint16 label maps.
        center: (y, x) in source pixels that should lie inside the view; random if None.

    A view larger than the source is filled up by reflection, see `_reflected`. Pixels are resampled with
    antialiasing, labels by nearest neighbour.
    """
    window = max(8, round(size * scale))
    pad_y, pad_x = (max(0, window - side) for side in image.shape[:2])
    if pad_y or pad_x:
        widths = ((pad_y // 2, pad_y - pad_y // 2), (pad_x // 2, pad_x - pad_x // 2))
        image = np.pad(image, (*widths, (0, 0)), mode="symmetric")
        layers = {name: _reflected(layer, widths) for name, layer in layers.items()}
    corner = []
    for axis in (0, 1):
        free = image.shape[axis] - window
        if center is None:
            corner.append(int(rng.integers(free + 1)))
        else:
            wanted = center[axis] - int(rng.integers(window // 4, window - window // 4 + 1))
            corner.append(int(np.clip(wanted, 0, free)))
    y, x = corner
    turn, mirror = int(rng.integers(4)), bool(rng.integers(2))

    def place(array: np.ndarray) -> np.ndarray:
        array = np.rot90(array, turn)
        return np.ascontiguousarray(array[:, ::-1] if mirror else array)

    view = image[y : y + window, x : x + window]
    if window != size:
        view = np.asarray(Image.fromarray(view).resize((size, size), Image.Resampling.BICUBIC))
    index = ((np.arange(size) + 0.5) * window / size).astype(np.intp)
    cut = {
        name: place(layer[y : y + window, x : x + window][index[:, None], index[None]])
        for name, layer in layers.items()
    }
    return place(view), cut


def _reflected(layer: np.ndarray, widths: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    """A label map (H, W) uint16 filled up by reflection, where mirror images of instances have numbers of their own.

    An object at the edge and its mirror image touch: they are one in the picture, and keep one number. So does the
    rest of an object in several parts of which one lies at the edge.
    """
    out = np.pad(layer, widths, mode="symmetric")
    if layer.max() < 2:
        return out
    free = np.flatnonzero(np.bincount(layer.ravel(), minlength=_LABELS)[1:] == 0) + 1
    (top, bottom), (left, right) = widths
    for lines, width in ((out, top), (out[::-1], bottom), (out.T, left), (out.T[::-1], right)):
        reflected, edge = lines[:width], lines[width]
        apart = np.setdiff1d(reflected, [0, *edge])[: len(free)]
        number = np.arange(_LABELS, dtype=layer.dtype)
        number[apart], free = free[: len(apart)], free[len(apart) :]
        reflected[:] = number[reflected]
    return out


def jitter_stain(tiles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary stain, light, colour and focus of a batch, every tile on its own.

    Haematoxylin, eosin and residual are scaled and shifted in optical density (Tellez et al. 2018,
    arXiv:1808.05896), then brightness, contrast and saturation; one tile in four is blurred or made noisy.

    Args:
        tiles: (B, 3, H, W) in [0, 1].
    """
    count = len(tiles)

    def draw(low: float, high: float, width: int = 1) -> torch.Tensor:
        values = torch.rand(count, width, generator=generator) * (high - low) + low
        return values[:, :, None, None]

    hed = torch.from_numpy(_HED)
    density = -torch.log(tiles.clamp(1 / 255, 1.0))  # (B, 3, H, W)
    stains = torch.einsum("bchw,cs->bshw", density, torch.linalg.inv(hed))
    stains = stains * draw(0.75, 1.25, 3) + draw(-0.06, 0.06, 3)
    out = torch.exp(-torch.einsum("bshw,sc->bchw", stains, hed))
    gray = out.mean(1, keepdim=True)
    out = gray + (out - gray) * draw(0.7, 1.3)
    level = out.mean((1, 2, 3), keepdim=True)
    out = (out - level) * draw(0.8, 1.2) + level
    out = out * draw(0.85, 1.1, 3)
    chance = torch.rand(count, generator=generator)
    for i in torch.nonzero(chance < 0.25)[:, 0].tolist():
        if chance[i] < 0.13:
            small = torch.nn.functional.interpolate(out[i : i + 1], scale_factor=0.5, mode="bilinear", antialias=True)
            out[i] = torch.nn.functional.interpolate(small, size=out.shape[-2:], mode="bicubic")[0]
        else:
            out[i] += 0.03 * torch.randn(out[i].shape, generator=generator)
    return out.clamp(0.0, 1.0)


def restain(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The view (H, W, 3) uint8 as another laboratory might have stained and scanned it; glass stays white.

    Mean and deviation of the stained pixels are moved to a random template in lαβ (Reinhard et al. 2001, with
    random templates as RandStainNA, Shen et al. 2022). The ranges are those that the open training sets span:
    EBHI's strong purple at one end, pale or pink pictures at the other.
    """
    pixels = view.astype(np.float32) / 255
    stained = np.clip((0.92 - pixels.min(axis=2)) / 0.1, 0.0, 1.0)[..., None]  # 0 on glass
    if stained.sum() < 0.02 * stained.size:
        return view
    opponent = np.log(np.clip(pixels @ _LMS.T, 1 / 255, None)) @ _OPPONENT.T  # (H, W, 3)
    share = stained / stained.sum()
    mean = (opponent * share).sum((0, 1))
    deviation = np.sqrt((np.square(opponent - mean) * share).sum((0, 1))) + 1e-3
    contrast = rng.uniform(0.25, 0.95)
    red_blue = contrast * rng.uniform(0.1, 0.4)
    wanted_deviation = np.array([contrast, red_blue, contrast * rng.uniform(0.035, 0.06)], np.float32)
    wanted_mean = np.array(
        [rng.uniform(-1.5, -0.6), -1.4 * red_blue - 0.03 + rng.normal(0, 0.03), rng.uniform(0.035, 0.095)], np.float32
    )
    moved = (opponent - mean) * (wanted_deviation / deviation) + wanted_mean
    rgb = np.exp(np.clip(moved @ np.linalg.inv(_OPPONENT).T, -6, 0.2)) @ np.linalg.inv(_LMS).T
    out = np.clip(rgb, 0, 1) * stained + pixels * (1 - stained)
    return (out * 255).round().astype(np.uint8)
