"""Every test here runs against tunstack in virtual time and against this machine's kernel, IPv4 and IPv6.

What the kernel does is looked at in real time, in a namespace of its own for each test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.testing.behaviour.differences import DIFFERENCES
from tunstack.testing.peer import LinuxPeer, Peer, StackPeer, Starters

DEVICES: dict[str, Callable[..., Peer]] = {"tunstack": StackPeer, "linux": LinuxPeer}


class Dut:
    """The device under test."""

    def __init__(self, name: str, family: int) -> None:
        self.name = name
        self.family = family
        self._peers = contextlib.ExitStack()
        self.start: Starters[Peer] = Starters(self.peer)

    def peer(self, **options: Any) -> Peer:
        """A peer of the device, ended after the test."""
        made = DEVICES[self.name](family=self.family, **options)
        self._peers.callback(made.end)
        return made

    def differs(self, name: str) -> Any:
        """What this device does where the two are known to differ."""
        entry = DIFFERENCES[name]
        return getattr(entry, self.name) if entry.known else entry.tunstack

    @property
    def mss(self) -> int:
        """The MSS of a path with an MTU of 1500."""
        return 1460 if self.family == 4 else 1440

    def close(self) -> None:
        self._peers.close()


@pytest.fixture(params=["tunstack", pytest.param("linux", marks=pytest.mark.netns)])
def device(request: pytest.FixtureRequest) -> str:
    """The name of the device under test."""
    name: str = request.param
    return name


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def dut(device: str, request: pytest.FixtureRequest) -> Iterator[Dut]:
    """The device under test, with either family."""
    made = Dut(device, request.param)
    yield made
    made.close()


@pytest.fixture
def dut4(device: str) -> Iterator[Dut]:
    """The device under test, with IPv4 only: where a kernel's timers make a test slow."""
    made = Dut(device, 4)
    yield made
    made.close()
