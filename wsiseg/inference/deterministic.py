"""The same bytes from the same device, whatever else runs on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside the block torch takes only algorithms that give the same bits every time, and one thread of the CPU.

    Several threads share out a sum by how many they are, which OMP_NUM_THREADS or a scheduler may change.

    Raises:
        RuntimeError: within the block, of an operation for which torch has no such algorithm on the device.
    """
    fix_cublas_workspace()
    import torch

    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    before = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(before, warn_only=only_warn)


def fix_cublas_workspace() -> None:
    """CUDA's matrix products need one of fixed size to give the same bits; torch looks once, at the first of them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
