"""What one connection costs: CPU seconds, and the Python calls from its SYN to its end.

A guest connects, asks, has its answer and closes, one connection after the other or some at once, once
beside a gateway that runs freely and once beside one that cProfile watches. Calls count functions of Python
and of C alike.
"""

from __future__ import annotations

import pstats
import tempfile
from pathlib import Path

from bench.load import PORT, Load
from bench.peers import Crowd
from bench.requests import MTU, server
from bench.sandbox import cpu_seconds

SECONDS = 2.0
"""Of each run."""


def measure(load: Load, connections: int, most: int) -> str:
    """A report of `connections` at once, with the `most` functions in which most of the time is spent."""
    with load.serving(server(4)), tempfile.TemporaryDirectory() as folder:
        count, used = _run(load, connections, None)
        rate, each = count / SECONDS, used / count * 1e6
        lines = [f"{connections} at a time: {rate:,.0f} connections/s, {each:,.0f} us of CPU each"]
        profile = str(Path(folder, "profile"))
        count, _ = _run(load, connections, profile)
        lines.append(_describe(profile, count, most))
    return "\n".join(lines)


def _run(load: Load, connections: int, profile: str | None) -> tuple[float, float]:
    """Connections, and the CPU seconds that the gateway spent on them."""
    gateway = Crowd(MTU, profile)
    try:
        assert gateway.pid is not None
        before = cpu_seconds(gateway.pid)
        words = ("connects", server(4), PORT, connections, SECONDS)
        found = load.run(gateway.guest, *words, seconds=SECONDS * 1.1)
        used = cpu_seconds(gateway.pid) - before
    finally:
        gateway.close()
    return found["count"], used


def _describe(profile: str, count: float, most: int) -> str:
    stats = pstats.Stats(profile)
    entries: list[tuple[float, float, str]] = []
    total = 0
    for (file, line, name), (_, calls, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        total += calls
        place = name if file == "~" else f"{_short(file)}:{line} {name}"
        entries.append((own, calls, place))
    entries.sort(reverse=True)
    spent = sum(own for own, _, _ in entries)
    lines = [f"{total / count:,.0f} calls each; of the time in the watched run:", ""]
    lines += [
        f"{own / spent:6.1%} {calls / count:8.2f} calls each  {place}" for own, calls, place in entries[:most]
    ]
    return "\n".join(lines)


def _short(file: str) -> str:
    parts = Path(file).parts
    return "/".join(parts[parts.index("tunstack") + 1 :]) if "tunstack" in parts else "/".join(parts[-2:])
