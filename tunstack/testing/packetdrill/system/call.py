"""A system call under way: its result, what keeps it waiting, and the ways in which it fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tunstack.tcp.hot import NEVER
from tunstack.testing.packetdrill.language.values import Value

if TYPE_CHECKING:
    from tunstack.testing.packetdrill.system.base import Socket


class Unsupported(Exception):
    """The stack, or this layer over it, cannot do what a system call asks for; the text says what that is."""


class Failure(Exception):
    """A system call fails; `errno` is the name of the reason."""

    def __init__(self, errno: str) -> None:
        super().__init__(errno)
        self.errno = errno


Attempt = Callable[[float], int | None]
"""Tries to complete a call at a time; None: it has to wait. Raises `Failure`."""


@dataclasses.dataclass(slots=True)
class Wait:
    """What a call is waiting for: `attempt` is repeated after whatever happens, until `deadline` (seconds).

    A call that may not block has a deadline that is over: like Linux's, it tries once. `expired` gives its
    result then, or raises `Failure`.
    """

    attempt: Attempt
    expired: Callable[[float], int]
    deadline: float = NEVER
    sockets: Sequence[Socket] = ()
    """What the call works on; it is kept until the call has returned."""


@dataclasses.dataclass(slots=True, eq=False)
class Call:
    """A system call.

    Attributes:
        done: it has returned.
        result: what it returned; -1 when it failed.
        errno: the name of the reason when it failed, else None.
        finished_at: when it returned (seconds).
        outputs: for each argument what the kernel wrote into that place, or None.
    """

    name: str
    arguments: list[Value]
    outputs: list[Value | None]
    done: bool = False
    result: int = 0
    errno: str | None = None
    finished_at: float = 0.0

    def finish(self, result: int, now: float) -> None:
        """The call has returned `result`."""
        self.done = True
        self.result = result
        self.finished_at = now

    def fail(self, errno: str, now: float) -> None:
        """The call has failed."""
        self.finish(-1, now)
        self.errno = errno
