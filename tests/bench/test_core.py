"""`python -m bench core`."""

from __future__ import annotations

import subprocess
import sys

from bench import core


def test_every_case_is_measured() -> None:
    results = core.measure(1)
    assert [result.name for result in results] == [case.name for case in core.CASES]
    for result in results:
        assert result.least <= result.frames_per_second <= result.most
        assert abs(result.microseconds * result.frames_per_second - 1e6) < 1


def test_the_command_prints_a_table() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "core", "--rounds", "1"], check=True, capture_output=True, text=True
    )
    for case in core.CASES:
        assert any(line.startswith(case.name) for line in done.stdout.splitlines())
