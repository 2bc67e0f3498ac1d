"""The parsers of foreign input under atheris; see tests/fuzz.py."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_no_input_is_read_wrongly_or_refused_with_another_error() -> None:
    pytest.importorskip("atheris")
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", "--seconds", "5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(int(line.split()[1]) > 1000 for line in done.stdout.splitlines())
