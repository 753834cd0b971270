"""Dialers of a NAT for what is no TCP destination: UNIX sockets, vsock, Hyper-V sockets, and proxies."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from tunstack.nat.dialer import Dial, Done, Refusal, refusal_of
from tunstack.nat.poller import READ, WRITE, Poller
from tunstack.vsock.addresses import Address, HybridAddress, TcpAddress, UnixAddress
from tunstack.vsock.handshakes import (
    Conversation,
    Credentials,
    Handshake,
    Refused,
    http_connect,
    hybrid,
    socks5,
)
from tunstack.vsock.sockets import new_socket, socket_address

UNIX_BUFFER = 1 << 20
"""Bytes that a UNIX socket may hold for its reader; the system may allow fewer."""

Begin = Callable[[bytes, int], Handshake]
"""Makes the handshake for a destination: its address (4 or 16 bytes) and port."""


class AddressDialer:
    """Connects to one address, whatever the destination, and then shakes hands if `begin` is given.

    Implements `tunstack.nat.dialer.Dialer`. A TCP address has to be numeric.
    """

    __slots__ = ("_begin", "_poller", "address")

    def __init__(self, poller: Poller, address: Address, begin: Begin | None = None) -> None:
        self._poller = poller
        self.address = address
        self._begin = begin
        if begin is None and isinstance(address, HybridAddress):
            self._begin = lambda dst, dst_port: hybrid(address.port)

    def dial(self, dst: bytes, dst_port: int, now: float, done: Done) -> Dial:
        """See `Dialer`."""
        attempt = _Attempt(self._poller, done)
        attempt.start(self.address, None if self._begin is None else self._begin(dst, dst_port), now)
        return attempt


def converse(poller: Poller, sock: socket.socket, handshake: Handshake, done: Done) -> Dial:
    """Shake hands on a socket that is connected, non-blocking, and belongs to this until `done` has it."""
    attempt = _Attempt(poller, done)
    attempt.go_on(sock, handshake)
    return attempt


def socks5_dialer(poller: Poller, address: TcpAddress, credentials: Credentials | None) -> AddressDialer:
    """Reaches destinations by way of a SOCKS5 proxy."""
    return AddressDialer(poller, address, lambda dst, port: socks5(dst, port, credentials))


def http_dialer(poller: Poller, address: TcpAddress, credentials: Credentials | None) -> AddressDialer:
    """Reaches destinations by way of an HTTP proxy."""
    return AddressDialer(poller, address, lambda dst, port: http_connect(dst, port, credentials))


class _Attempt:
    """A connect() and a handshake under way; the token of its socket."""

    __slots__ = ("_conversation", "_done", "_handshake", "_interest", "_poller", "_sock")

    def __init__(self, poller: Poller, done: Done) -> None:
        self._poller = poller
        self._done = done
        self._sock: socket.socket | None = None
        self._handshake: Handshake | None = None
        self._conversation: Conversation | None = None
        self._interest = WRITE

    def start(self, address: Address, handshake: Handshake | None, now: float) -> None:
        try:
            sock = new_socket(address)
        except OSError as error:
            self._done(_refusal(error), now)
            return
        try:
            if isinstance(address, TcpAddress):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            elif isinstance(address, (UnixAddress, HybridAddress)):
                # It does not grow as TCP's does; what waits in it keeps both ends from waiting.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
            sock.connect(socket_address(address))
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:  # a UNIX socket whose backlog is full says EAGAIN
                sock.close()
                self._done(_refusal(error), now)
                return
        except OSError as error:
            sock.close()
            self._done(_refusal(error), now)
            return
        self.go_on(sock, handshake)

    def go_on(self, sock: socket.socket, handshake: Handshake | None) -> None:
        """Shake hands as soon as `sock` is connected."""
        self._handshake = handshake
        self._sock = sock
        self._poller.add(sock, self, WRITE)

    def on_ready(self, ready: int, now: float) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            if self._conversation is None:
                if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, "")
                if self._handshake is None:
                    self._end(None, now)
                    return
                self._conversation = Conversation(self._handshake)
            if self._conversation.advance(sock):
                self._end(None, now)
                return
        except Refused as error:
            self._end(error.refusal, now)
            return
        except OSError as error:
            self._end(_refusal(error), now)
            return
        interest = WRITE if self._conversation.sending else READ
        if interest != self._interest:
            self._interest = interest
            self._poller.modify(sock, self, interest)

    def cancel(self) -> None:
        """See `Dial`."""
        if self._sock is not None:
            self._poller.remove(self._sock)
            self._sock.close()
            self._sock = None

    def _end(self, refusal: Refusal | None, now: float) -> None:
        sock, self._sock = self._sock, None
        assert sock is not None
        self._poller.remove(sock)
        if refusal is None:
            self._done(sock, now)
        else:
            sock.close()
            self._done(refusal, now)


def _refusal(error: OSError) -> Refusal:
    code = error.errno or 0
    if code == errno.ENOENT:  # the path of a UNIX socket: nobody listens there, as on a port
        return Refusal.REFUSED
    return refusal_of(code)
