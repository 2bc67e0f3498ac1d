"""Every error that wsiseg raises on purpose.

One root, `WsisegError`; each kind is also the standard exception that it is, so that callers who know only
Python still catch it. A message says what was wrong, where, and what to do. The command line prints it as
one line and exits with `exit_code`.
"""

from __future__ import annotations


class WsisegError(Exception):
    """Root of all errors that a user can act on."""

    exit_code = 1


class SlideError(WsisegError, OSError):
    """A slide cannot be opened or read: missing, truncated, unknown format, too large for a plain image."""


class PixelError(SlideError):
    """Some pixels of a slide cannot be decoded; those elsewhere may be sound."""


class MissingMppError(WsisegError, ValueError):
    """The slide states no (or an absurd) microns per pixel and none was supplied."""


class StoreError(WsisegError, ValueError):
    """A tile store does not fit the request: other slide, other grid, incomplete, or not a store."""


class ModelError(WsisegError, ValueError):
    """A model folder is unknown, incomplete, or does not fit its configuration."""


class QueryError(WsisegError, ValueError):
    """The query is empty or cannot be used."""


class GeoJSONError(WsisegError, ValueError):
    """A GeoJSON file breaks the rules of the dialect that QuPath reads."""


class OutputError(WsisegError, OSError):
    """The result cannot be written: unwritable folder, full disk."""


class DataError(WsisegError, ValueError):
    """A training data set or recipe is malformed."""


class FleetError(WsisegError, ValueError):
    """A folder of slides, manifest, earlier run or scheduler cannot be used."""


class ViewerError(WsisegError, ValueError):
    """What the page of `wsiseg view` asks for cannot be done."""


class EndpointError(WsisegError, ConnectionError):
    """A server of language models cannot be reached, refuses, or does not speak the protocol."""
