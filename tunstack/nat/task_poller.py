"""A poller for platforms without epoll: a task of trio for each socket and direction that is waited for.

Theory of operation. A task waits until its socket is ready, notes that, and ends; it begins anew when the
note has been handed out by `poll` and there is still interest. So readiness is level-triggered, one turn of
trio late. The tasks are trio's own (system tasks), for sockets are added from places that have no nursery;
they hold nothing and end with the poller.

There is no way to wait for errors alone: a socket with that interest is silent, and an error is found by the
next read or write. Otherwise an error makes a socket ready for what it is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunstack.nat.poller import BATCH, GONE, READ, WRITE, Descriptor, Token

_DIRECTIONS = (READ, WRITE)


class _Watched:
    """One socket: who owns it, what of it is waited for, and what has come of that."""

    __slots__ = ("fd", "interest", "ready", "scopes", "token")

    def __init__(self, fd: int, token: Token, interest: int) -> None:
        self.fd = fd
        self.token = token
        self.interest = interest
        self.ready = 0
        self.scopes: dict[int, trio.CancelScope] = {}
        """Of the tasks that wait, by direction."""


class TaskPoller:
    """See `Poller`. To be used within one run of trio."""

    __slots__ = ("_batch", "_batch_fds", "_ready", "_something", "_watched", "on_ready")

    def __init__(self) -> None:
        self.on_ready: Callable[[], None] | None = None
        self._watched: dict[int, _Watched] = {}
        self._ready: dict[int, None] = {}
        self._something = trio.Event()
        self._batch: list[tuple[Token, int]] = []
        self._batch_fds: list[int] = []

    def __len__(self) -> int:
        return len(self._watched)

    def fileno(self) -> int:
        """-1: there is no descriptor that tells of all."""
        return -1

    def add(self, sock: Descriptor, token: Token, interest: int) -> None:
        """Watch `sock` for `token`. The socket must be removed before it is closed."""
        fd = sock.fileno()
        watched = self._watched[fd] = _Watched(fd, token, interest)
        self._arm(watched)

    def modify(self, sock: Descriptor, token: Token, interest: int) -> None:
        """Change the token or the interest of a socket that was added."""
        watched = self._watched[sock.fileno()]
        watched.token = token
        watched.interest = interest
        watched.ready &= interest
        if not watched.ready:
            self._ready.pop(watched.fd, None)
        for direction in _DIRECTIONS:
            if not interest & direction and direction in watched.scopes:
                watched.scopes.pop(direction).cancel()
        self._arm(watched)

    def remove(self, sock: Descriptor) -> None:
        """Forget `sock`; nothing more is delivered for it, not even from the present batch."""
        fd = sock.fileno()
        watched = self._watched.pop(fd, None)
        if watched is None:
            return
        self._disarm(watched)
        self._ready.pop(fd, None)
        for index, other in enumerate(self._batch_fds):
            if other == fd:
                self._batch[index] = (GONE, 0)

    def tokens(self, events: list[tuple[int, int]]) -> list[tuple[Token, int]]:
        """Nobody else polls."""
        return []

    def poll(self) -> list[tuple[Token, int]]:
        """The sockets that are known to be ready, at most `BATCH`; it ends the former batch."""
        fds = list(self._ready)[:BATCH]
        self._batch_fds = fds
        self._batch = batch = []
        for fd in fds:
            del self._ready[fd]
            watched = self._watched[fd]
            batch.append((watched.token, watched.ready))
            watched.ready = 0
            self._arm(watched)
        return batch

    async def wait(self) -> list[tuple[Token, int]]:
        """The same, after at least one socket has become ready. A trio checkpoint."""
        await trio.lowlevel.checkpoint()
        while True:
            if batch := self.poll():
                return batch
            self._something = trio.Event()
            await self._something.wait()

    def close(self) -> None:
        """Wait for nothing any more; the sockets are their owners'."""
        for watched in self._watched.values():
            self._disarm(watched)
        self._watched.clear()
        self._ready.clear()
        self._batch.clear()

    def _arm(self, watched: _Watched) -> None:
        for direction in _DIRECTIONS:
            if watched.interest & direction & ~watched.ready and direction not in watched.scopes:
                scope = watched.scopes[direction] = trio.CancelScope()
                trio.lowlevel.spawn_system_task(self._wait_for, watched, direction, scope)

    def _disarm(self, watched: _Watched) -> None:
        watched.interest = 0
        for scope in watched.scopes.values():
            scope.cancel()
        watched.scopes.clear()

    async def _wait_for(self, watched: _Watched, direction: int, scope: trio.CancelScope) -> None:
        """Note when `watched` is ready for `direction`; who finds its scope replaced has nothing to say."""
        if watched.scopes.get(direction) is not scope:
            return  # it was replaced before it began, and its successor waits already
        with scope:
            try:
                if direction == READ:
                    await trio.lowlevel.wait_readable(watched.fd)
                else:
                    await trio.lowlevel.wait_writable(watched.fd)
            except (OSError, trio.ClosedResourceError):
                pass  # it is broken, as its owner finds out
        if watched.scopes.get(direction) is not scope:
            return
        del watched.scopes[direction]
        if watched.interest & direction:
            watched.ready |= direction
            self._ready[watched.fd] = None
            self._something.set()
            if self.on_ready is not None:
                self.on_ready()
