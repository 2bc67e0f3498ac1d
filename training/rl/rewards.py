"""What an answer is worth: five pure functions and their weighted sum (docs/so-grpo.md §2).

    R = w · (R_soft, R_sparse, R_spatial, R_format, R_len)

R_soft of an answer that asked for a mask is `wsiseg.training.losses.soft_dice`.
Masks enter as logits M and targets G in [0, 1], both (N, H, W); p = σ(M). R_soft and R_spatial carry gradients
to M: they are also the pathwise term of `wsiseg.training.rl.loss`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import torch
from torch.nn import functional as F

from wsiseg.training.losses import SMOOTH_PX

CELLS = 8  # R_spatial compares occupancy on 8 × 8 cells


class Ending(Enum):
    """How an answer stopped."""

    SEG = "seg"  # it asked for a mask
    SILENT = "silent"  # it ended without one
    CUT = "cut"  # the token limit cut it off


@dataclass(frozen=True)
class RewardParts:
    """The five rewards of N answers, each (N,), unweighted."""

    soft: torch.Tensor
    sparse: torch.Tensor
    spatial: torch.Tensor
    format: torch.Tensor
    length: torch.Tensor


def occupancy_overlap(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """R_spatial of answers that asked for a mask: the right place, whatever the detail. (N, H, W) → (N,).

    With P, Q the pixels of p and g in each cell of an 8 × 8 grid: (Σmin(P, Q) + ε) / (Σmax(P, Q) + ε), which for
    an absent target is ε / (Σp + ε), the rule of `soft_dice`. The paper names this reward without defining it.

    >>> left = torch.full((1, 16, 16), -50.0); left[:, :, :8] = 50.0          # the left half
    >>> middle = torch.zeros(1, 16, 16); middle[:, :, 4:12] = 1.0             # half of it is shared
    >>> round(occupancy_overlap(left, middle).item(), 3)                      # (64 + 1) / (192 + 1)
    0.337
    """
    p = F.adaptive_avg_pool2d(logits.sigmoid()[:, None], CELLS).flatten(1)
    g = F.adaptive_avg_pool2d(target[:, None], CELLS).flatten(1)
    cell_px = target[0].numel() / CELLS**2
    shared, covered = torch.minimum(p, g).sum(1) * cell_px, torch.maximum(p, g).sum(1) * cell_px
    return (shared + SMOOTH_PX) / (covered + SMOOTH_PX)


def silence_reward(ending: Ending, present: bool) -> float:
    """R_soft and R_spatial of an answer without a mask: 1 for silence about what is absent, else 0.

    Silence must be the right act there: an all-background mask at logit −8 would score only 0.04 (256² px).

    >>> silence_reward(Ending.SILENT, present=False), silence_reward(Ending.SILENT, present=True)
    (1.0, 0.0)
    >>> silence_reward(Ending.CUT, present=False)  # it was about to go on
    0.0
    """
    return float(ending is Ending.SILENT and not present)


# Position, boundary, region, extent, arrangement, and numbers with µm or %.
SPATIAL_WORDS = re.compile(
    r"\b(upper|lower|left|right|top|bottom|centre|center|central|periphery|boundar\w+|border\w*|margin\w*|edge\w*"
    r"|contour\w*|region\w*|area\w*|part|parts|cover\w*|fill\w*|extent|diffuse\w*|surround\w*|cluster\w*|scatter\w*"
    r"|arranged|adjacent|inside|outside|within|between|all over)\b|\d\s*(µm|um|%)"
)
REFUSAL = re.compile(r"\b(no|not|nothing|none|cannot|absent)\b")


def sentences(text: str) -> list[str]:
    """The sentences of a chain, in lower case; a decimal point ends none, nor does that of an initial.

    >>> sentences("Two H. pylori, 2.5 µm long. p53 is not seen.")
    ['two h. pylori, 2.5 µm long.', 'p53 is not seen.']
    """
    return [s.strip() for s in re.split(r"(?<=[.!?])(?<!\b[a-z]\.)\s+", text.strip().lower()) if s.strip()]


def emission_reward(text: str, ending: Ending, bonus: float = 0.1, penalty: float = 0.1) -> float:
    """R_sparse, paid at the step that emits `<SEG>`: +β_s if the chain has just said where, −γ_s otherwise.

    s_T ∈ S_spatial means: a spatial phrase (`SPATIAL_WORDS`) in the last two sentences. An indicator, so that
    saying "boundary" twice pays nothing more. Zero without `<SEG>`; never paid at an earlier state, where it would
    reward talking.

    >>> emission_reward("Two glands in the upper left. They are outlined.", Ending.SEG)
    0.1
    >>> emission_reward("Here you are.", Ending.SEG), emission_reward("No gland at the top.", Ending.SILENT)
    (-0.1, 0.0)
    """
    if ending is not Ending.SEG:
        return 0.0
    said = any(SPATIAL_WORDS.search(sentence) for sentence in sentences(text)[-2:])
    return bonus if said else -penalty


def format_reward(text: str, ending: Ending) -> float:
    """R_format: 1 for whole sentences of reasoning and then `<SEG>`, or ending in a refusal without it; else 0.

    >>> format_reward("Two glands on the left. They are outlined.", Ending.SEG)
    1.0
    >>> format_reward("No gland is seen here, so nothing is outlined.", Ending.SILENT)
    1.0
    >>> format_reward("No gland is seen here.", Ending.SEG), format_reward("Two glands.", Ending.SILENT)
    (0.0, 0.0)
    >>> format_reward("Two glands on the", Ending.SEG), format_reward("", Ending.SEG)
    (0.0, 0.0)
    """
    chain = sentences(text)
    if ending is Ending.CUT or not chain or chain[-1][-1] not in ".!?":
        return 0.0
    refuses = REFUSAL.search(chain[-1]) is not None
    return float(refuses == (ending is Ending.SILENT))


def length_reward(tokens: int, ending: Ending, *, low: int, high: int, limit: int) -> float:
    """R_len ∈ [−1, 0]: −(T − L_hi)/(T_max − L_hi) above L_hi, −(L_lo − T)/L_lo below L_lo, −1 when cut off.

    DAPO's soft overlong penalty (arXiv:2503.14476 §3.4) and a floor. Without a price on length "when to stop" has
    no answer: later would never be worse.

    >>> [length_reward(t, Ending.SEG, low=10, high=60, limit=100) for t in (5, 10, 60, 80)]
    [-0.5, 0.0, 0.0, -0.5]
    >>> length_reward(100, Ending.CUT, low=10, high=60, limit=100)
    -1.0
    """
    if ending is Ending.CUT:
        return -1.0
    if tokens > high:
        return -(tokens - high) / (limit - high)
    return -(low - tokens) / low if tokens < low else 0.0


def total_reward(parts: RewardParts, weights: dict[str, float]) -> torch.Tensor:
    """R = Σ w·part, (N,).

    >>> one = torch.ones(1)
    >>> total_reward(RewardParts(one, one, one, one, -one), dict(soft=1, sparse=1, spatial=0.5, format=0.2, length=0.2))
    tensor([2.5000])
    """
    return torch.stack([weights[name] * part for name, part in vars(parts).items()]).sum(0)
