"""What is said on a stream before it is one's own: hybrid vsock, SOCKS5, HTTP CONNECT, and datagrams.

Theory of operation. A handshake is a generator, which knows no socket: it yields what it wants and is sent
what came. It yields bytes that are to be sent, a number of bytes that it wants to have, or `Until` a
terminator; it returns when the stream belongs to the caller, and raises `Refused` when it never will. A
`Conversation` drives it between a socket and somebody who waits for that. No byte is read beyond what was
asked for, since the next one is the caller's: what ends with a terminator is looked at (MSG_PEEK) before it
is read. What the other end says is as hostile as a guest: bounded, and any of it ends in a return or in
`Refused`.
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import socket
import struct
from collections.abc import Generator
from typing import Any

from tunstack.nat.dialer import Refusal
from tunstack.nat.portable import NO_SIGNAL

LINE_LIMIT = 64
"""Bytes of hybrid vsock's answer, and of what is said of datagrams."""
DATAGRAMS = b"TUNSTACK DATAGRAMS 1\n"
"""Asks for a stream of datagrams, each behind its length (see `tunstack.nat.channel`), and grants it."""
HEAD_LIMIT = 16 * 1024
"""Bytes of the head of an HTTP answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Until:
    """Everything up to and with `terminator`, which comes within `limit` bytes."""

    terminator: bytes
    limit: int


Wish = bytes | int | Until
Handshake = Generator[Wish, bytes, Any]
"""Yields wishes; is sent the bytes of the last one, or none for bytes that were to be sent."""


class Refused(Exception):
    """The other end has refused."""

    def __init__(self, refusal: Refusal, why: str) -> None:
        super().__init__(why)
        self.refusal = refusal


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """Who somebody is to a proxy. Never shown: not in a repr, a log or an answer of the API."""

    user: str
    password: str = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        return "Credentials(...)"


class Conversation:
    """A handshake on a socket that never blocks.

    Attributes:
        sending: bytes that are to be sent before anything is read.
        is_over: the stream is the caller's.
        result: what the handshake has returned then.
    """

    def __init__(self, handshake: Handshake) -> None:
        self._handshake = handshake
        self._wish: Wish = b""
        self._data = b""
        self.sending = b""
        self.is_over = False
        self.result: Any = None
        self._go_on(None)

    def advance(self, sock: socket.socket) -> bool:
        """Send and receive what can be now; whether it is over. Until then wait for `sending` or else for
        something to read.

        Raises:
            Refused: the other end has refused, or is no such thing.
            OSError: the socket is broken.
        """
        try:
            while not self.is_over:
                if self.sending:
                    self.sending = self.sending[sock.send(self.sending, NO_SIGNAL) :]
                    if not self.sending:
                        self._go_on(b"")
                else:
                    self._receive(sock)
        except (BlockingIOError, InterruptedError):
            pass
        return self.is_over

    def _receive(self, sock: socket.socket) -> None:
        wish = self._wish
        if isinstance(wish, Until):
            part = sock.recv(wish.limit - len(self._data), socket.MSG_PEEK)
            end = (self._data + part).find(wish.terminator)
            is_whole = end >= 0
            self._data += sock.recv(end + len(wish.terminator) - len(self._data) if is_whole else len(part))
            if not is_whole and len(self._data) >= wish.limit:
                raise Refused(Refusal.UNREACHABLE, f"the other end says more than {wish.limit} bytes")
        else:
            assert isinstance(wish, int)
            part = sock.recv(wish - len(self._data))
            self._data += part
            is_whole = len(self._data) == wish
        if not part:
            raise Refused(Refusal.REFUSED, "the other end has closed")
        if is_whole:
            data, self._data = self._data, b""
            self._go_on(data)

    def _go_on(self, data: bytes | None) -> None:
        try:
            self._wish = next(self._handshake) if data is None else self._handshake.send(data)
        except StopIteration as end:
            self.is_over = True
            self.result = end.value
            return
        if isinstance(self._wish, bytes):
            self.sending = self._wish


def hybrid(port: int) -> Handshake:
    """Ask the monitor of a machine for a port of it (Firecracker's docs/vsock.md, host-initiated).

    The answer tells the port that the monitor uses on the host's side. A monitor refuses by closing.
    """
    yield b"CONNECT %d\n" % port
    line = yield Until(b"\n", LINE_LIMIT)
    word, _, number = line.rstrip(b"\r\n").partition(b" ")
    if word != b"OK" or not number.isdigit():
        raise Refused(
            Refusal.UNREACHABLE, "it is no monitor of a machine: it does not answer with OK and a port"
        )


def socks5(host: bytes | str, port: int, credentials: Credentials | None = None) -> Handshake:
    """Ask a SOCKS5 proxy to connect (RFC 1928, RFC 1929). `host`: an address of 4 or 16 bytes, or a name."""
    yield from _socks5_greet(credentials)
    yield _SOCKS_HEAD.pack(5, _CONNECT, 0) + socks5_address(host, port)
    yield from _socks5_answer()


def socks5_associate(credentials: Credentials | None = None) -> Handshake:
    """Ask a SOCKS5 proxy to relay datagrams as long as the stream stands (RFC 1928 7).

    Returns the address (4 or 16 bytes) and port to which they are to be sent; no address (of zeros) is the
    proxy's own.
    """
    yield from _socks5_greet(credentials)
    yield _SOCKS_HEAD.pack(5, _UDP_ASSOCIATE, 0) + socks5_address(bytes(4), 0)
    bound = yield from _socks5_answer()
    address, port = bound[:-2], int.from_bytes(bound[-2:], "big")
    if len(address) not in (4, 16) or not port:
        raise Refused(Refusal.UNREACHABLE, "the proxy does not say where datagrams go")
    return address, port


def datagrams() -> Handshake:
    """Ask the other tunstack for a stream of datagrams."""
    yield DATAGRAMS
    if (yield Until(b"\n", LINE_LIMIT)) != DATAGRAMS:
        raise Refused(Refusal.UNREACHABLE, "the other end carries no datagrams")


def grant_datagrams() -> Handshake:
    """The other side of `datagrams`."""
    if (yield Until(b"\n", LINE_LIMIT)) != DATAGRAMS:
        raise Refused(Refusal.UNREACHABLE, "the other end does not ask for datagrams")
    yield DATAGRAMS


def http_connect(host: bytes | str, port: int, credentials: Credentials | None = None) -> Handshake:
    """Ask an HTTP proxy for a tunnel (RFC 9110 9.3.6)."""
    text = host if isinstance(host, str) else str(ipaddress.ip_address(host))
    target = f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if credentials is not None:
        pair = f"{credentials.user}:{credentials.password}".encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}")
    yield "\r\n".join([*lines, "", ""]).encode()
    while True:
        head = yield Until(b"\r\n\r\n", HEAD_LIMIT)
        version, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        status = rest[:3]
        if not version.startswith(b"HTTP/1.") or not status.isdigit() or rest[3:4] not in (b"", b" "):
            raise Refused(Refusal.UNREACHABLE, "the proxy does not speak HTTP/1.1")
        if not status.startswith(b"1"):  # an interim answer, RFC 9110 15.2
            break
    if not status.startswith(b"2"):
        refusal = _HTTP_REFUSALS.get(int(status), Refusal.UNREACHABLE)
        raise Refused(refusal, f"the proxy answered with status {int(status)}")


_SOCKS_HEAD = struct.Struct("!BBB")
_CONNECT, _UDP_ASSOCIATE = 1, 3
_NAME = 3
SOCKS_ADDRESSES = {1: 4, 4: 16}
"""Bytes of an address by its type, IPv4 and IPv6 (RFC 1928 5)."""
_NO_AUTHENTICATION, _PASSWORD = 0, 2
_SOCKS_REFUSALS = {
    1: Refusal.UNREACHABLE,
    2: Refusal.PROHIBITED,
    3: Refusal.NET_UNREACHABLE,
    4: Refusal.UNREACHABLE,
    5: Refusal.REFUSED,
    6: Refusal.TIMEOUT,
    7: Refusal.PROHIBITED,
    8: Refusal.PROHIBITED,
}
"""RFC 1928 6: the reply field."""
_HTTP_REFUSALS = {
    401: Refusal.PROHIBITED,
    403: Refusal.PROHIBITED,
    405: Refusal.PROHIBITED,
    407: Refusal.PROHIBITED,
    504: Refusal.TIMEOUT,
}


def _socks5_greet(credentials: Credentials | None) -> Handshake:
    methods = bytes((_NO_AUTHENTICATION,) if credentials is None else (_NO_AUTHENTICATION, _PASSWORD))
    yield bytes((5, len(methods))) + methods
    version, method = yield 2
    if version != 5:
        raise Refused(Refusal.UNREACHABLE, "the proxy does not speak SOCKS5")
    if method not in methods:
        raise Refused(Refusal.PROHIBITED, "the proxy wants an authentication that it cannot be given")
    if method == _PASSWORD and credentials is not None:
        user, password = credentials.user.encode(), credentials.password.encode()
        yield bytes((1, len(user))) + user + bytes((len(password),)) + password
        _, status = yield 2
        if status:
            raise Refused(Refusal.PROHIBITED, "the proxy has refused user and password")


def socks5_address(host: bytes | str, port: int) -> bytes:
    """An address as SOCKS5 has it, and the port (RFC 1928 5)."""
    if isinstance(host, str):
        name = host.encode("idna")
        return bytes((_NAME, len(name))) + name + port.to_bytes(2, "big")
    return bytes((1 if len(host) == 4 else 4,)) + host + port.to_bytes(2, "big")


def _socks5_answer() -> Handshake:
    """Read the answer to a request; returns the address and port that the proxy uses, without their type."""
    version, reply, _, kind = yield 4
    if version != 5:
        raise Refused(Refusal.UNREACHABLE, "the proxy does not speak SOCKS5")
    if reply:
        refusal = _SOCKS_REFUSALS.get(reply, Refusal.UNREACHABLE)
        raise Refused(refusal, f"the proxy answered with reply {reply}")
    if kind == _NAME:
        (size,) = yield 1
    elif kind in SOCKS_ADDRESSES:
        size = SOCKS_ADDRESSES[kind]
    else:
        raise Refused(Refusal.UNREACHABLE, "the proxy's answer has no address")
    return (yield size + 2)
