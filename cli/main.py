"""The `wsiseg` command: finds its commands by name, sets up logging, turns errors into one line.

`wsiseg --help` must not wait for torch or zarr: commands are listed from a table, and the module of a command
is imported when that command is called.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from wsiseg import __version__
from wsiseg.cli.output import discard_stdout
from wsiseg.errors import WsisegError
from wsiseg.under_way import name_slide

# name -> the line that `wsiseg --help` shows; the command is `command` in wsiseg.cli.<name>
COMMANDS = {
    "segment": "Outline what a query asks for: a slide in, GeoJSON out.",
    "info": "Show levels, microns per pixel, bounds and vendor of a slide.",
    "thumbnail": "Write a small picture of a slide, or of its tissue.",
    "tile": "Stream patches of slides into Zarr stores, to query many times.",
    "render": "Draw a GeoJSON over its slide: a PNG or JPEG.",
    "view": "Look at a slide in a browser: ask, review and correct outlines.",
    "report": "Write one HTML page on what was found.",
    "convert": "Write the outlines of a GeoJSON in another format.",
    "models": "List, fetch, build, merge and inspect models.",
    "data": "Import, annotate and inspect training data.",
    "train": "Train a model on data of your own.",
    "evaluate": "Measure a model on data sets.",
    "doctor": "Show versions, devices and what is missing.",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a scheduler sends when the time is up. Ends a command as Ctrl-C does."""


class LazyGroup(click.Group):
    """A click group whose commands are modules, imported when called, and whose errors are one line each."""

    debug = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"wsiseg.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated.

        `segment` over many slides exits with 3 when some of them failed.
        """
        extra["standalone_mode"] = False
        if sys.stdout is None:  # closed (`>&-`): as /dev/null, and no other file is given its number
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: Windows' code pages lack letters of names
        try:
            with _sigterm_as_interrupt():
                result = super().main(args, prog_name or "wsiseg", **extra)
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt) as error:
            terminated = isinstance(error.__cause__ or error, Terminated)  # click wraps it in an Abort
            click.echo("wsiseg: terminated" if terminated else "wsiseg: interrupted", err=True)
            sys.exit(143 if terminated else 130)
        except click.ClickException as error:
            self.fail(error.format_message() + self.hint(error), error.exit_code)
        except WsisegError as error:
            self.fail(str(error), error.exit_code)
        except BrokenPipeError:
            discard_stdout()  # `wsiseg … | head`: the reader has what it wanted
            sys.exit(1)
        except Exception as error:
            self.fail(f"{type(error).__name__}: {error} (run `wsiseg --debug …` for the traceback)", 1)
        # click returns the code of an explicit `ctx.exit(code)`; commands themselves return None
        sys.exit(result if isinstance(result, int) else 0)

    def hint(self, error: click.ClickException) -> str:
        """What to do about wrong usage."""
        context = getattr(error, "ctx", None)
        if context is None:
            return ""
        if isinstance(error, click.NoSuchOption) and any(error.option_name in option.opts for option in self.params):
            command = context.command_path.removeprefix(f"{context.find_root().command_path} ")
            return f" It goes before the command: `wsiseg {error.option_name} {command} …`"
        see = f" (see `{context.command_path} --help`)"
        if "unexpected extra argument" in error.format_message():
            folders = ", many slides go by their folder" if context.info_name in ("segment", "tile") else ""
            return f"; a path with spaces needs quotes{folders}{see}"
        return see

    def fail(self, message: str, exit_code: int) -> NoReturn:
        if self.debug:
            logging.getLogger("wsiseg").error("traceback", exc_info=True)
        click.echo("wsiseg: error: " + " ".join(message.split()), err=True)
        sys.exit(exit_code)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def terminate(*_: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only there may signals be set
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def configure_logging(level: int) -> None:
    """Log to stderr: stdout carries only results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(name_slide)
    handler.setFormatter(logging.Formatter("wsiseg: %(levelname)s: %(slide)s%(message)s"))
    logger = logging.getLogger("wsiseg")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
    for name, number in (("warning", logging.WARNING), ("error", logging.ERROR), ("info", logging.INFO)):
        logging.addLevelName(number, name)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsiseg", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for details.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, verbose: int, quiet: bool, debug: bool) -> None:
    """Ask a whole-slide image in plain words; get outlines that open in QuPath.

    \b
    wsiseg segment slide.svs --query "outline the nuclei" > out.geojson

    Results go to stdout, everything else to stderr. For research use only.
    """
    LazyGroup.debug = debug
    ctx.obj = {"quiet": quiet}
    level = logging.ERROR if quiet else {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    configure_logging(level)


if __name__ == "__main__":
    main()
