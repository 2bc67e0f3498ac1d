"""Commands as pages tell people to type them."""

from __future__ import annotations

import shlex

import click

from wsiseg.cli.main import main


def parse(line: str) -> None:
    """Parse a `wsiseg …` line and run nothing. Raises AssertionError or a ClickException if it is no command."""
    words = shlex.split(line.split(" > ")[0])[1:]
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    command.make_context(command.name, words)
