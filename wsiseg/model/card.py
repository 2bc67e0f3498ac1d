"""The model card of a folder that was built from parts."""

from __future__ import annotations

from wsiseg.model.config import PathChatConfig

_NO_DERIVATIVES = "-nd"


def restricted(config: PathChatConfig) -> list[str]:
    """Parts whose licence forbids passing on changed weights (No Derivatives), as "role source (licence)"."""
    return [
        f"{part.role} {part.source} ({part.licence})"
        for part in config.parts
        if _NO_DERIVATIVES in part.licence.casefold()
    ]


def parts_table(config: PathChatConfig) -> str:
    """The parts with source, licence and identity, as Markdown."""
    rows = [f"| {part.role} | {part.source} | {part.licence} | `{part.sha256[:16]}` |" for part in config.parts]
    return "\n".join(["| part | source | licence | sha256 |", "|---|---|---|---|", *rows])


def start_card(config: PathChatConfig) -> str:
    """README.md of a start for training."""
    terms = restricted(config)
    sharing = (
        f"Do not pass on what you train from it: {'; '.join(terms)} forbids it."
        if terms
        else "What you train from it may be passed on only as far as every one of these licences allows."
    )
    paragraphs = (
        "# A start for training",
        "PathChat-SegR1 put together by `wsiseg models build` from published parts. **It cannot outline anything "
        f"yet**: its {', '.join(config.untrained)} hold fresh weights that no one has trained. `wsiseg segment` "
        "refuses it.",
        "For research use only. Not a medical device; not for diagnosis, not for treatment decisions.",
        "## Parts",
        parts_table(config),
        f"{sharing} The licences are those that the parts state, or are known to have; read them yourself before "
        "you rely on this table.",
    )
    return "\n\n".join(paragraphs) + "\n"
