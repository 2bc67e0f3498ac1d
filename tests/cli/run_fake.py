"""`wsiseg` with the fake model in place of the bundled one, for tests that need a process of their own."""

from __future__ import annotations

from typing import Any

import wsiseg.model
from wsiseg.cli.main import main
from wsiseg.testing import FakeModel


def load_fake(*_: Any, **__: Any) -> FakeModel:
    return FakeModel(tile_size=128, overlap=32)


wsiseg.model.load_model = load_fake
main()
