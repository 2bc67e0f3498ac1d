"""`wsiseg report`: one HTML page on what was found on a slide."""

from __future__ import annotations

from wsiseg.report.page import write_report

__all__ = ["write_report"]
