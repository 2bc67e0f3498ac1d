"""What `wsiseg evaluate` compares an answer by, pure functions of masks and of chains, and the intervals of means.

Masks are boolean (H, W) arrays of one plane. Conventions differ between papers exactly where masks are empty;
each function states its own. Sources: Metrics Reloaded (Maier-Hein 2024) for HD95, Papineni 2002 and Lin & Och
2004 for BLEU, Rajpurkar 2016 for token F1, Efron's percentile bootstrap for the intervals. What is made of many
answers is in `wsiseg.training.figures`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

NAN = float("nan")
_LEVEL = 0.95  # of the intervals


# ---- overlap of two masks -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of one predicted and one true mask; everything below follows from these four numbers."""

    intersection_px: int
    predicted_px: int
    truth_px: int

    @property
    def union_px(self) -> int:
        return self.predicted_px + self.truth_px - self.intersection_px


def overlap(predicted: np.ndarray, truth: np.ndarray) -> Overlap:
    """Count the pixels of two masks of equal shape; anything non-zero is inside.

    Raises:
        ValueError: the shapes differ.

    >>> overlap(np.array([[1, 1, 0, 0]]), np.array([[0, 1, 1, 1]]))
    Overlap(intersection_px=1, predicted_px=2, truth_px=3)
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks differ in shape: predicted {predicted.shape}, truth {truth.shape}")
    p, g = predicted.astype(bool), truth.astype(bool)
    return Overlap(int(np.count_nonzero(p & g)), int(np.count_nonzero(p)), int(np.count_nonzero(g)))


def dice(counts: Overlap) -> float:
    """2 |P∩G| / (|P|+|G|); 1 when both are empty: silence about what is absent is the right answer.

    >>> dice(Overlap(1, 2, 3))
    0.4
    """
    total = counts.predicted_px + counts.truth_px
    return 2 * counts.intersection_px / total if total else 1.0


def iou(counts: Overlap) -> float:
    """|P∩G| / |P∪G|; 1 when both are empty.

    >>> iou(Overlap(1, 2, 3))
    0.25
    """
    return counts.intersection_px / counts.union_px if counts.union_px else 1.0


def hd95(predicted: np.ndarray, truth: np.ndarray) -> float:
    """95th-percentile Hausdorff distance between the two outlines, in pixels.

    The larger of the two directed 95th percentiles (Metrics Reloaded; medpy pools both directions instead).
    An outline is the mask's pixels that touch the background or the image's edge (4-neighbours).
    Both masks empty: 0. One of them empty: the image's diagonal, the largest distance there is. A missed
    structure must cost something; with NaN a model would improve its mean by saying nothing.

    >>> mask = np.zeros((1, 10), bool); other = mask.copy(); mask[0, 2] = other[0, 5] = True
    >>> hd95(mask, other)
    3.0
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if predicted.shape != truth.shape:
        raise ValueError(f"masks differ in shape: predicted {predicted.shape}, truth {truth.shape}")
    p, g = predicted.astype(bool), truth.astype(bool)
    if not p.any() or not g.any():
        return 0.0 if p.any() == g.any() else math.hypot(*p.shape)
    outline_p, outline_g = (mask & ~binary_erosion(mask) for mask in (p, g))
    # All outline pixels lie in their common bounding box: outside it there is no distance to ask for.
    rows, columns = (np.flatnonzero((p | g).any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    outline_p, outline_g = outline_p[box], outline_g[box]
    to_g = distance_transform_edt(~outline_g)[outline_p]
    to_p = distance_transform_edt(~outline_p)[outline_g]
    return float(max(np.percentile(to_g, 95), np.percentile(to_p, 95)))


# ---- chains ---------------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    """Lower-case words, numbers (a decimal is one token) and single punctuation marks.

    >>> tokens("About 12.5 µm, round.")
    ['about', '12.5', 'µm', ',', 'round', '.']
    """
    return re.findall(r"\d+(?:\.\d+)?|\w+|[^\w\s]", text.lower())


def bleu4(candidate: str, reference: str) -> float:
    """Sentence BLEU-4 of one chain against one reference, in [0, 1].

    exp(min(0, 1 − r/c)) · (p₁p₂p₃p₄)^¼ with clipped n-gram precisions p_n (Papineni 2002); for n ≥ 2 both
    counts are raised by one (Lin & Och 2004, "method 2" of Chen & Cherry 2014), so that a chain without a
    common 4-gram is small rather than zero. No common word: 0. Both texts empty: 1.

    >>> round(bleu4("the cat sat", "the cat ran"), 4)    # (2/3 · 2/3 · 1/2 · 1/1)^¼
    0.6866
    """
    words, wanted = tokens(candidate), tokens(reference)
    if not words or not wanted:
        return float(words == wanted)
    log_precision = 0.0
    for n in range(1, 5):
        grams, wanted_grams = _ngrams(words, n), _ngrams(wanted, n)
        hits, total = (grams & wanted_grams).total(), grams.total()
        if n == 1 and hits == 0:
            return 0.0
        smooth = 0 if n == 1 else 1
        log_precision += math.log((hits + smooth) / (total + smooth)) / 4
    return math.exp(min(0.0, 1 - len(wanted) / len(words)) + log_precision)


def token_f1(candidate: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the bags of tokens (Rajpurkar 2016); 1 when both are empty.

    >>> round(token_f1("two round glands", "round glands here"), 4)
    0.6667
    """
    words, wanted = Counter(tokens(candidate)), Counter(tokens(reference))
    if not words and not wanted:
        return 1.0
    return 2 * (words & wanted).total() / (words.total() + wanted.total())


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


# ---- intervals ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A figure over n samples with its bootstrap interval; bounds are NaN where there can be none."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Σ numerators / Σ denominators with its 95 % percentile bootstrap interval; without denominators a mean.

    Every figure above is such a ratio: a mean is Σv/Σ1, cIoU is Σ|P∩G|/Σ|P∪G|. With `groups` (patients, or
    organs) whole groups are drawn, because images of one patient are not independent; without, samples are.
    Fewer than two groups give no interval. The same seed gives the same interval.

    >>> bootstrap_ratio([0.0, 1.0, 1.0, 0.0]).value
    0.5
    >>> bootstrap_ratio([1.0, 3.0], groups=["p1", "p1"])
    Interval(value=2.0, low=nan, high=nan, n=2)
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise ValueError(f"numerators {top.shape} and denominators {bottom.shape} must be equal 1-D shapes")
    if groups is not None and len(groups) != len(top):
        raise ValueError(f"{len(top)} samples but {len(groups)} group names")
    if bottom.sum() == 0:
        return Interval(NAN, NAN, NAN, len(top))
    value = float(top.sum() / bottom.sum())
    if groups is not None:
        number = {group: k for k, group in enumerate(dict.fromkeys(groups))}
        group_of = np.array([number[group] for group in groups])
        top, bottom = (np.bincount(group_of, x).astype(np.float64) for x in (top, bottom))
    if len(top) < 2:
        return Interval(value, NAN, NAN, len(numerators))
    # Drawing k groups with replacement = multinomial counts of each group: (resamples, k) @ (k,).
    draws = np.random.default_rng(seed).multinomial(len(top), np.full(len(top), 1 / len(top)), resamples)
    sums = draws @ bottom
    drawn = (draws @ top)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high), len(numerators))
