"""Chance that follows from a name: the same for the same name, on any machine."""

from __future__ import annotations

import hashlib

import numpy as np


def rng_of(name: str) -> np.random.Generator:
    """A generator of random numbers whose only seed is the name."""
    return np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16))


def chance(name: str) -> float:
    """0 to 1."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8


def split_of(group: str) -> str:
    """One group (patient, slide, image) in five validates."""
    return "val" if chance(group) < 0.2 else "train"
