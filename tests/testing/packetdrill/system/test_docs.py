"""docs/testing/system_calls.md: its example runs, and its tables say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from tests.testing.packetdrill.system.test_differential import DIFFERENCES
from tests.testing.packetdrill.system.world import Scripted
from tunstack.testing.packetdrill.system.constants import (
    IOCTL_REQUESTS,
    IP_OPTIONS,
    IPV6_OPTIONS,
    SOCKET_OPTIONS,
    TCP_OPTIONS,
)
from tunstack.testing.packetdrill.system.options import OPTIONS, SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_TCP

PAGE = Path(__file__).parents[4] / "docs/testing/system_calls.md"
TEXT = PAGE.read_text()


def rows(title: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    text = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(code, str(PAGE), "exec"), {})


def test_the_options_are_those_of_the_code() -> None:
    levels = {SOL_SOCKET: SOCKET_OPTIONS, SOL_TCP: TCP_OPTIONS, SOL_IP: IP_OPTIONS, SOL_IPV6: IPV6_OPTIONS}
    known = [
        name for level, names in levels.items() for name, number in names.items() if number in OPTIONS[level]
    ]
    assert sum(map(len, OPTIONS.values())) == len(known)
    assert [name.strip("`") for name, _ in rows("Sockets")] == known


def test_the_options_that_are_read_only_say_so() -> None:
    for name, text in rows("Sockets"):
        name = name.strip("`")
        for level, names in ((SOL_SOCKET, SOCKET_OPTIONS), (SOL_TCP, TCP_OPTIONS), (SOL_IP, IP_OPTIONS)):
            if name in names:
                assert text.startswith("read") == (OPTIONS[level][names[name]].set is None), name


def test_the_requests_are_those_of_the_code() -> None:
    for name in IOCTL_REQUESTS:
        assert name.startswith("TIOC") or f"`{name}`" in TEXT


def test_the_fields_are_those_of_the_code() -> None:
    peer = Scripted()
    fd = peer.accepted()
    peer.process.write(fd, ..., 10)
    peer.send("A", seq=1, ack=11)
    assert set(re.findall(r"`(tcpi_\w+)`", TEXT)) == set(peer.system.tcp_info(fd))


def test_the_differences_are_those_that_are_shown() -> None:
    shown = dict(rows("Where Linux differs"))
    assert shown == {name: difference.reason for name, difference in DIFFERENCES.items()}
