"""How a run over many slides goes: a live table on a terminal, one line a slide elsewhere; on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from wsiseg.fleet import Job, Record

ROWS = 12  # of slides done or failed that stay in sight


class SlideTable:
    """A `fleet.Report`. Attributes: total slides of this run; done, kept, failed: how many so far."""

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        self.done = self.kept = self.failed = 0
        self._now: dict[str, str] = {}  # slides at work -> how far
        self._rows: list[tuple[str, str, str, str, str]] = []
        self._begin = time.monotonic()

    def running(self, job: Job, done: int, total: int) -> None:
        self._now[job.name] = f"{done:,} / {total:,} tiles"

    def held(self, job: Job, by: str) -> None:
        if job.name not in self._now:
            self._now[job.name] = f"waits for {by}"
            self._print(f"{job.name}: {by} is at work on it; waiting")

    def finished(self, job: Job, record: Record, kept: bool) -> None:
        self._now.pop(job.name, None)
        self.done += record.status == "done"
        self.kept += kept
        self.failed += record.status == "failed"
        polygons = f"{sum(record.polygons.values()):,}"
        said = "kept" if kept else record.status
        self._rows.append((job.name, said, f"{record.tiles:,}", polygons, f"{record.seconds:.1f}"))
        count = f"{self.done + self.failed}/{self.total}"
        if record.status == "failed":
            self._print(f"{count} {job.name}: failed: {record.reason}")
        elif not kept:
            self._print(f"{count} {job.name}: {polygons} outlines, {record.tiles:,} tiles, {record.seconds:.1f} s")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(f"wsiseg: {text}", markup=False, highlight=False, soft_wrap=True)

    def _print(self, text: str) -> None:
        if not self.console.is_terminal:
            self.say(text)

    def __rich__(self) -> Table:
        minutes, seconds = divmod(int(time.monotonic() - self._begin), 60)
        counts = f"{self.done} of {self.total} done ({self.kept} kept), {self.failed} failed, {minutes}:{seconds:02}"
        table = Table(title=counts, title_justify="left", expand=False)
        table.add_column("slide", overflow="ellipsis", no_wrap=True)
        table.add_column("status", no_wrap=True)
        for name in ("tiles", "outlines", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        at_work = [(name, how_far, "", "", "") for name, how_far in list(self._now.items())[:ROWS]]
        for row in [*self._rows[-ROWS:], *at_work]:
            table.add_row(*map(Text, row))  # not as rich's markup, which takes [x] in a name for a style
        return table


@contextmanager
def live_table(total: int, *, quiet: bool) -> Iterator[SlideTable]:
    """A table that lives as long as the block."""
    console = Console(stderr=True, quiet=quiet)
    table = SlideTable(total, console)
    if quiet or not console.is_terminal:
        yield table
        return
    handlers = [h for h in logging.getLogger("wsiseg").handlers if isinstance(h, logging.StreamHandler)]
    before = [handler.stream for handler in handlers]
    with Live(table, console=console, refresh_per_second=4):
        for handler in handlers:  # Live's stand-in for stderr prints above the table, not into it
            handler.setStream(sys.stderr)
        try:
            yield table
        finally:
            for handler, stream in zip(handlers, before, strict=True):
                handler.setStream(stream)
