"""Servers for tests that say what a monitor of machines, a SOCKS5 proxy or an HTTP proxy says.

Each serves one listener in threads until it is closed, and carries what comes afterwards to a port of the
host. `pieces` is how many bytes are sent at once in the handshake, so that answers come in parts.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable

from tests.lab.server import ThreadServer


class Refuse(Exception):
    """Say these bytes, and close."""


class StandIn(ThreadServer):
    """A server; `asked` is what its clients asked for."""

    def __init__(
        self, listener: socket.socket, target: Callable[[], socket.socket], pieces: int = 1000
    ) -> None:
        super().__init__(listener)
        self._target = target
        self._pieces = pieces
        self.asked: list[object] = []

    def handle(self, client: socket.socket) -> None:
        try:
            answer = self.shake_hands(client)
        except Refuse as refusal:
            client.sendall(refusal.args[0])
            return
        with self._target() as server:
            self.say(client, answer)
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def say(self, client: socket.socket, data: bytes) -> None:
        for at in range(0, len(data), self._pieces):
            client.sendall(data[at : at + self._pieces])

    @abc.abstractmethod
    def shake_hands(self, client: socket.socket) -> bytes:
        """Read what the client asks for; the last answer is returned."""


class Monitor(StandIn):
    """Hybrid vsock: it knows port 52, and closes for others."""

    def shake_hands(self, client: socket.socket) -> bytes:
        line = _line(client)
        self.asked.append(line)
        if line != b"CONNECT 52\n":
            raise Refuse(b"")
        return b"OK 1073741824\n"


class Socks(StandIn):
    """SOCKS5; wants `login`, if there is one, and answers with `reply` (RFC 1928 6)."""

    login: tuple[bytes, bytes] | None = None
    reply = 0
    command = 1

    def shake_hands(self, client: socket.socket) -> bytes:
        version, count = _exactly(client, 2)
        methods = _exactly(client, count)
        assert version == 5
        wanted = 0 if self.login is None else 2
        if wanted not in methods:
            raise Refuse(b"\x05\xff")
        self.say(client, bytes((5, wanted)))
        if self.login is not None:
            _, size = _exactly(client, 2)
            user = _exactly(client, size)
            password = _exactly(client, *_exactly(client, 1))
            if (user, password) != self.login:
                raise Refuse(b"\x01\x01")
            self.say(client, b"\x01\x00")
        _, command, _, kind = _exactly(client, 4)
        assert command == self.command
        address = _exactly(client, 4 if kind == 1 else 16)
        self.asked.append((address, struct.unpack("!H", _exactly(client, 2))[0]))
        if self.reply:
            raise Refuse(bytes((5, self.reply, 0, 1)) + bytes(6))
        return self.answer()

    def answer(self) -> bytes:
        """Where it serves the client, by name."""
        return b"\x05\x00\x00\x03\x09localhost\x12\x34"


class SocksRelay(Socks):
    """SOCKS5 that relays datagrams, one client at a time: whatever is sent comes back with `mark` in front.

    `bound` is the address that it names.
    """

    command = 3
    END = b"end"
    """Sent by a client, ends its association."""
    mark = b"by proxy: "
    bound = bytes(4)

    def answer(self) -> bytes:
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", 0))
        kind = b"\x01" if len(self.bound) == 4 else b"\x04"
        return b"\x05\x00\x00" + kind + self.bound + struct.pack("!H", self.datagrams.getsockname()[1])

    def handle(self, client: socket.socket) -> None:
        try:
            self.say(client, self.shake_hands(client))
        except Refuse as refusal:
            client.sendall(refusal.args[0])
            return
        with self.datagrams as sock:
            while True:
                ready, _, _ = select.select([sock, client], [], [])
                if client in ready:
                    return
                data, sender = sock.recvfrom(65536)
                self.relay(sock, sender, data)

    def relay(self, sock: socket.socket, sender: object, data: bytes) -> None:
        """Serve one datagram."""
        size = 4 + (4 if data[3] == 1 else 16) + 2
        if data[size:] == self.END:
            raise ConnectionResetError
        self.asked.append((data[4 : size - 2], int.from_bytes(data[size - 2 : size], "big")))
        sock.sendto(data[:size] + self.mark + data[size:], sender)


class HttpProxy(StandIn):
    """HTTP CONNECT; wants `login`, if there is one, and answers with `status`."""

    login: tuple[bytes, bytes] | None = None
    status = b"200 Fine"

    def shake_hands(self, client: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += _exactly(client, 1)
        self.asked.append(head.split(b"\r\n")[0])
        if self.login is not None:
            word = b"Proxy-Authorization: Basic " + base64.b64encode(b":".join(self.login))
            if word not in head.split(b"\r\n"):
                raise Refuse(b"HTTP/1.1 407 Who\r\n\r\n")
        answer = b"HTTP/1.1 " + self.status + b"\r\nVia: lab\r\n\r\n"
        if not self.status.startswith(b"2"):
            raise Refuse(answer)
        return b"HTTP/1.1 103 Early\r\n\r\n" + answer


def _exactly(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = client.recv(size - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def _line(client: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += _exactly(client, 1)
    return line
