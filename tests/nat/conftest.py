"""Network namespaces for the NAT's tests: Python runs in a thread that has entered one."""

from __future__ import annotations

import concurrent.futures
import ctypes
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_CAP_NET_RAW = 13
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace with `lo` up."""

    def __init__(self) -> None:
        self.name = f"tunstack-nat-{os.getpid()}-{next(_numbers)}"
        self._ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> None:
        """`ip` in this namespace."""
        self._ip("-n", self.name, *words)

    def command(self, *words: str) -> None:
        """A command in this namespace."""
        self._ip("netns", "exec", self.name, *words)

    def sysctl(self, name: str, value: str) -> None:
        """Write /proc/sys/net/`name`."""

        def write() -> None:
            with open(f"/proc/sys/net/{name}", "w") as file:
                file.write(value)

        self.call(write)

    def call(self, function: Callable[[], T], *, net_raw: bool = True) -> T:
        """The result of `function` in a thread of this namespace, with CAP_NET_RAW or without."""

        def enter() -> T:
            with open(f"/run/netns/{self.name}") as file:
                if _libc.setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            if not net_raw:
                _drop_net_raw()
            return function()

        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            return executor.submit(enter).result()

    def close(self) -> None:
        self._ip("netns", "del", self.name)

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _drop_net_raw() -> None:
    """Drop CAP_NET_RAW from this thread's effective set."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for index in (0, 1, 2):  # effective, permitted, inheritable, of the lower 32
        data[index] &= ~(1 << _CAP_NET_RAW)
    if _libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"namespace", "namespaces"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.netns)


@pytest.fixture(autouse=True)
def _nothing_left(no_descriptor_left: None) -> None:
    """Nothing here relies on the garbage collector to close."""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A new network namespace."""
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
def namespaces() -> Iterator[Callable[[], Namespace]]:
    """Makes network namespaces that the test's end removes."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    yield make
    for one in made:
        one.close()
