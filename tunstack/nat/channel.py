"""Channels: ways of datagrams that are no mapping of the NAT.

Theory of operation. A `FramedChannel` is a stream that carries datagrams, each behind its length (two bytes,
big-endian), in both directions. It is read in pieces of any size and written as the other end takes it; what
waits for that is bounded, and a datagram that does not fit any more is dropped as a whole, so that frames
are never torn. A `SocketChannel` is a socket of datagrams that is connected to one service. Either ends with
its socket, and tells its receiver; who opens one is `Opener`, of which `tunstack.vsock.datagrams` has some.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Protocol

from tunstack.errors import DropReason
from tunstack.nat.context import Context, Destination
from tunstack.nat.dialer import Dial, Refusal
from tunstack.nat.linger import close_gently
from tunstack.nat.poller import READ, WRITE
from tunstack.nat.portable import NO_SIGNAL
from tunstack.packet import Buffer

LARGEST = 65507
"""Bytes of a datagram: what UDP over IPv4 can carry, so that each end can pass on what the other sends."""
QUOTE = 128
"""Bytes of a datagram kept for ICMP errors: the largest IP header, UDP, and some payload."""
QUEUE = 256 * 1024
"""Bytes that wait for a stream that is not read."""
BURST = 32
"""Datagrams, or a fourth as many pieces of a stream, read at once."""
CHUNK = 64 * 1024
"""Bytes of a read."""
_LENGTH = struct.Struct("!H")


class Receiver(Protocol):
    """Who is told what comes out of a channel."""

    def received(self, payload: bytes, source: Destination | None, now: float) -> None:
        """A datagram; `source` is None where the channel leads to one service alone."""
        ...

    def failed(self, code: int, now: float) -> None:
        """A datagram did not get there, for the reason that this errno is; the channel goes on."""
        ...

    def ended(self, now: float) -> None:
        """The channel is closed; called once, and not after `close`."""
        ...


class Channel(Protocol):
    """A way of datagrams."""

    def start(self, receiver: Receiver) -> None:
        """Tell `receiver` from now on what comes; to be called once, before all others."""
        ...

    def send(self, payload: Buffer, destination: Destination) -> None:
        """Send a datagram, or drop and count it; `payload` is not kept."""
        ...

    def close(self) -> None:
        """Harmless after the end."""
        ...


Opened = Channel | Refusal
OnOpen = Callable[[Opened, float], None]


class Opener(Protocol):
    """Makes channels.

    Attributes:
        descriptors: how many a channel has.
        leads_anywhere: a channel serves any destination, and tells whence datagrams come.
    """

    @property
    def descriptors(self) -> int: ...

    @property
    def leads_anywhere(self) -> bool: ...

    def open(self, context: Context, now: float, done: OnOpen) -> Dial:
        """Make one; `done` is called as that of `Dialer.dial`."""
        ...


Accept = Callable[[Context, socket.socket, float, OnOpen], Dial]
"""Makes a channel of an accepted stream, which belongs to it from now on."""


class FramedChannel:
    """Datagrams on a stream; the token of its socket, which belongs to it."""

    __slots__ = ("_context", "_incoming", "_interest", "_outgoing", "_receiver", "_sock")

    def __init__(self, context: Context, sock: socket.socket) -> None:
        self._context = context
        self._sock: socket.socket | None = sock
        self._receiver: Receiver | None = None
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._interest = READ

    def start(self, receiver: Receiver) -> None:
        """See `Channel`."""
        self._receiver = receiver
        assert self._sock is not None
        self._context.poller.add(self._sock, self, READ)

    def send(self, payload: Buffer, destination: Destination) -> None:
        """See `Channel`."""
        size = len(payload)
        if self._sock is None or size > LARGEST:
            self._context.drops.add(DropReason.UDP_SOCKET_ERROR)
            return
        if len(self._outgoing) + _LENGTH.size + size > QUEUE:
            self._context.drops.add(DropReason.UDP_SOCKET_FULL)
            return
        self._outgoing += _LENGTH.pack(size)
        self._outgoing += payload
        if self._interest == READ:
            self._flush(self._sock, self._context.stack.now)

    def on_ready(self, ready: int, now: float) -> None:
        """Something can be read or written, or the stream has ended."""
        sock = self._sock
        if sock is None:
            return
        if ready & WRITE and self._interest != READ:
            self._flush(sock, now)
        if ready & ~WRITE:
            self._receive(sock, now)

    def close(self) -> None:
        """See `Channel`."""
        sock, self._sock = self._sock, None
        if sock is not None:
            if self._receiver is not None:
                self._context.poller.remove(sock)
            close_gently(self._context, sock)
            self._incoming.clear()
            self._outgoing.clear()

    def _receive(self, sock: socket.socket, now: float) -> None:
        for _ in range(BURST // 4):
            try:
                part = sock.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                part = b""
            if not part:  # nobody answers any more who has ended its half
                self._end(now)
                return
            self._incoming += part
            self._deliver(now)
            if self._sock is None:
                return

    def _deliver(self, now: float) -> None:
        """Tell of the datagrams that are there as a whole."""
        incoming, start, receiver = self._incoming, 0, self._receiver
        assert receiver is not None
        while len(incoming) - start >= _LENGTH.size:
            size = incoming[start] << 8 | incoming[start + 1]
            begin = start + _LENGTH.size
            if len(incoming) < begin + size:
                break
            start = begin + size
            if size > LARGEST:
                self._context.drops.add(DropReason.UDP_SOCKET_ERROR)
                continue
            receiver.received(bytes(incoming[begin:start]), None, now)
            if self._sock is None:
                return
        del incoming[:start]

    def _flush(self, sock: socket.socket, now: float) -> None:
        try:
            while self._outgoing:
                count = sock.send(self._outgoing, NO_SIGNAL)
                del self._outgoing[:count]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._end(now)
            return
        interest = READ | WRITE if self._outgoing else READ
        if interest != self._interest:
            self._interest = interest
            self._context.poller.modify(sock, self, interest)

    def _end(self, now: float) -> None:
        receiver = self._receiver
        self.close()
        if receiver is not None:
            receiver.ended(now)


class SocketChannel:
    """Datagrams on a socket that is connected to one service; the token of the socket, which it owns."""

    __slots__ = ("_context", "_receiver", "_sock")

    def __init__(self, context: Context, sock: socket.socket) -> None:
        self._context = context
        self._sock: socket.socket | None = sock
        self._receiver: Receiver | None = None

    def start(self, receiver: Receiver) -> None:
        """See `Channel`."""
        self._receiver = receiver
        assert self._sock is not None
        self._context.poller.add(self._sock, self, READ)

    def send(self, payload: Buffer, destination: Destination) -> None:
        """See `Channel`."""
        sock = self._sock
        if sock is None:
            return
        # An error of an earlier datagram makes a send fail, too, and is void with that.
        for is_last in (False, True):
            try:
                sock.send(payload)
                return
            except BlockingIOError:
                self._context.drops.add(DropReason.UDP_SOCKET_FULL)
                return
            except OSError as error:
                if is_last:
                    self._context.drops.add(DropReason.UDP_SOCKET_ERROR)
                self._tell(error, self._context.stack.now)

    def on_ready(self, ready: int, now: float) -> None:
        """Datagrams are there, or an error of an earlier one."""
        for _ in range(BURST):
            sock = self._sock
            if sock is None:
                return
            try:
                payload = sock.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._tell(error, now)
                continue
            assert self._receiver is not None
            self._receiver.received(payload, None, now)

    def close(self) -> None:
        """See `Channel`."""
        sock, self._sock = self._sock, None
        if sock is not None:
            if self._receiver is not None:
                self._context.poller.remove(sock)
            sock.close()

    def _tell(self, error: OSError, now: float) -> None:
        if self._receiver is not None:
            self._receiver.failed(error.errno or 0, now)
