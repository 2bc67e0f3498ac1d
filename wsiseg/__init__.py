"""Ask a whole-slide image in plain words; get outlines with the reasoning that led there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsiseg.errors import WsisegError

if TYPE_CHECKING:
    from wsiseg.inference.shots import Shot, read_shot
    from wsiseg.model import load_model
    from wsiseg.pipeline import Result, segment

__version__ = "0.1.0"
__all__ = ["Result", "Shot", "WsisegError", "__version__", "load_model", "read_shot", "segment"]

_LAZY = {
    "load_model": "wsiseg.model",
    "segment": "wsiseg.pipeline",
    "Result": "wsiseg.pipeline",
    "Shot": "wsiseg.inference.shots",
    "read_shot": "wsiseg.inference.shots",
}


def __getattr__(name: str) -> Any:
    # torch and zarr take seconds to import: `import wsiseg` must not.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]  # what a notebook offers for completion
