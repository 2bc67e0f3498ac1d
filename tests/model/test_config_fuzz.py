"""Whatever a model's config.json holds, it is a configuration or a sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.strategies import json_like
from wsiseg.errors import ModelError
from wsiseg.model.config import load_config, save_config, tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs") / "config.json"


@given(data=st.binary(max_size=60))
@example(b"[" * 3000)
@example(b'{"parts": 3}')
@settings(deadline=None)
def test_any_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with suppress(ModelError):
        load_config(path)


@given(data=st.data(), value=json_like)
@settings(max_examples=150, deadline=None)
def test_any_value_in_any_place(path: Path, data: st.DataObject, value: Any) -> None:
    save_config(tiny(), path)
    said = json.loads(path.read_bytes())
    holder = data.draw(st.sampled_from([said, *(part for part in said.values() if isinstance(part, dict))]))
    known = st.sampled_from(sorted(holder)) if holder else st.nothing()
    holder[data.draw(known | st.text(max_size=6))] = value
    path.write_text(json.dumps(said), "utf-8")
    with suppress(ModelError):
        load_config(path).plain("outline the glands")
