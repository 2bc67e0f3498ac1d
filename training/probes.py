"""Fit training-only linear probes to the model as it is, before it trains.

A probe that starts at random first bends the features that it reads; what the model could do on other data suffers
(Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution").
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_DECAY = 5e-3  # times the squared weights, whatever the number of samples
_ITERATIONS = 200


def fit_linear(probe: nn.Linear, states: torch.Tensor, labels: torch.Tensor) -> float:
    """Fit a logistic regression in place, by L-BFGS; returns its loss without the decay.

    Args:
        states: (N, H).
        labels: (N,) int64 of classes, or of 0 and 1 for a probe with one output.
    """
    states = states.detach().float()

    def loss() -> torch.Tensor:
        logits = probe(states)
        if probe.out_features == 1:
            return F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
        return F.cross_entropy(logits, labels)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss() + _DECAY * probe.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.no_grad():
        probe.weight.zero_()
        probe.bias.zero_()
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()
    return float(loss().detach())
