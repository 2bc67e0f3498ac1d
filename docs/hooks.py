"""For mkdocs: links from a page to files of the repository, which the site does not hold, become the file's name."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    def name(link: re.Match[str]) -> str:
        text, path = link[1].strip("`"), link[2].rstrip("/")
        return f"`{path}`" if text in path else f"{text} (`{path}`)"

    return _OUTSIDE.sub(name, markdown)
