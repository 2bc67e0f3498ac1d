"""`wsiseg data annotate`: reasoning chains by models, checked against the masks."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import click

from wsiseg.cli.options import Finite, progress_bar, tell, told_when_stopped
from wsiseg.errors import EndpointError

if TYPE_CHECKING:
    from wsiseg.training.annotate.limits import Budget, Price
    from wsiseg.training.annotate.run import Estimate, Report

_TOKENS = click.IntRange(min=1)
_AMOUNT = Finite(min=0, min_open=True)
_PRICE = (Finite(min=0), Finite(min=0))


@click.command("annotate")
@click.argument("store_path", metavar="STORE", type=click.Path())
@click.option("--endpoint", metavar="URL", help="An OpenAI-compatible server, up to /v1: http://localhost:8000/v1.")
@click.option("--describer", metavar="MODEL", help="Vision-language model that describes; by default the template.")
@click.option("--reasoner", metavar="MODEL", help="Language model that writes the chain; by default the template.")
@click.option(
    "--api-key-env",
    metavar="NAME",
    default="OPENAI_API_KEY",
    show_default=True,
    help="Environment variable that holds the API key, if the server wants one.",
)
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only the images of this split.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many questions: to try it out.")
@click.option("--requests-per-minute", type=_AMOUNT, help="No faster than this; by default as fast as answers come.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests at once.")
@click.option("--timeout", type=_AMOUNT, default=120.0, show_default=True, help="Seconds to wait for an answer.")
@click.option("--answer-tokens", type=_TOKENS, default=800, show_default=True, help="The longest answer to pay for.")
@click.option("--max-tokens-total", type=_TOKENS, help="Stop before this run has used more tokens, in and out.")
@click.option("--max-cost", type=_AMOUNT, help="Stop before this run has cost more; needs the prices.")
@click.option("--describer-price", type=_PRICE, metavar="IN OUT", help="Price of a million tokens read, written.")
@click.option("--reasoner-price", type=_PRICE, metavar="IN OUT", help="The same of the reasoner.")
@click.option("--dry-run", is_flag=True, help="Ask nothing; say how many requests and about how many tokens it takes.")
def annotate_command(
    store_path: str,
    endpoint: str | None,
    describer: str | None,
    reasoner: str | None,
    api_key_env: str,
    split: str | None,
    limit: int | None,
    requests_per_minute: float | None,
    concurrency: int,
    timeout: float,
    answer_tokens: int,
    max_tokens_total: int | None,
    max_cost: float | None,
    describer_price: tuple[float, float] | None,
    reasoner_price: tuple[float, float] | None,
    dry_run: bool,
) -> None:
    """Have models write reasoning chains for STORE, and check every sentence against its masks.

    \b
    wsiseg data annotate glas.zarr --endpoint http://localhost:8000/v1 --describer MODEL --reasoner MODEL

    With --describer, the images of STORE are sent to the endpoint. Answers are kept beside STORE as they come: the
    same command goes on where it was stopped, and asks nothing twice. See docs/annotate.md.
    """
    from wsiseg.training.annotate.limits import Budget, Pace
    from wsiseg.training.annotate.run import annotate, estimate, questions_of
    from wsiseg.training.annotate.write import TEMPLATE, Writers
    from wsiseg.training.data.store import QuadrupletStore

    if (describer or reasoner) and not endpoint:
        raise click.UsageError("a model needs an --endpoint to be asked at")
    if endpoint and not (describer or reasoner):
        raise click.UsageError("an --endpoint needs a --describer, a --reasoner, or both")
    prices = _prices((describer, describer_price), (reasoner, reasoner_price))
    if max_cost is not None and {describer, reasoner} - {None} - prices.keys():
        raise click.UsageError("--max-cost needs --describer-price and --reasoner-price, of the models that are asked")
    store = QuadrupletStore.open(store_path)
    asked = questions_of(store, split, limit)
    writers = Writers(describer or TEMPLATE, reasoner or TEMPLATE, endpoint or "")
    if dry_run:
        _tell_estimate(estimate(store, asked, writers), prices)
        return
    server = None
    if endpoint:
        try:
            from wsiseg.training.annotate.endpoint import Endpoint
        except ImportError as error:
            raise EndpointError(f'--endpoint needs {error.name}: `pip install "wsiseg[annotate]"`') from error

        key = os.environ.get(api_key_env)
        server = Endpoint(endpoint, key, Pace(requests_per_minute), timeout_s=timeout, answer_tokens=answer_tokens)
        if describer and not server.is_local:
            click.echo(f"wsiseg: the images of {store_path} are sent to {server.url.host}", err=True)
    budget = Budget(answer_tokens, prices, max_tokens_total or math.inf, max_cost or math.inf)
    with told_when_stopped("the same command goes on from here"), progress_bar("annotating") as advance:
        report = annotate(store, asked, writers, server, budget, at_once=concurrency, progress=advance)
    _tell(report, budget)
    if report.failed:
        raise EndpointError(
            f"{report.failed} of {report.questions} questions failed, the last one: {report.reason}; "
            "the same command tries them again"
        )


def _prices(*given: tuple[str | None, tuple[float, float] | None]) -> dict[str, Price]:
    from wsiseg.training.annotate.limits import Price

    return {model: Price(*price) for model, price in given if model and price}


def _tell_estimate(told: Estimate, prices: dict[str, Price]) -> None:
    click.echo(f"{told.questions} questions: {told.requests} requests, {told.reused} answers at hand")
    for model in told.tokens_in:
        tokens = told.tokens_in[model], told.tokens_out[model]
        cost = f", at its price {prices[model].of(*tokens):.2f}" if model in prices else ""
        click.echo(f"{model}: about {tokens[0]} tokens read and {tokens[1]} written{cost}")


def _tell(report: Report, budget: Budget) -> None:
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(report.statements.items())) or "none"
    lines = [
        f"{report.questions} questions: {report.written} chains written ({report.corrected} after a correction), "
        f"{report.fell_back} left to the template, {report.failed} failed",
        f"sentences: {verdicts}",
        f"{report.requests} answers paid for ({budget.tokens} tokens"
        + (f", {budget.cost:.4f} at the given prices" if budget.prices else "")
        + f"), {report.reused} at hand",
    ]
    if report.stopped:
        lines.append(f"stopped: {report.stopped}; the same command with a new one goes on")
    tell("\n".join(lines))
