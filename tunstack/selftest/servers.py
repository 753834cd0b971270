"""Servers at the host's loopback that a guest exchanges with, in threads."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
ORDER = struct.Struct("!QQ")
"""Bytes that the client sends, and that it wants."""
SUM = struct.Struct("!I")
BLOCK = bytes(range(251)) * 260
"""What is sent, again and again. Its length is no power of two, so that what moves is noticed."""
TIMEOUT = 30.0
"""Seconds without progress."""


def parts(size: int) -> Iterator[bytes]:
    """`size` bytes of `BLOCK`."""
    while size:
        part = BLOCK[:size]
        yield part
        size -= len(part)


def sum_of(size: int) -> int:
    """The checksum (CRC-32) of so many."""
    crc = 0
    for part in parts(size):
        crc = zlib.crc32(part, crc)
    return crc


def send_bytes(sock: socket.socket, size: int) -> int:
    """Send so many; their checksum."""
    for part in parts(size):
        sock.sendall(part)
    return sum_of(size)


def receive_bytes(sock: socket.socket, size: int) -> int:
    """Receive `size` bytes; their checksum. ConnectionError if they end before that."""
    crc = 0
    while size:
        part = sock.recv(min(size, 1 << 16))
        if not part:
            raise ConnectionResetError(None, f"the connection has ended, {size} bytes before its end")
        crc = zlib.crc32(part, crc)
        size -= len(part)
    return crc


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes. ConnectionError if they end before that."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionResetError(None, "the connection has ended")
        data += part
    return data


class Servers:
    """One for TCP and one that sends datagrams back, as long as the block.

    Attributes:
        tcp, udp: their ports.
    """

    def __init__(self) -> None:
        self._tcp = socket.create_server((HOST, 0))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((HOST, 0))
        self.tcp: int = self._tcp.getsockname()[1]
        self.udp: int = self._udp.getsockname()[1]

    def __enter__(self) -> Self:
        for serve in (self._serve_tcp, self._serve_udp):
            threading.Thread(target=serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._tcp, self._udp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
            sock.close()

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._tcp.accept()
                threading.Thread(target=_exchange, args=(client,), daemon=True).start()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = self._udp.recvfrom(1 << 16)
                if data:
                    self._udp.sendto(data, client)


def _exchange(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        client.settimeout(TIMEOUT)
        up, down = ORDER.unpack(receive_exactly(client, ORDER.size))
        client.sendall(SUM.pack(receive_bytes(client, up)))
        send_bytes(client, down)
