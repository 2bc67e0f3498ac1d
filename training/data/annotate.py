"""A template annotator: it measures the picture and the mask, and says only what it measured.

Three or four short, regular sentences: what the tile shows (texture, colour, how much of it is tissue), then
the evidence for the structure (count, size, shape, place, contrast to its surroundings), and a closing after
which the trainer writes `<SEG>`, or a refusal after which it does not. Numbers are rounded coarsely, so that
a small language model can learn them from the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from wsiseg.training.data.concepts import concept_of
from wsiseg.training.data.terms import Concept

TISSUE_OPTICAL_DENSITY = 0.06  # mean over the channels, against white at 255
DARK_OPTICAL_DENSITY = 0.25  # above the picture's own median: mostly haematoxylin
_MIN_OBJECT_PX = 8
_PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the centre", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Look:
    """What the picture as a whole shows."""

    tissue_fraction: float
    dark_fraction: float
    rgb: tuple[float, float, float]  # mean of the tissue pixels (of all, where there is none)
    roughness: float  # mean absolute difference of neighbouring grey values of the tissue, 0..255


@dataclass(frozen=True)
class Findings:
    """What the mask of one structure shows."""

    count: int
    diameter_px: float  # median over the objects, of the circle of the same area
    elongation: float  # median over the objects: long axis divided by short axis
    area_fraction: float
    cells: tuple[float, ...]  # its share in each cell of the 3 × 3 grid, row by row
    fullest: tuple[int, int]  # row and column of the cell of the 3 × 3 grid that holds most of it
    spread: int  # how many cells of the 3 × 3 grid hold at least 4 % of it
    contrast: float  # mean grey outside minus inside, 0..255: positive = darker than its surroundings


def look_at(image: np.ndarray) -> Look:
    """Measure `image` (H, W, 3) uint8, at every second pixel."""
    small = image[::2, ::2].astype(np.float32)  # (h, w, 3)
    grey = small.mean(axis=2)
    density = -np.log10((small + 1.0) / 256.0).mean(axis=2)
    tissue = density > TISSUE_OPTICAL_DENSITY
    has_tissue = bool(tissue.any())
    inside = small[tissue] if has_tissue else small.reshape(-1, 3)
    middle = float(np.median(density[tissue])) if has_tissue else 0.0
    steps = np.abs(np.diff(grey, axis=1))
    at = tissue[:, 1:] if has_tissue else np.ones_like(steps, dtype=bool)
    red, green, blue = (float(value) for value in inside.mean(axis=0))
    return Look(
        tissue_fraction=float(tissue.mean()),
        dark_fraction=float((density > middle + DARK_OPTICAL_DENSITY).mean()) if has_tissue else 0.0,
        rgb=(red, green, blue),
        roughness=float(steps[at].mean()) if at.any() else 0.0,
    )


def find_in(image: np.ndarray, mask: np.ndarray) -> Findings | None:
    """Measure the objects of `mask` (H, W): instance labels, or 0/1 whose connected parts are the objects.

    Returns None for a mask without a pixel.
    """
    height, width = mask.shape
    labels = mask if mask.max(initial=0) > 1 else ndimage.label(mask)[0]
    y, x = np.nonzero(labels)
    if len(y) == 0:
        return None
    of = labels[y, x]
    area = np.bincount(of).astype(np.float64)
    safe = np.maximum(area, 1.0)
    mean_y, mean_x = np.bincount(of, y) / safe, np.bincount(of, x) / safe
    # second moments plus 1/12, the moment of a pixel itself
    yy = np.bincount(of, y.astype(np.float64) ** 2) / safe - mean_y**2 + 1 / 12
    xx = np.bincount(of, x.astype(np.float64) ** 2) / safe - mean_x**2 + 1 / 12
    xy = np.bincount(of, y.astype(np.float64) * x) / safe - mean_y * mean_x
    half, root = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    elongation = np.sqrt((half + root) / np.maximum(half - root, 1 / 12))
    counted = area >= min(max(_MIN_OBJECT_PX, 0.01 * area.max()), area.max())
    counted[0] = False
    cells = np.bincount((y * 3 // height) * 3 + x * 3 // width, minlength=9) / len(y)
    grey = image[::2, ::2].mean(axis=2)
    inside = labels[::2, ::2] > 0
    mixed = inside.any() and not inside.all()
    return Findings(
        count=int(counted.sum()),
        diameter_px=float(np.median(np.sqrt(4 * area[counted] / np.pi))),
        elongation=float(np.median(elongation[counted])),
        area_fraction=len(y) / (height * width),
        cells=tuple(float(share) for share in cells),
        fullest=(int(cells.argmax()) // 3, int(cells.argmax()) % 3),
        spread=int((cells >= 0.04).sum()),
        contrast=float(grey[~inside].mean() - grey[inside].mean()) if mixed else 0.0,
    )


# --------------------------------------------------------------------------------------------------------
# Measures in words


def number_word(count: int) -> str:
    """1–9 in words, then "about 10", "about 15", … to 30, then tens to 100, then "more than 100"."""
    if count < 10:
        return _NUMBERS[count]
    if count > 105:
        return "more than 100"
    step = 5 if count <= 30 else 10
    return f"about {step * round(count / step)}"


def percent_word(fraction: float) -> str:
    """To the nearest 5 %, "less than 5 %" and "almost all" at the ends."""
    percent = 5 * round(fraction * 20)
    if percent < 5:
        return "less than 5 %"
    if percent > 95:
        return "almost all"
    return f"about {percent} %"


def size_word(diameter_um: float) -> str:
    """A diameter in µm: to 1 below 10, to 5 below 50, to 10 above."""
    step = 1 if diameter_um < 10 else 5 if diameter_um < 50 else 10
    return f"about {max(step, step * round(diameter_um / step))} µm"


def shape_word(elongation: float) -> str:
    return "round" if elongation < 1.35 else "oval" if elongation < 1.9 else "elongated"


def place_word(found: Findings) -> str:
    """Where it is: spread widely, or the cell of the 3 × 3 grid that holds most of it."""
    if found.spread >= 7:
        return "all over the tile"
    row, column = found.fullest
    return _PLACES[row][column]


def colour_word(rgb: tuple[float, float, float]) -> str:
    """The plain name of a stained colour, with pale or dark."""
    red, green, blue = rgb
    high, low = max(rgb), min(rgb)
    light = (red + green + blue) / 3
    tone = "pale " if light > 195 else "dark " if light < 105 else ""
    if high - low < 18:
        return f"{tone}grey"
    if blue >= red:
        return tone + ("blue" if red - low < 0.35 * (blue - low) else "purple")
    if green - low > 0.35 * (high - low) and green > blue:
        return f"{tone}brown"
    warm = (blue - low) / (red - low)
    return tone + ("purple" if warm > 0.72 else "pink" if warm > 0.2 or light > 150 else "red")


def texture_word(roughness: float) -> str:
    return "smooth" if roughness < 7 else "fine" if roughness < 20 else "coarse"


# --------------------------------------------------------------------------------------------------------
# Sentences


def describe(
    image: np.ndarray, mask: np.ndarray, concept_key: str, mpp: float | None, rng: np.random.Generator
) -> str:
    """The reasoning that leads to an outline of `mask`; `<SEG>` belongs right after it.

    The sentence of the evidence always begins with "There", as that of a refusal with "Dark": whether it is there is
    then one choice between two words. Split over several first words, a yes of 58 % lost to a no of 42 %.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W), instance labels or 0/1, of the concept, with at least one pixel.
        concept_key: a key of `CONCEPTS`.
        mpp: microns per pixel of `image`; None leaves sizes out.
        rng: chooses the wording, never the content.

    Raises:
        ValueError: the mask is empty; there is nothing to describe, see `refuse`.
    """
    found = find_in(image, mask)
    if found is None:
        raise ValueError(f"the mask of {concept_key!r} is empty")
    concept = concept_of(concept_key)
    overview, evidence = _overview(look_at(image), rng), _evidence(found, concept, mpp, rng)
    return f"{overview} {evidence} {_closing(concept, rng)}"


def refuse(image: np.ndarray, concept_key: str, rng: np.random.Generator) -> str:
    """The reasoning that ends without an outline: what the tile shows, and what it does not."""
    look = look_at(image)
    concept = concept_of(concept_key)
    # Of what no body holds one need not say more; and a word that is unknown cannot be repeated.
    name, many = ("such thing", False) if concept.thing else (concept.name, concept.plural)
    dark = percent_word(look.dark_fraction)
    seen = _any(rng, f"Dark spots cover {dark} of it.", f"Dark parts make up {dark} of it.")
    none = _any(
        rng,
        f"No {name} {'are' if many else 'is'} seen here",
        f"No {name} can be found here",
        f"There {'are' if many else 'is'} no {name} here",
        f"Nothing here looks like {'that' if concept.thing else name}",
    )
    end = _any(rng, "so there is nothing to outline.", "so nothing is outlined.", "so no outline is drawn.")
    return f"{_overview(look, rng)} {seen} {none}, {end}"


def _overview(look: Look, rng: np.random.Generator) -> str:
    tile = _any(rng, "The tile", "This tile", "The picture", "The field")
    if look.tissue_fraction < 0.02:
        return f"{tile} {_any(rng, 'is almost empty', 'shows almost no tissue')} and {colour_word(look.rgb)}."
    kind = f"{texture_word(look.roughness)} {colour_word(look.rgb)} tissue"
    share = percent_word(look.tissue_fraction)
    return f"{tile} {_any(rng, 'shows', 'holds')} {kind} over {share} of its area."


def _evidence(found: Findings, concept: Concept, mpp: float | None, rng: np.random.Generator) -> str:
    place, share = place_word(found), percent_word(found.area_fraction)
    tone = "darker" if found.contrast > 12 else "paler" if found.contrast < -12 else "about as dark"
    than = "as" if tone == "about as dark" else "than"
    surroundings = (
        _any(rng, "their surroundings", "the rest")
        if concept.plural
        else _any(rng, "its surroundings", "the rest")
    )
    cover = _any(rng, "cover", "fill")
    if not concept.plural or merged(found):  # a region: where, how much, how it stands out
        in_parts = "one part" if found.count == 1 else f"{number_word(found.count)} parts"
        they, be, verb = ("They", "are", cover) if concept.plural else ("It", "is", f"{cover}s")
        covers = f"{they} {verb} {share} of the tile"
        return f"There {be} {concept.name} {place}, in {in_parts}. {covers} and {be} {tone} {than} {surroundings}."
    one = found.count == 1
    counted = number_word(found.count)
    name = _one(concept) if one else concept.name
    size = "" if mpp is None else f", {size_word(found.diameter_px * mpp)} wide"
    shape = shape_word(found.elongation)
    they, be = ("It", "is") if one else ("They", "are")
    shape = shape if one else f"{_any(rng, 'mostly', 'often')} {shape}"
    verb = f"{cover}s" if one else cover
    seen = f"There {be} {counted} {name} {place}{size}."
    return f"{seen} {they} {be} {shape}, {tone} {than} {surroundings}, and {verb} {share} of the tile."


def merged(found: Findings) -> bool:
    """Few objects that fill much of the tile: touching ones have run together; a count would mislead."""
    return found.count <= 3 and found.area_fraction / found.count > 0.15


def _closing(concept: Concept, rng: np.random.Generator) -> str:
    if concept.plural:
        return _any(rng, "They are outlined.", "I outline them.", f"The {concept.name} are outlined.")
    return _any(rng, "It is outlined.", "I outline it.", f"The {concept.name} is outlined.")


def _one(concept: Concept) -> str:
    for noun in concept.names:
        if noun.number == "singular":
            return noun.text
    return concept.name


def _any(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]
