"""recv(2) and send(2) of a stream: what is taken or queued bit by bit, and when that is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunstack.tcp.connection import Connection
from tunstack.tcp.states import MAY_SEND, State
from tunstack.testing.packetdrill.system.base import MSG_PEEK, MSG_TRUNC, MSG_WAITALL, Inbox
from tunstack.testing.packetdrill.system.call import Failure

if TYPE_CHECKING:
    from tunstack.testing.packetdrill.system.tcp import TcpSocket

OPENING = frozenset({State.SYN_SENT, State.SYN_RECEIVED})


class Reading:
    """A recv(2) on its way."""

    def __init__(self, socket: TcpSocket, buffer: Inbox, flags: int) -> None:
        self._socket = socket
        self._buffer = buffer
        self._flags = flags
        wanted = buffer.size if flags & MSG_WAITALL else min(socket.options.receive_low_water, buffer.size)
        self._target = max(1, wanted)
        self._taken = 0

    def attempt(self, now: float) -> int | None:
        """Take what is there; the result, if that is enough or there will be no more."""
        socket = self._socket
        socket.sync()
        connection = socket.connection
        if connection is not None and connection.readable:
            self._take(connection)
            if self._taken >= self._target or not self._buffer.size:
                return self._taken
        if self._taken:
            if socket.error is not None or socket.state is State.CLOSED or socket.reading_is_shut:
                return self._taken
            return None
        if connection is not None and connection.receiver.fin_received:
            return 0
        if (error := socket.take_error()) is not None:
            raise Failure(error)
        if socket.reading_is_shut:
            return 0
        if socket.state is State.CLOSED:
            raise Failure("ENOTCONN")
        return None

    def _take(self, connection: Connection) -> None:
        buffer = self._buffer
        data = b"".join(connection.peek())
        if self._flags & MSG_PEEK:
            data = data[: buffer.size]
            self._taken = len(data)
            buffer.data = data
            return
        data = data[: buffer.size - self._taken]
        self._taken += len(data)
        if not self._flags & MSG_TRUNC:
            buffer.data += data
        connection.consume(len(data))

    def expired(self, now: float) -> int:
        """Nothing more comes in time."""
        if self._taken:
            return self._taken
        raise Failure("EAGAIN")


class Writing:
    """A send(2) on its way."""

    def __init__(self, socket: TcpSocket, data: bytes) -> None:
        self._socket = socket
        self._data = data
        self._sent = 0

    def attempt(self, now: float) -> int | None:
        """Queue what finds room; the result, if that is all or the way is barred."""
        socket = self._socket
        socket.sync()
        connection = socket.connection
        state = socket.state
        if state in OPENING:
            if socket.error is not None:
                self._broken()
            return None
        barred = socket.writing_is_shut or socket.error is not None
        if state not in MAY_SEND or connection is None or barred:
            return self._broken()
        if self._sent < len(self._data):
            self._sent += connection.send(self._data[self._sent : self._sent + socket.room()])
        return self._sent if self._sent == len(self._data) else None

    def _broken(self) -> int:
        if self._sent:
            return self._sent
        raise Failure(self._socket.take_error() or "EPIPE")

    def expired(self, now: float) -> int:
        """There is no room in time."""
        if self._sent:
            return self._sent
        raise Failure("EAGAIN")
