"""The trio face of the virtual network: streams, listeners and UDP sockets inside it.

Theory of operation. A `TcpStream` owns a connection of the stack as a NAT flow does, but its other side is a
trio task instead of a host socket. The engine calls `on_progress`, which wakes the tasks that are parked
here; the tasks work on the connection and wake the engine. Errors are trio's own: `BrokenResourceError` when
the peer has reset or gone, `ClosedResourceError` after a close on this side, `BusyResourceError` for two
tasks in one direction.
"""

from __future__ import annotations

import errno
import operator
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from tunstack.errors import DropReason
from tunstack.ip.addresses import format_address
from tunstack.packet import Buffer
from tunstack.stack import Stack
from tunstack.tcp.connection import CloseReason, Connection

if TYPE_CHECKING:
    from tunstack.ip.udp import UdpDatagram
    from tunstack.tcp.listener import TcpRequest

RECEIVE_SIZE = 64 * 1024
"""Most bytes that `receive_some` returns when it is not told."""
UDP_PAYLOAD = 65507
"""Most bytes of one datagram: 65535 less the headers of IPv4 and UDP."""
UDP_QUEUE = 128
"""Datagrams that wait for the reader of one virtual UDP socket."""


class Network(Protocol):
    """The running gateway, as far as streams need it."""

    stack: Stack

    def wake(self) -> None:
        """Run the engine soon."""
        ...


class _OneTask:
    """Raises `BusyResourceError` for a second task in the same direction."""

    __slots__ = ("_busy", "_message")

    def __init__(self, message: str) -> None:
        self._message = message
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(self._message)
        self._busy = True

    def __exit__(self, *exception: object) -> None:
        self._busy = False


class TcpStream(trio.abc.HalfCloseableStream):
    """A TCP connection with the guest. Made by `open_tcp_stream` and `TcpListener.accept`.

    Attributes:
        local, remote: (address as text, port) of both ends.
    """

    def __init__(self, network: Network, connection: Connection) -> None:
        self._network = network
        self._connection = connection
        self._send_lock = _OneTask("another task is sending on this stream")
        self._receive_lock = _OneTask("another task is receiving from this stream")
        self._progress = trio.lowlevel.ParkingLot()
        self._closed = False
        self._eof_sent = False
        self.local = (format_address(connection.local), connection.local_port)
        self.remote = (format_address(connection.remote), connection.remote_port)
        connection.owner = self

    def on_progress(self, now: float) -> None:
        """The connection has made progress (called by the engine)."""
        self._progress.unpark_all()

    async def wait_established(self) -> None:
        """Wait for the end of the handshake. Raises OSError with the reason if it fails."""
        connection = self._connection
        while not connection.established:
            if connection.closed:
                raise _connect_error(connection)
            await self._progress.park()

    async def send_all(self, data: Buffer) -> None:
        """Queue all of `data`, waiting for room."""
        with self._send_lock:
            await trio.lowlevel.checkpoint()
            view = memoryview(data).cast("B")
            self._check_sendable()
            while view:
                taken = self._connection.send(view)
                if taken:
                    view = view[taken:]
                    self._network.wake()
                if view:
                    await self._wait_room()
                    self._check_sendable()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        with self._send_lock:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            while self._connection.send_room() == 0 and not self._closed and not self._connection.closed:
                await self._progress.park()
            self._check_sendable()

    async def _wait_room(self) -> None:
        # Room that the page pool refuses comes back without an event of this connection.
        with trio.move_on_after(0.05 if self._connection.send_room() else float("inf")):
            await self._progress.park()

    def _check_sendable(self) -> None:
        if self._closed or self._eof_sent:
            raise trio.ClosedResourceError("this stream was closed for sending")
        if self._connection.closed:
            raise trio.BrokenResourceError(_reason(self._connection))

    async def send_eof(self) -> None:
        """Close the sending side (FIN); receiving goes on."""
        with self._send_lock:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed")
            if self._eof_sent:
                return
            if self._connection.closed:
                raise trio.BrokenResourceError(_reason(self._connection))
            self._eof_sent = True
            self._connection.shutdown()
            self._network.wake()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; b"" after the peer's FIN."""
        limit = RECEIVE_SIZE if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be >= 1")
        with self._receive_lock:
            await trio.lowlevel.checkpoint()
            connection = self._connection
            while True:
                if self._closed:
                    raise trio.ClosedResourceError("this stream was closed")
                if connection.readable:
                    return self._take(limit)
                if connection.receive_eof:
                    return b""
                if connection.closed:
                    raise trio.BrokenResourceError(_reason(connection))
                await self._progress.park()

    def _take(self, limit: int) -> bytes:
        chunks: list[memoryview] = []
        size = 0
        for view in self._connection.peek():
            chunks.append(view[: limit - size])
            size += len(chunks[-1])
            if size == limit:
                break
        data = b"".join(chunks)
        self._connection.consume(size)
        self._network.wake()
        return data

    async def aclose(self) -> None:
        """Close both directions; what is queued is still delivered, unread data causes a reset."""
        if not self._closed:
            self._closed = True
            self._connection.release(self._network.stack.now)
            self._progress.unpark_all()
            self._network.wake()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Close at once by RST; what is queued is lost."""
        self._closed = True
        self._connection.abort()
        self._connection.owner = None
        self._progress.unpark_all()
        self._network.wake()


class TcpListener(trio.abc.Listener[TcpStream]):
    """Accepts the guest's connections to an own address of the gateway.

    Handshakes are answered by the stack at once. At most `backlog` are under way; then the oldest gives way
    to the newest without a word (RFC 4987 3.4), so that a flood of SYNs that nobody follows up does not keep
    others out. While `backlog` connections wait to be accepted, SYNs are dropped, so that the guest tries
    again; those connections are never given up. Both are counted.
    """

    def __init__(self, network: Network, address: bytes, port: int, backlog: int) -> None:
        self._network = network
        self.address = (format_address(address), port)
        self._backlog = backlog
        self._opening: dict[_Embryo, None] = {}  # oldest first
        self._ready: deque[TcpStream] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False
        self.on_close: Callable[[], object] = lambda: None
        """Set by the gateway: takes the port out of service."""

    def tcp_request(self, request: TcpRequest, now: float) -> None:
        """A SYN for this port (called by the NAT)."""
        stack = self._network.stack
        if len(self._ready) >= self._backlog:
            stack.drops.add(DropReason.TCP_BACKLOG_FULL)
            stack.discard(request)
            return
        if len(self._opening) >= self._backlog:
            oldest = next(iter(self._opening))
            del self._opening[oldest]
            stack.drops.add(DropReason.TCP_BACKLOG_FULL)
            oldest.connection.owner = None
            oldest.connection.vanish()
        self._opening[_Embryo(self, stack.accept(request, now))] = None

    def progress(self, embryo: _Embryo) -> None:
        """A handshake has ended (called by its embryo)."""
        self._opening.pop(embryo, None)
        connection = embryo.connection
        if connection.established:
            self._ready.append(TcpStream(self._network, connection))
            self._arrived.unpark()

    async def accept(self) -> TcpStream:
        """The next established connection."""
        await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._closed:
                raise trio.ClosedResourceError("this listener was closed")
            await self._arrived.park()
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """What `aclose` does, without a checkpoint."""
        if self._closed:
            return
        self._closed = True
        self.on_close()
        for embryo in self._opening:
            embryo.connection.abort()
        for stream in self._ready:
            stream.reset()
        self._opening.clear()
        self._ready.clear()
        self._arrived.unpark_all()
        self._network.wake()


class _Embryo:
    """A connection of a listener whose handshake is under way."""

    __slots__ = ("_listener", "connection")

    def __init__(self, listener: TcpListener, connection: Connection) -> None:
        self._listener = listener
        self.connection = connection
        connection.owner = self

    def on_progress(self, now: float) -> None:
        if self.connection.established or self.connection.closed:
            self.connection.owner = None
            self._listener.progress(self)


class UdpSocket:
    """Datagrams between the guest and an own address and port of the gateway.

    At most `UDP_QUEUE` datagrams wait for the reader; what comes beyond is dropped and counted.
    """

    def __init__(self, network: Network, address: bytes, port: int) -> None:
        self._network = network
        self._local = (address, port)
        self.address = (format_address(address), port)
        self._queue: deque[tuple[bytes, tuple[bytes, int]]] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False
        self.on_close: Callable[[], object] = lambda: None
        """Set by the gateway: takes the port out of service."""

    def datagram(self, datagram: UdpDatagram, now: float) -> None:
        """One from the guest, or a train of them (called by the NAT)."""
        payload = datagram.payload
        size = datagram.gso_size or len(payload) or 1
        for start in range(0, len(payload) or 1, size):
            if len(self._queue) >= UDP_QUEUE:
                self._network.stack.drops.add(DropReason.UDP_QUEUE_FULL)
                continue
            part = bytes(payload[start : start + size])
            self._queue.append((part, (datagram.src, datagram.src_port)))
            self._arrived.unpark()

    async def receive_from(self) -> tuple[bytes, tuple[bytes, int]]:
        """The next datagram, and the guest's address (bytes) and port."""
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self._closed:
                raise trio.ClosedResourceError("this socket was closed")
            await self._arrived.park()
        return self._queue.popleft()

    async def send_to(self, payload: Buffer, address: bytes, port: int) -> None:
        """Send `payload` (at most 65507 bytes) to the guest at `address` (bytes) and `port`.

        Raises:
            OSError: the payload is too long for a datagram.
            ValueError: the address is of another family, or the port is none.
        """
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError("this socket was closed")
        if len(address) != len(self._local[0]) or not 0 < port <= 65535:
            raise ValueError(f"{address!r} and {port} are not where a datagram can go from here")
        if len(payload) > UDP_PAYLOAD:
            raise OSError(errno.EMSGSIZE, f"{len(payload)} bytes do not fit a datagram")
        stack = self._network.stack
        stack.send_udp(*self._local, address, port, bytes(payload), trio.current_time())
        self._network.wake()

    async def aclose(self) -> None:
        """Close; datagrams to the port are refused again."""
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """What `aclose` does, without a checkpoint."""
        if not self._closed:
            self._closed = True
            self.on_close()
            self._queue.clear()
            self._arrived.unpark_all()


def _reason(connection: Connection) -> str:
    return connection.error.value if connection.error is not None else "the connection is over"


def _connect_error(connection: Connection) -> OSError:
    text = f"cannot connect to {format_address(connection.remote)} port {connection.remote_port}"
    if connection.error in (CloseReason.REFUSED, CloseReason.RESET):
        return ConnectionRefusedError(f"{text}: connection refused")
    if connection.error is CloseReason.TIMEOUT:
        return TimeoutError(f"{text}: timed out")
    return OSError(f"{text}: {_reason(connection)}")
