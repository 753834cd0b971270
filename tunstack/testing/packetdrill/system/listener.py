"""A listening socket's connections: handshakes under way, and those that wait for accept(2).

As many connections as the backlog and one more wait to be accepted; SYNs that come then are dropped, so that
the peer tries again. Handshakes are answered at once, at most `Limits.listen_backlog` at a time; then the
oldest gives way without a word. A connection that is reset before it was accepted is accepted all the same,
and its error is found by whoever reads it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunstack.errors import DropReason
from tunstack.stack import Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest

if TYPE_CHECKING:
    from tunstack.testing.packetdrill.system.tcp import TcpSocket


class Listener:
    """The two queues of one listening socket.

    Attributes:
        backlog: as listen(2) was told.
        ready: sockets of established connections that nobody has accepted.
    """

    def __init__(self, stack: Stack, backlog: int, make_socket: Callable[[Connection], TcpSocket]) -> None:
        self.backlog = backlog
        self.ready: deque[TcpSocket] = deque()
        self._stack = stack
        self._make_socket = make_socket
        self._opening: dict[_Embryo, None] = {}  # oldest first

    def request(self, request: TcpRequest, now: float, prepare: Callable[[Connection], None]) -> None:
        """A SYN came; `prepare` sets the connection's options before the SYN-ACK goes out."""
        stack = self._stack
        if len(self.ready) > self.backlog:
            stack.drops.add(DropReason.TCP_BACKLOG_FULL)
            stack.discard(request)
            return
        if len(self._opening) >= stack.limits.listen_backlog:
            oldest = next(iter(self._opening))
            del self._opening[oldest]
            stack.drops.add(DropReason.TCP_BACKLOG_FULL)
            oldest.vanish()
        connection = stack.accept(request, now)
        prepare(connection)
        self._opening[_Embryo(self, connection)] = None

    def progress(self, embryo: _Embryo) -> None:
        """A handshake has ended, one way or the other."""
        self._opening.pop(embryo, None)
        if embryo.connection.established:
            self.ready.append(self._make_socket(embryo.connection))

    def stop(self) -> None:
        """No longer listen: what waits is reset, and handshakes are forgotten."""
        for embryo in self._opening:
            embryo.vanish()
        self._opening.clear()
        for socket in self.ready:
            socket.abandon()
        self.ready.clear()


class _Embryo:
    """A connection whose handshake is under way."""

    __slots__ = ("_listener", "connection")

    def __init__(self, listener: Listener, connection: Connection) -> None:
        self._listener = listener
        self.connection = connection
        connection.owner = self

    def vanish(self) -> None:
        """End it without a word."""
        self.connection.owner = None
        self.connection.vanish()

    def on_progress(self, now: float) -> None:
        """Part of `ConnectionOwner`."""
        connection = self.connection
        if connection.established or connection.closed:
            connection.owner = None
            self._listener.progress(self)
