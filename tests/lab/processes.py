"""Finds processes by a mark in their command line: what tests of "nothing is left behind" look for."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path


def new_mark() -> str:
    """A number of seconds for sleep(1) that nobody else sleeps for."""
    return f"1000.{random.randrange(10**9):09}"


def marked(mark: str) -> list[int]:
    """The processes with `mark` in their command line, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass  # it has just ended
    return sorted(found)


def children(parent: int) -> list[int]:
    """The child processes of `parent`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
            except OSError:
                pass
    return sorted(found)


def users_of_namespace(identity: str) -> list[int]:
    """The processes in the network namespace `identity` ("net:[4026531840]")."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns/net") == identity:
                    found.append(int(entry.name))
            except OSError:
                pass
    return sorted(found)


def wait_until_gone(mark: str, seconds: float = 5) -> list[int]:
    """Wait until no process has `mark`; returns those that still have."""
    deadline = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def wait_until_unused(identity: str, seconds: float = 5) -> list[int]:
    """Wait until no process is in the network namespace `identity`; returns those that still are.

    A process that is being killed has lost its arguments, hence its mark, before it leaves its namespaces.
    """
    deadline = time.monotonic() + seconds
    while (left := users_of_namespace(identity)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def wait_until_there(mark: str, count: int, seconds: float = 10) -> list[int]:
    """Wait until `count` processes have `mark`; returns them."""
    deadline = time.monotonic() + seconds
    while len(found := marked(mark)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


LAB = Path(__file__).parent
PLAIN_UID = 12345
PLAIN_USER = [sys.executable, str(LAB / "as_plain_user.py"), str(PLAIN_UID)]
"""Before a command: root runs it as a plain user, to whom /dev/net/tun is open."""
TINY_GATEWAY = [sys.executable, str(LAB / "tiny_gateway.py")]
"""Before a command: it runs in a namespace with the smallest network."""
