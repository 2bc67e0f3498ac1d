"""What is told of a query beside its outlines: as what it was read, and whether the model ever learnt such a thing."""

from __future__ import annotations

from wsiseg.inference import ASK_PLAINLY
from wsiseg.model.config import PathChatConfig
from wsiseg.model.plain import PLAIN


def with_outlines(config: PathChatConfig, query: str, *, shown: bool) -> str:
    """Sentences for those who get outlines; "" for nothing.

    shown: whether examples were, of what training may not have shown.
    """
    read = _read_otherwise(config, query)
    told = [f'"{query}" was read as "{read}".'] if read else []
    if config.names and not shown and not config.structure(query):
        told.append(
            f'"{query}" is more than the name of one structure that the model knows, or another. It may pass over '
            'words, even "not": check that it outlined what you meant.'
        )
    if not shown and (never := _never_learnt(config, query)):
        told.append(f"The model {never}: check what it outlined.")
    return " ".join(told)


def without_outlines(config: PathChatConfig, query: str, *, shown: bool) -> str:
    """What to make of it, to stand in brackets, for those who get none; "" for nothing."""
    read = _read_otherwise(config, query)
    hints = [f'read as "{read}"'] if read else []
    if not config.structure(query):
        hints.append(_ask_for(config.outlines))
    elif not shown and (never := _never_learnt(config, query)):
        hints.append(f"the model {never}")
    return "; ".join(hints)


def _read_otherwise(config: PathChatConfig, query: str) -> str:
    """As what a query is read that says it in other words, or that may say more; "" if it says so itself."""
    read = config.plain(query)
    asked = read.casefold().removeprefix(PLAIN.format("")).removesuffix("s")
    more = config.structure(query) and config.passes_over(query)
    return "" if asked in query.casefold() and not more else read


def _never_learnt(config: PathChatConfig, query: str) -> str:
    """That the structure asked for was never outlined in training; "" if it was, or that is not known."""
    structure = config.structure(query)
    if not config.outlines or structure in ("", *config.outlines):
        return ""
    return f"never learnt to outline {structure}, only {_listed(config.outlines)}"


def _ask_for(outlines: tuple[str, ...]) -> str:
    if not outlines:
        return ASK_PLAINLY
    return f"if it is one of {_listed(outlines)}, which the model learnt to outline, ask for that alone"


def _listed(names: tuple[str, ...]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
