"""The examples run and do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.netns
def test_serve_a_guest() -> None:
    example = EXAMPLES / "serve_a_guest.py"
    done = subprocess.run(
        [sys.executable, str(example)], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "hello 10.0.2.100, you asked: GET /hello HTTP/1.1\n"
