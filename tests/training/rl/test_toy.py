"""On a task whose best stop is known, SO-GRPO finds it sooner than GRPO (lineage.md §3.7; medians over 24 seeds)."""

from __future__ import annotations

import pytest
import torch

from wsiseg.training.rl.toy import COST, QUALITY, STEPS, TRUNCATED, best_return, expected_return, learn


def test_the_best_policy_stops_once_waiting_no_longer_pays() -> None:
    """q rises by more than the cost until some steps after k_c; the exact return of that policy is the optimum."""
    best = []
    for quality in QUALITY:
        by_stop = [float(quality[t]) - COST * t for t in range(STEPS)] + [TRUNCATED - COST * STEPS]
        best.append(max(by_stop))
    assert best_return() == pytest.approx(sum(best) / len(best), abs=1e-5)
    stops = torch.tensor([max(range(STEPS), key=lambda t: float(q[t]) - COST * t) for q in QUALITY])
    logits = torch.where(torch.arange(STEPS) == stops[:, None], 30.0, -30.0)
    assert float(expected_return(logits)) == pytest.approx(best_return(), abs=1e-5)


@pytest.mark.parametrize("start_logit", [-3.5, -2.0])
def test_so_grpo_finds_the_best_stop_sooner_than_grpo(start_logit: float) -> None:
    grpo, so_grpo = (learn(c=c, start_logit=start_logit, updates=400).updates_to(0.95) for c in (0.0, 0.6))
    assert so_grpo.isfinite().float().mean() >= 0.75  # most seeds get there
    assert float(so_grpo.median()) < 0.9 * float(grpo.median())  # 238 against 310, 218 against 300
