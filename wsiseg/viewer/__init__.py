"""`wsiseg view`: a local web app over one slide, in which one looks, asks, and corrects."""

from __future__ import annotations

from wsiseg.viewer.serve import serve
from wsiseg.viewer.session import Asking, Session

__all__ = ["Asking", "Session", "serve"]
