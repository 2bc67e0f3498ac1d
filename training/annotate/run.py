"""Chains for a store: several images at once, replies kept as they come, results written whole at the end or at a stop.

`open.replies.jsonl` beside the store is what was paid for; `chains.jsonl` in it follows from that. So a run that was
killed at any time goes on when it is started again, and one that was done costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsiseg.errors import DataError, EndpointError
from wsiseg.files import check_writable, remove_leftovers
from wsiseg.fleet.claim import ClaimHeldError, claimed
from wsiseg.training.annotate.limits import Budget, BudgetSpent
from wsiseg.training.annotate.replies import Replies, Reply, read_replies, replies_path
from wsiseg.training.annotate.request import RefusedError, Request
from wsiseg.training.annotate.write import TEMPLATE, Writers, write_chain
from wsiseg.training.data.chains import CHAINS, Chain, read_chains, write_chains
from wsiseg.training.data.concepts import concept_of
from wsiseg.training.data.store import Quadruplet, QuadrupletStore

if TYPE_CHECKING:
    from wsiseg.training.annotate.endpoint import Endpoint

_FAILURES = 5  # in a row; then the server is taken for broken
_DRAFT_TOKENS, _PROMPT_TOKENS = 200, 350  # of a reply, and of what the reasoner is told, for estimates


@dataclass
class Report:
    """What became of the questions. `stopped` says why not all were asked, if so."""

    questions: int = 0
    written: int = 0  # with the sentences of a model, or of the template where no model was asked for
    corrected: int = 0  # of those, sent back once
    fell_back: int = 0  # too little stood: the store's own chain stays
    failed: int = 0  # refused by the server: to be tried again by the next run
    reason: str = ""  # why, of the last that failed
    requests: int = 0
    reused: int = 0  # replies of earlier runs
    statements: Counter[str] = field(default_factory=Counter)  # by verdict
    stopped: str = ""

    def add(self, chain: Chain) -> None:
        self.written += bool(chain.text)
        self.corrected += chain.corrected and bool(chain.text)
        self.fell_back += not chain.text
        self.statements.update(statement.verdict for statement in chain.statements)


@dataclass
class Estimate:
    """What a run would ask: requests (one more for each chain that is sent back), and tokens as far as foreseen."""

    questions: int
    requests: int = 0
    reused: int = 0
    tokens_in: Counter[str] = field(default_factory=Counter)  # by model
    tokens_out: Counter[str] = field(default_factory=Counter)


def questions_of(store: QuadrupletStore, split: str | None, limit: int | None) -> dict[int, list[Quadruplet]]:
    """What is to be annotated, by image: each structure once; of things that no body holds the template says enough.

    Raises DataError: there is nothing.
    """
    asked: dict[int, dict[str, Quadruplet]] = {}
    count = 0
    for question in store.quadruplets:
        if split not in (None, store.records[question.image].split) or concept_of(question.concept).thing:
            continue
        if question.concept in asked.get(question.image, {}):
            continue
        if count == limit:
            break
        asked.setdefault(question.image, {})[question.concept] = question
        count += 1
    if not asked:
        raise DataError(f"{store.path} holds no question{f' of the split {split}' if split else ''} to annotate")
    return {image: list(questions.values()) for image, questions in asked.items()}


def estimate(store: QuadrupletStore, asked: dict[int, list[Quadruplet]], writers: Writers) -> Estimate:
    """Count what `annotate` would ask, without asking."""
    missing: set[str] = set()
    replies = read_replies(replies_path(store.path))
    told = Estimate(questions=sum(map(len, asked.values())))

    async def ask(request: Request) -> Reply:
        if request.key not in replies:
            raise _Unasked(request)
        told.reused += 1
        return replies[request.key]

    def expect(model: str, tokens: int) -> None:
        told.requests += 1
        told.tokens_in[model] += tokens
        told.tokens_out[model] += _DRAFT_TOKENS

    async def go_through() -> None:
        for image, questions in asked.items():
            sample = store.sample(image)
            for question in questions:
                try:
                    await write_chain(sample, question, writers, ask)
                except _Unasked as unasked:
                    request = unasked.request
                    if request.key not in missing:
                        missing.add(request.key)
                        expect(request.model, request.expected_tokens())
                    if request.picture is not None and writers.reasoner != TEMPLATE:  # which comes after it
                        expect(writers.reasoner, _PROMPT_TOKENS + _DRAFT_TOKENS)

    _run_to_the_end(go_through())
    return told


def annotate(
    store: QuadrupletStore,
    asked: dict[int, list[Quadruplet]],
    writers: Writers,
    endpoint: Endpoint | None,
    budget: Budget,
    *,
    at_once: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write the chains of `asked` into the folder of the store, beside those that it has.

    Args:
        endpoint: None if the template describes and reasons.
        at_once: images, and with them requests, under way together.
        progress: called with (done, total) questions.

    Raises:
        EndpointError: the server lets us not in, or failed several times in a row; what was done is kept.
        OutputError: the store cannot be written.
        DataError: another process annotates it.
    """
    if endpoint is not None:
        check_writable(replies_path(store.path))
    try:
        with claimed(store.path / ".claim"), Replies(replies_path(store.path)) as replies:
            remove_leftovers(store.path / CHAINS)
            run = _Run(store, asked, writers, endpoint, budget, replies, progress)
            try:
                _run_to_the_end(run.all(at_once))
            finally:
                if run.chains:
                    kept = read_chains(store.path) | run.chains
                    order = {record.name: i for i, record in enumerate(store.records)}
                    write_chains(store.path, sorted(kept.values(), key=lambda c: (order.get(c.image, -1), c.concept)))
    except ClaimHeldError as error:
        raise DataError(f"{error} annotates {store.path} already: wait for it") from error
    return run.report


def _run_to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, in a thread of its own where this one has a loop already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


class _Unasked(Exception):
    def __init__(self, request: Request) -> None:
        self.request = request


def _tell_unless_stopped(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Nobody is left to ask a task in which a signal ended the program: asyncio would print its traceback."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)


class _Run:
    """The state of a run: what is left to ask, what was written."""

    def __init__(
        self,
        store: QuadrupletStore,
        asked: dict[int, list[Quadruplet]],
        writers: Writers,
        endpoint: Endpoint | None,
        budget: Budget,
        replies: Replies,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.store, self.asked, self.writers, self.endpoint = store, asked, writers, endpoint
        self.budget, self.replies, self.progress = budget, replies, progress
        self.report = Report(questions=sum(map(len, asked.values())))
        self.chains: dict[tuple[str, str], Chain] = {}
        self._left: Iterator[int] = iter(asked)
        self._failures = self._done = 0

    async def all(self, at_once: int) -> None:
        """Go through the images, `at_once` of them together. The first error stops all."""
        asyncio.get_running_loop().set_exception_handler(_tell_unless_stopped)
        try:
            workers = [asyncio.create_task(self._work()) for _ in range(at_once)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        finally:
            if self.endpoint is not None:
                await self.endpoint.close()

    async def _work(self) -> None:
        for image in self._left:
            sample = self.store.sample(image)
            for question in self.asked[image]:
                if self.report.stopped:
                    return
                try:
                    chain = await write_chain(sample, question, self.writers, self._ask)
                except BudgetSpent:
                    self.report.stopped = "the budget allows no further request"
                    return
                except RefusedError as error:
                    self.report.failed += 1
                    self.report.reason = str(error)
                    self._failures += 1
                    if self._failures == _FAILURES:
                        raise EndpointError(f"{error}; so failed {_FAILURES} questions in a row") from error
                else:
                    self._failures = 0
                    self.chains[chain.key] = chain
                    self.report.add(chain)
                self._done += 1
                if self.progress:
                    self.progress(self._done, self.report.questions)
            await asyncio.sleep(0)  # where every reply is at hand, the others have their turn, too

    async def _ask(self, request: Request) -> Reply:
        if (kept := self.replies.get(request.key)) is not None:
            self.report.reused += 1
            return kept
        if self.endpoint is None:
            raise EndpointError("there is no --endpoint to ask")
        reserved = self.budget.reserve(request)
        try:
            reply = await self.endpoint.ask(request)
            self.report.requests += 1
        finally:
            self.budget.release(request, reserved)
        self.budget.spend(request, reply)
        if not reply.text.strip():
            raise RefusedError(f"{request.model} answered with no text; it may need more --answer-tokens")
        self.replies.add(request.key, reply)
        return reply
