"""Channels for datagrams: to another tunstack by a stream, to a UDP service, and by way of a SOCKS5 proxy.

Theory of operation. A stream to another tunstack begins with one line of each end, so that a service which
is no such thing is noticed; from then on it is a `FramedChannel`. A SOCKS5 proxy is asked for an association
(RFC 1928 7): datagrams go to the address that it names, each behind a header with its destination, and what
comes back has its source there. The association lasts as long as the connection on which it was asked for.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable

from tunstack.errors import DropReason
from tunstack.nat.channel import BURST, CHUNK, FramedChannel, OnOpen, Receiver, SocketChannel
from tunstack.nat.context import Context, Destination
from tunstack.nat.dialer import ENDED, Dial, Outcome, Refusal, refusal_of
from tunstack.nat.poller import READ
from tunstack.packet import Buffer
from tunstack.vsock.addresses import Address, HybridAddress, TcpAddress, UdpAddress
from tunstack.vsock.dialers import AddressDialer, converse
from tunstack.vsock.handshakes import (
    SOCKS_ADDRESSES,
    Credentials,
    Handshake,
    datagrams,
    grant_datagrams,
    hybrid,
    socks5_address,
    socks5_associate,
)
from tunstack.vsock.sockets import closed_on_failure


class StreamOpener:
    """Opens streams of datagrams to another tunstack. Implements `tunstack.nat.channel.Opener`."""

    descriptors = 1
    leads_anywhere = False

    def __init__(self, address: Address) -> None:
        self._address = address

    def open(self, context: Context, now: float, done: OnOpen) -> Dial:
        """See `Opener`."""
        dialer = AddressDialer(context.poller, self._address, lambda dst, port: self._ask())
        return dialer.dial(b"", 0, now, _framed(context, done))

    def _ask(self) -> Handshake:
        if isinstance(self._address, HybridAddress):
            yield from hybrid(self._address.port)
        yield from datagrams()


def accept_datagrams(context: Context, sock: socket.socket, now: float, done: OnOpen) -> Dial:
    """Make a channel of an accepted stream. A `tunstack.nat.channel.Accept`."""
    return converse(context.poller, sock, grant_datagrams(), _framed(context, done))


def _framed(context: Context, done: OnOpen) -> Callable[[Outcome, float], None]:
    def have(outcome: Outcome, now: float) -> None:
        done(outcome if isinstance(outcome, Refusal) else FramedChannel(context, outcome), now)

    return have


class SocketOpener:
    """Opens sockets to one UDP service. Implements `Opener`."""

    descriptors = 1
    leads_anywhere = False

    def __init__(self, address: UdpAddress) -> None:
        """The host has to be an IP address."""
        self._address = address

    def open(self, context: Context, now: float, done: OnOpen) -> Dial:
        """See `Opener`."""
        try:
            channel = SocketChannel(context, _connected(self._address.host, self._address.port))
        except OSError as error:
            done(refusal_of(error.errno or 0), now)
        else:
            done(channel, now)
        return ENDED


class SocksOpener:
    """Opens associations of a SOCKS5 proxy. Implements `Opener`."""

    descriptors = 2
    leads_anywhere = True

    def __init__(self, address: TcpAddress, credentials: Credentials | None) -> None:
        self._address = address
        self._credentials = credentials

    def open(self, context: Context, now: float, done: OnOpen) -> Dial:
        """See `Opener`."""
        named: list[tuple[bytes, int]] = []

        def ask(dst: bytes, dst_port: int) -> Handshake:
            named.append((yield from socks5_associate(self._credentials)))

        def have(outcome: Outcome, now: float) -> None:
            if isinstance(outcome, Refusal):
                done(outcome, now)
                return
            address, port = named[0]
            host = str(ipaddress.ip_address(address)) if any(address) else self._address.host
            try:
                channel = SocksChannel(context, outcome, _connected(host, port))
            except OSError as error:
                outcome.close()
                done(refusal_of(error.errno or 0), now)
            else:
                done(channel, now)

        return AddressDialer(context.poller, self._address, ask).dial(b"", 0, now, have)


class SocksChannel:
    """An association; the token of its connection. Implements `tunstack.nat.channel.Channel`."""

    def __init__(self, context: Context, stream: socket.socket, sock: socket.socket) -> None:
        self._context = context
        self._stream = stream
        self._datagrams = SocketChannel(context, sock)
        self._receiver: Receiver | None = None
        self._is_open = True

    def start(self, receiver: Receiver) -> None:
        """See `Channel`."""
        self._receiver = receiver
        self._datagrams.start(self)
        self._context.poller.add(self._stream, self, READ)

    def send(self, payload: Buffer, destination: Destination) -> None:
        """See `Channel`."""
        self._datagrams.send(bytes(3) + socks5_address(*destination) + bytes(payload), destination)

    def received(self, payload: bytes, source: Destination | None, now: float) -> None:
        """What the proxy has relayed; see `Receiver`."""
        size = SOCKS_ADDRESSES.get(payload[3]) if len(payload) > 3 else None
        if size is None or payload[2] or len(payload) < 4 + size + 2:  # a name, a fragment, or torn
            self._context.drops.add(DropReason.UDP_FILTERED)
            return
        assert self._receiver is not None
        end = 4 + size + 2
        sender = payload[4 : 4 + size], int.from_bytes(payload[4 + size : end], "big")
        self._receiver.received(payload[end:], sender, now)

    def failed(self, code: int, now: float) -> None:
        """The proxy does not take datagrams any more; see `Receiver`."""
        if code == errno.ECONNREFUSED:
            self._end(now)
        elif self._receiver is not None:
            self._receiver.failed(code, now)

    def ended(self, now: float) -> None:
        """See `Receiver`; a socket of datagrams never ends by itself."""

    def on_ready(self, ready: int, now: float) -> None:
        """The connection says something, which means nothing, or has ended."""
        for _ in range(BURST):
            try:
                part = self._stream.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                part = b""
            if not part:
                self._end(now)
                return

    def close(self) -> None:
        """See `Channel`."""
        if self._is_open:
            self._is_open = False
            self._datagrams.close()
            if self._receiver is not None:
                self._context.poller.remove(self._stream)
            self._stream.close()

    def _end(self, now: float) -> None:
        if self._is_open:
            self.close()
            if self._receiver is not None:
                self._receiver.ended(now)


def _connected(host: str, port: int) -> socket.socket:
    """A socket of datagrams that is connected there; OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    with closed_on_failure(sock):
        sock.setblocking(False)
        sock.connect((host, port))
    return sock
