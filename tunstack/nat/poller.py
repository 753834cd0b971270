"""Readiness of host sockets: what a poller is, and the one of Linux.

A poller is level-triggered. Its tokens are the objects that own the sockets; whoever
drives it calls `token.on_ready(ready, now)` for each pair of a batch, in order. A handler
may remove any socket, also one that stands later in the same batch: that entry then
turns into a no-op in place, so a batch is iterated over where it is, not copied.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from typing import Any, Protocol

import trio

from tunstack.errors import WrongSystem
from tunstack.link.devices.base import ERROR as ERROR
from tunstack.link.devices.base import READ as READ
from tunstack.link.devices.base import WRITE as WRITE

BATCH = 64
"""Most sockets in one batch; the kernel rotates its list, so nobody starves."""


EPOLLIN = 1
EPOLLOUT = 4
"""Bits of epoll, where a poller is made of it."""


class Descriptor(Protocol):
    """What can be polled."""

    def fileno(self) -> int: ...


class Token(Protocol):
    """The owner of a socket."""

    def on_ready(self, ready: int, now: float) -> None: ...


class Poller(Protocol):
    """A level-triggered set of sockets.

    Interest is READ, WRITE, both, or ERROR alone; errors and hang-ups are always told of
    as ERROR while a socket has any interest. With interest 0 a socket stays known and is
    silent altogether. `fileno` polls readable when `poll` has something; where it is -1,
    `on_ready` is called.
    """

    on_ready: Callable[[], None] | None

    def fileno(self) -> int: ...

    def add(self, sock: Descriptor, token: Token, interest: int) -> None: ...

    def modify(self, sock: Descriptor, token: Token, interest: int) -> None: ...

    def remove(self, sock: Descriptor) -> None: ...

    async def wait(self) -> list[tuple[Token, int]]: ...

    def tokens(self, events: list[tuple[int, int]]) -> list[tuple[Token, int]]: ...

    def poll(self) -> list[tuple[Token, int]]: ...

    def close(self) -> None: ...


class _Gone:
    """Stands in a batch for a socket that was removed while the batch was handled."""

    __slots__ = ()

    def on_ready(self, ready: int, now: float) -> None:
        return


GONE = _Gone()

# epoll's IN, OUT, ERR and HUP are the bits 1, 4, 8 and 16.
_READY = tuple(
    (READ if bits & 1 else 0) | (WRITE if bits & 4 else 0) | (ERROR if bits & 24 else 0) for bits in range(32)
)
_EVENTS = (0, 1, 4, 5, 0, 1, 4, 5)


def _new_epoll() -> Any:
    if sys.platform != "linux":
        raise WrongSystem
    return select.epoll()


class EpollPoller:
    """A nested epoll: trio waits for the one descriptor behind which all sockets are.

    A socket with interest 0 is not in the epoll set, since epoll would report its hang-up
    for ever.
    """

    __slots__ = ("_batch", "_batch_fds", "_epoll", "_muted", "_tokens", "on_ready")

    def __init__(self) -> None:
        self.on_ready: Callable[[], None] | None = None
        """Never called."""
        self._epoll = _new_epoll()
        self._tokens: dict[int, Token] = {}
        self._muted: set[int] = set()
        self._batch: list[tuple[Token, int]] = []
        self._batch_fds: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def fileno(self) -> int:
        """The epoll's own descriptor; readable when `poll` has something."""
        return int(self._epoll.fileno())

    def add(self, sock: Descriptor, token: Token, interest: int) -> None:
        """Watch `sock` for `token`. The socket must be removed before it is closed."""
        fd = sock.fileno()
        if interest:
            self._epoll.register(fd, _EVENTS[interest])
        else:
            self._muted.add(fd)
        self._tokens[fd] = token

    def modify(self, sock: Descriptor, token: Token, interest: int) -> None:
        """Change the token or the interest of a socket that was added."""
        fd = sock.fileno()
        if not interest:
            if fd not in self._muted:
                self._epoll.unregister(fd)
                self._muted.add(fd)
        elif fd in self._muted:
            self._muted.remove(fd)
            self._epoll.register(fd, _EVENTS[interest])
        else:
            self._epoll.modify(fd, _EVENTS[interest])
        self._tokens[fd] = token

    def remove(self, sock: Descriptor) -> None:
        """Forget `sock`; nothing more is delivered for it, not even from the present batch."""
        fd = sock.fileno()
        if self._tokens.pop(fd, None) is None:
            return
        if fd in self._muted:
            self._muted.remove(fd)
        else:
            self._epoll.unregister(fd)
        for index, other in enumerate(self._batch_fds):
            if other == fd:
                self._batch[index] = (GONE, 0)

    def tokens(self, events: list[tuple[int, int]]) -> list[tuple[Token, int]]:
        """The batch that somebody else has polled: (descriptor, what epoll says of it)."""
        tokens = self._tokens
        known = [(fd, bits) for fd, bits in events if fd in tokens]
        self._batch_fds = [fd for fd, _ in known]
        self._batch = batch = [(tokens[fd], _READY[bits & 31]) for fd, bits in known]
        return batch

    def poll(self) -> list[tuple[Token, int]]:
        """The sockets that are ready now, at most `BATCH`; it ends the former batch."""
        events = self._epoll.poll(0, BATCH)
        tokens = self._tokens
        ready = _READY
        self._batch_fds = [fd for fd, _ in events]
        self._batch = batch = [(tokens[fd], ready[bits & 31]) for fd, bits in events]
        return batch

    async def wait(self) -> list[tuple[Token, int]]:
        """The same, after at least one socket has become ready. A trio checkpoint."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            if batch := self.poll():
                return batch

    def close(self) -> None:
        """Close the epoll; the sockets are their owners'."""
        self._tokens.clear()
        self._muted.clear()
        self._batch.clear()
        self._epoll.close()


def new_poller() -> Poller:
    """The best one that this platform has."""
    if sys.platform == "linux":
        return EpollPoller()
    from tunstack.nat.task_poller import TaskPoller

    return TaskPoller()
