"""The same bytes from the same device, whatever else runs on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wsiseg.inference.held import Held, threads_held


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside the block torch takes only algorithms that give the same bits every time, and one thread of the CPU.

    Several threads share out a sum by how many they are, which OMP_NUM_THREADS or a scheduler may change.

    Raises:
        RuntimeError: within the block, of an operation for which torch has no such algorithm on the device.
    """
    fix_cublas_workspace()
    with threads_held(), _algorithms_held():
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        torch.set_num_threads(1)
        yield


def _algorithms() -> tuple[bool, bool, bool]:
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), only_warn, torch.backends.cudnn.benchmark


def _put_algorithms(before: tuple[bool, bool, bool]) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.benchmark = before[2]


_algorithms_held = Held(_algorithms, _put_algorithms)


def fix_cublas_workspace() -> None:
    """CUDA's matrix products need one of fixed size to give the same bits; torch looks once, at the first of them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
