"""How fast requests may follow each other, and how much they may cost."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from wsiseg.training.annotate.replies import Reply
from wsiseg.training.annotate.request import Request


class BudgetSpent(Exception):
    """One more request might exceed the budget."""


class Pace:
    """At most `per_minute` requests a minute, evenly; none before the time for which a server asked."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Wait until the next request may start."""
        while (wait := self._next - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        self._next = max(self._next, time.monotonic()) + self._interval

    def pause(self, seconds: float) -> None:
        """Let no request start for so long."""
        self._next = max(self._next, time.monotonic() + seconds)


@dataclass(frozen=True)
class Price:
    """Of a million tokens read, and written, in whatever currency `--max-cost` is in."""

    tokens_in: float
    tokens_out: float

    def of(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclass
class Budget:
    """What a run has spent, by model, and may spend. Requests under way count with the most that is expected."""

    answer_tokens: int
    prices: Mapping[str, Price] = field(default_factory=dict)
    max_tokens: float = math.inf
    max_cost: float = math.inf
    tokens_in: Counter[str] = field(default_factory=Counter)
    tokens_out: Counter[str] = field(default_factory=Counter)
    _reserved_tokens: int = 0  # for what is under way
    _reserved_cost: float = 0.0
    _most_in: dict[tuple[str, bool], int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.tokens_in.total() + self.tokens_out.total()

    @property
    def cost(self) -> float:
        return sum(price.of(self.tokens_in[model], self.tokens_out[model]) for model, price in self.prices.items())

    def reserve(self, request: Request) -> int:
        """Set the most aside that the request is expected to cost; returns the tokens it may read.

        Raises BudgetSpent: that is more than is left.
        """
        kind = request.model, request.picture is not None
        tokens_in = max(self._most_in.get(kind, 0), request.expected_tokens())
        cost = self._price(request).of(tokens_in, self.answer_tokens)
        if (
            self.tokens + self._reserved_tokens + tokens_in + self.answer_tokens > self.max_tokens
            or self.cost + self._reserved_cost + cost > self.max_cost
        ):
            raise BudgetSpent
        self._reserved_tokens += tokens_in + self.answer_tokens
        self._reserved_cost += cost
        return tokens_in

    def release(self, request: Request, reserved_in: int) -> None:
        """Take back what was set aside."""
        self._reserved_tokens -= reserved_in + self.answer_tokens
        self._reserved_cost -= self._price(request).of(reserved_in, self.answer_tokens)

    def spend(self, request: Request, reply: Reply) -> None:
        kind = request.model, request.picture is not None
        self._most_in[kind] = max(self._most_in.get(kind, 0), reply.tokens_in)
        self.tokens_in[request.model] += reply.tokens_in
        self.tokens_out[request.model] += reply.tokens_out

    def _price(self, request: Request) -> Price:
        return self.prices.get(request.model, Price(0.0, 0.0))
