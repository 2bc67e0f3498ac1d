"""Tiles on their way to a CUDA device, while it works on those before them.

Pinned memory and a stream of its own let the copy run beside the kernels (CUDA C++ Programming Guide, "Asynchronous
Concurrent Execution"; PyTorch's notes on CUDA semantics, "Use pinned memory buffers").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from wsiseg.model import is_out_of_memory


def upload(tiles: np.ndarray, device: torch.device) -> Callable[[], np.ndarray | torch.Tensor]:
    """Begin to copy tiles (B, H, W, 3) uint8 to a CUDA device; what is returned gives them there, when they are needed.

    It is called in the thread, and under the stream, that work on them. For another device, and where there is no
    room for them yet, nothing is copied: it gives `tiles`.
    """
    if device.type != "cuda":
        return lambda: tiles
    stream = _copying(device)
    try:
        # The pinned block may go out of sight at once: it is not used anew before its copy is done.
        with torch.cuda.stream(stream):
            host = torch.from_numpy(np.require(tiles, requirements=["C", "W"])).pin_memory()
            there = host.to(device, non_blocking=True)
            copied = stream.record_event()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return lambda: tiles

    def arrived() -> torch.Tensor:
        working = torch.cuda.current_stream(device)
        working.wait_event(copied)
        there.record_stream(working)  # its memory is the copying stream's, which may not use it anew before `working`
        return there

    return arrived


@lru_cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
