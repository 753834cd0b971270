"""Small applications for simulated hosts: bulk transfer, request and response, many connections.

Every byte that they send comes from one periodic stream, whose period of 251 bytes shares no factor with the
sizes of blocks, segments and pages; who receives compares each byte, so that one that is lost, doubled or
swapped is an error at the place where it happens. The applications are owners of their connections
(`tunstack.tcp.host.ConnectionOwner`) and work at the instants at which those make progress.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from tunstack.ip.header import TCP
from tunstack.tcp.connection import Connection
from tunstack.tcp.endpoint import CloseReason
from tunstack.testing.simulator.host import Host

PERIOD = 251
_BLOCK = 64 * 1024
_TRANSFER_PORT = 5001
_STREAM = bytes(range(PERIOD)) * (_BLOCK // PERIOD + 2)
_VIEW = memoryview(_STREAM)


class WrongBytes(AssertionError):
    """What arrived is not what was sent."""


def ramp(size: int, start: int = 0) -> bytes:
    """`size` bytes of the stream, from place `start` on."""
    first = start % PERIOD
    return (bytes(range(PERIOD)) * ((first + size) // PERIOD + 1))[first : first + size]


class RampWriter:
    """Sends the first `size` bytes of the stream as there is room for them, and then, if told so, a FIN."""

    __slots__ = ("connection", "finish", "sent", "size")

    def __init__(self, connection: Connection, size: int | float, *, finish: bool = True) -> None:
        """`size` may be infinite."""
        self.connection = connection
        self.size = size
        self.finish = finish
        self.sent = 0

    def on_progress(self, now: float) -> None:
        """See `ConnectionOwner`."""
        connection = self.connection
        if not connection.established or not connection.writable:
            return
        while self.sent < self.size:
            start = self.sent % PERIOD
            taken = connection.send(_VIEW[start : start + int(min(_BLOCK, self.size - self.sent))])
            if not taken:
                return
            self.sent += taken
        if self.finish:
            connection.shutdown()


class RampReader:
    """Reads the stream and compares it.

    Attributes:
        received: bytes so far.
        eof: whether the sender's FIN has come.
    """

    __slots__ = ("connection", "eof", "received")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.received = 0
        self.eof = False

    def on_progress(self, now: float) -> None:
        """See `ConnectionOwner`. Raises `WrongBytes`."""
        connection = self.connection
        for view in connection.peek():
            for start in range(0, len(view), _BLOCK):
                part = bytes(view[start : start + _BLOCK])
                place = self.received % PERIOD
                if part != _STREAM[place : place + len(part)]:
                    raise WrongBytes(
                        f"the bytes from {self.received} on, {len(part)} of them, are not those sent"
                    )
                self.received += len(part)
        connection.consume(connection.readable)
        self.eof = connection.receive_eof


class Transfer:
    """One connection over which `size` bytes go from `source` to `sink`, which then closes it too.

    Attributes:
        connection: that of the source.
        started: when the SYN was sent, seconds.
        ended: when the last byte and the FIN had arrived, or None.
    """

    def __init__(
        self, source: Host, sink: Host, size: int | float = math.inf, *, port: int = 0, local_port: int = 0
    ) -> None:
        """Opens the connection at once, by default to the first port from 5001 on where nobody listens.

        `size` may be infinite: then it goes on for ever.
        """
        self.size = size
        self.started = source.clock.now
        self.ended: float | None = None
        self._sink = sink
        self._reader: RampReader | None = None
        if not port:
            port = next(
                n for n in itertools.count(_TRANSFER_PORT) if (TCP, sink.address, n) not in sink.services
            )
        sink.listen(port, self._serve)
        self.connection = source.connect(sink, port, local_port=local_port)
        self.connection.owner = self._writer = RampWriter(self.connection, size)

    @property
    def received(self) -> int:
        """Bytes that have arrived, all of them right."""
        return 0 if self._reader is None else self._reader.received

    @property
    def done(self) -> bool:
        """Everything has arrived."""
        return self.ended is not None

    @property
    def error(self) -> CloseReason | None:
        """Why the source's connection ended, if it did not end well."""
        return self.connection.error

    @property
    def goodput(self) -> float:
        """Bits per second from the SYN to the last byte, or until now."""
        end = self._sink.clock.now if self.ended is None else self.ended
        return 8 * self.received / (end - self.started) if end > self.started else 0.0

    def _serve(self, connection: Connection) -> Transfer:
        self._reader = RampReader(connection)
        self._peer = connection
        return self

    def on_progress(self, now: float) -> None:
        """The sink's connection has made progress."""
        assert self._reader is not None
        self._reader.on_progress(now)
        if self._reader.eof and self.ended is None:
            if self.received != self.size:
                raise WrongBytes(f"the end has come after {self.received} of {self.size} bytes")
            self.ended = now
            self._peer.shutdown()


class Server:
    """Answers each request of `request` bytes by `response` bytes, on every connection to `port`."""

    def __init__(self, host: Host, request: int, response: int, *, port: int = 7000) -> None:
        self.port = port
        self.request = request
        self.response = response
        self.served = 0
        host.listen(port, lambda connection: _Answerer(self, connection))


class _Answerer:
    """One connection of a `Server`."""

    __slots__ = ("_connection", "_reader", "_server", "_writer")

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server = server
        self._connection = connection
        self._reader = RampReader(connection)
        self._writer = RampWriter(connection, 0, finish=False)

    def on_progress(self, now: float) -> None:
        self._reader.on_progress(now)
        server = self._server
        answers = self._reader.received // server.request
        while self._writer.size < answers * server.response:
            self._writer.size += server.response
            server.served += 1
        self._writer.on_progress(now)
        if self._reader.eof and self._writer.sent == self._writer.size:
            self._connection.shutdown()


class Client:
    """Sends `count` requests to a `Server` over one connection, each when the answer before it is complete.

    Attributes:
        latencies: of each answer, from the moment its request was queued, seconds; the first one
            contains the handshake.
        ended: when the connection was closed by both sides, or None.
        failed: why it ended, if it ended before.
    """

    def __init__(self, host: Host, peer: Host, server: Server, count: int = 1) -> None:
        """Opens the connection at once."""
        self.latencies: list[float] = []
        self.ended: float | None = None
        self.failed: CloseReason | None = None
        self._host = host
        self._server = server
        self._count = count
        self._asked = self.started = host.clock.now
        self.connection = connection = host.connect(peer, server.port)
        self._reader = RampReader(connection)
        self._writer = RampWriter(connection, server.request, finish=count == 1)
        connection.owner = self

    @property
    def done(self) -> bool:
        """All answers have come, or there will be no more."""
        return self.ended is not None or self.failed is not None

    def on_progress(self, now: float) -> None:
        """See `ConnectionOwner`."""
        connection, server = self.connection, self._server
        self._reader.on_progress(now)
        while len(self.latencies) < min(self._count, self._reader.received // server.response):
            self.latencies.append(now - self._asked)
            self._asked = now
            if len(self.latencies) < self._count:
                self._writer.size += server.request
                self._writer.finish = len(self.latencies) + 1 == self._count
        self._writer.on_progress(now)
        if self._reader.eof and self.ended is None:
            self.ended = now
        elif connection.closed and self.ended is None:
            self.failed = connection.error


class Crowd:
    """Many connections, one after the other every `interval` seconds, each with one request.

    Attributes:
        clients: those that have been started.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        peer: Host,
        count: int,
        *,
        interval: float,
        request: int = 100,
        response: int = 10_000,
        port: int = 7000,
    ) -> None:
        """`hosts` take turns as clients of `peer`."""
        self.clients: list[Client] = []
        self._hosts = hosts
        self._peer = peer
        self._count = count
        self._interval = interval
        self._server = Server(peer, request, response, port=port)
        hosts[0].clock.at(hosts[0].clock.now, self._open)

    @property
    def done(self) -> bool:
        """All have been started, and each has its answer or has failed."""
        return len(self.clients) == self._count and all(client.done for client in self.clients)

    def _open(self, now: float) -> None:
        host = self._hosts[len(self.clients) % len(self._hosts)]
        self.clients.append(Client(host, self._peer, self._server))
        if len(self.clients) < self._count:
            host.clock.at(now + self._interval, self._open)
