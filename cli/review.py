"""`wsiseg data review`: people accept, correct or reject masks and chains; how far they agree; a store of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsiseg.cli.options import tell

if TYPE_CHECKING:
    from wsiseg.training.review.agreement import Report


@click.command("review", short_help="Accept, correct or reject masks and chains in a browser.")
@click.argument("path", metavar="STORE", type=click.Path())
@click.option("--name", help="Who decides, as it is to stand beside each decision.")
@click.option("--split", help="Only questions of this part: train, val, test.")
@click.option("--limit", type=click.IntRange(min=1), help="Only N questions, spread evenly: the same for everybody.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; by default a free one.")
@click.option("--report", is_flag=True, help="Look at nothing: print who decided what, and how far people agree.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.option(
    "--apply",
    "out",
    type=click.Path(),
    metavar="OUT",
    help="Look at nothing: write the store that the decisions come to, by majority or as --name decided.",
)
def review_command(
    path: str,
    name: str | None,
    split: str | None,
    limit: int | None,
    no_browser: bool,
    port: int,
    report: bool,
    as_json: bool,
    out: str | None,
) -> None:
    """Look at the questions of STORE one by one: image, mask, query, chain; accept, correct or reject.

    Decisions lie beside the store (open.zarr: open.review/), which itself is never changed. The page is served on
    this machine alone, at an address that only you are told. Ctrl-C ends it.
    """
    from wsiseg.training.data.store import QuadrupletStore
    from wsiseg.training.review.journal import reviewer_name

    if report and out:
        raise click.UsageError("either --report or --apply")
    if as_json and not report:
        raise click.UsageError("--json is for --report")
    if (report or out) and (split or limit or no_browser or port):
        raise click.UsageError("--split, --limit, --no-browser and --port are for the page alone")
    if report:
        if name:
            raise click.UsageError("--report is about everybody: leave --name out")
        _report(path, as_json)
        return
    if out:
        _apply(path, out, reviewer_name(name) if name is not None else None)
        return
    if not name:
        raise click.UsageError('give your name, for example --name "Dr. X"')
    from wsiseg.training.review.session import Review
    from wsiseg.viewer import serve

    review = Review(QuadrupletStore.open(path), name, split=split, limit=limit)
    others = review.describe()["others"]
    beside = f"; also reviewed by {', '.join(others)}" if others else ""
    tell(f"wsiseg: {len(review.questions)} questions for {review.name}{beside}")
    serve(
        review,
        app="wsiseg.training.review.app",
        port=port,
        browse=not no_browser,
        tell=lambda address: click.echo(f"wsiseg: open {address} (Ctrl-C ends)", err=True),
    )


def _apply(path: str, out: str, name: str | None) -> None:
    from wsiseg.training.data.store import QuadrupletStore
    from wsiseg.training.review.apply import apply_review

    store, counts = apply_review(QuadrupletStore.open(path), out, name=name)
    tell(f"{out}: {len(store)} images, {len(store.quadruplets)} questions")
    tell(
        f"of {counts['questions']} questions {counts['dropped']} left out and {counts['unseen']} seen by nobody, "
        f"{counts['chains corrected']} chains corrected; {counts['masks corrected']} masks corrected, "
        f"{counts['masks dropped']} left out; {counts['images dropped']} images left out"
    )
    if counts["changed"]:
        tell(f"{counts['changed']} decisions are about what has changed since, and did not count")


def _report(path: str, as_json: bool) -> None:
    import orjson

    from wsiseg.training.data.store import QuadrupletStore
    from wsiseg.training.review.agreement import report_of

    report = report_of(QuadrupletStore.open(path))
    if as_json:
        click.echo(orjson.dumps(dataclasses.asdict(report), option=orjson.OPT_INDENT_2))
    else:
        _print(report, Path(path).name)


def _print(report: Report, store: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from wsiseg.training.review.journal import VERDICTS

    console = Console(highlight=False)
    if not report.tallies:
        console.print(Text(f"Nobody has reviewed {store} yet."))
        return
    people = Table("reviewer", "", *VERDICTS[1:], "changed since", "from", "to", box=None)
    for tally in report.tallies:
        for part, verdicts in tally.verdicts.items():
            once = (str(tally.changed), tally.first[:16], tally.last[:16]) if part == "mask" else ("", "", "")
            counts = [str(verdicts[verdict]) for verdict in VERDICTS[1:]]
            people.add_row(Text(tally.name if part == "mask" else ""), f"{part}s", *counts, *once)
    console.print(people)
    for agreed in report.agreements:
        if not agreed.shared:
            console.print(f"{agreed.part}s: none was judged by two people")
            continue
        value = "not defined: all said the same" if agreed.value is None else f"{agreed.value:.2f}"
        console.print(
            f"{agreed.part}s: {agreed.reviewers} reviewers share {agreed.shared}, "
            f"say the same of {agreed.same:.0%}, {agreed.measure} {value}"
        )
    if report.mask_pairs:
        values = sorted(pair.dice for pair in report.mask_pairs)
        console.print(
            f"corrected masks against another's: {len(values)} pairs, "
            f"Dice {sum(values) / len(values):.3f} on average, {values[0]:.3f} at least"
        )
    if report.disagreements:
        apart = Table("image", "structure", "", "who said what", box=None)
        for subject, said in report.disagreements:
            who = ", ".join(f"{name}: {verdict}" for name, verdict in said.items())
            what = subject.part if not subject.query else f"chain of “{subject.query}”"
            apart.add_row(Text(subject.image), Text(subject.concept), Text(what), Text(who))
        console.print(apart)
