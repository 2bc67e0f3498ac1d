"""Signals to the programs that tests start."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """For `preexec_fn`: what runs in the background of a shell begins with SIGINT ignored, and so would the child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
