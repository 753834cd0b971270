"""What the link tests share: network namespaces of their own, and frames to put into them."""

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
_numbers = itertools.count()


class Namespace:
    """A network namespace: run commands in it, or Python in a thread that has entered it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, command: str) -> str:
        """The output of `command` (words are split at blanks); an error if it fails."""
        argv = ["ip", "netns", "exec", self.name, *command.split()]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start `command`; the caller waits for it."""
        argv = ["ip", "netns", "exec", self.name, *command.split()]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, called inside; descriptors that it opens stay bound to the namespace."""

        def enter() -> T:
            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(fd, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            return function()

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(enter).result()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A namespace without IPv6, so that nothing is sent in it that the test did not ask for."""
    name = f"tstlink-{os.getpid()}-{next(_numbers)}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=60)
    try:
        inside = Namespace(name)
        inside.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        inside.run("ip link set lo up")
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=60)
