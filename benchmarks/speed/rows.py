"""One line of the table, and how it is measured: CPU time of a fresh process, so that ways do not share."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    """What every part is given."""

    slide: Path  # the synthetic pyramid
    folder: Path  # for files, removed at the end
    repeat: int  # the minimum of so many runs counts


@dataclass(frozen=True)
class Row:
    """CPU seconds (user + system) per `unit`; ratio_to_peer: how many times cheaper than the peer."""

    part: str
    way: str
    cpu_s: float
    unit: str
    peak_mb: float
    ratio_to_peer: float | None = None


@dataclass(frozen=True)
class Cost:
    cpu_s: float
    wall_s: float
    peak_mb: float
    result: Any


def measure_cost(function: Callable[..., Any], *arguments: Any, repeat: int = 1) -> Cost:
    """Run a module-level function in a new process; the cheapest of `repeat` runs. Imports are not counted
    beyond the first run, so `repeat` should be at least 2 for what imports lazily."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run, function, arguments, repeat).result()


def _run(function: Callable[..., Any], arguments: tuple[Any, ...], repeat: int) -> Cost:
    best: Cost | None = None
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if best is None or cpu < best.cpu_s:
            best = Cost(cpu, wall, 0.0, result)
    assert best is not None
    return replace(best, peak_mb=_peak_mb())


def _peak_mb() -> float:
    """Of this process alone: after fork and exec, ru_maxrss still holds the parent's peak on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def with_ratios(rows: list[Row], peer: str) -> list[Row]:
    """The same rows with `ratio_to_peer` against the row whose way is `peer`."""
    (reference,) = (row.cpu_s for row in rows if row.way == peer)
    return [replace(row, ratio_to_peer=reference / row.cpu_s) for row in rows]


def as_table(rows: list[Row]) -> str:
    lines = ["| part | way | CPU s | per | peak MB | times cheaper than peer |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio_to_peer is None else f"{row.ratio_to_peer:.1f}"
        lines.append(
            f"| {row.part} | {row.way} | {row.cpu_s:.3g} | {row.unit} | {row.peak_mb:.0f} | {ratio} |"
        )
    return "\n".join(lines)
