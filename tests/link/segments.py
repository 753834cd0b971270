"""Guests of a shared segment as tests make them: their frames, and sockets of every kind."""

from __future__ import annotations

import socket
import struct

from tunstack.errors import DropCounters
from tunstack.limits import MAX_FRAME
from tunstack.link.arp import REPLY, REQUEST, ArpMessage
from tunstack.link.arp import emit as emit_arp
from tunstack.link.ethernet import BROADCAST, ZERO, header
from tunstack.link.framings import HYPERKIT, QEMU, Deframer, Framing

GATEWAY_MAC = b"\x02\0\0\0\0\xfe"
GATEWAY_IP = b"\x0a\0\2\2"
GATEWAY_IP6 = b"\xfd" + bytes(14) + b"\2"

KINDS = ("stream", "headers", "vpnkit", "datagram", "sequence")
HEADER = bytes(10)
"""A virtio-net header that says nothing; what `headers` has in front of each frame."""


def mac_of(number: int) -> bytes:
    return b"\x02\0\0\0" + struct.pack("!H", number)


def ip_of(number: int) -> bytes:
    return b"\x0a\0" + struct.pack("!H", 0x0280 + number)


def ip6_of(number: int) -> bytes:
    return b"\xfd" + bytes(13) + struct.pack("!H", 0x100 + number)


def ip_packet(src: bytes, dst: bytes, protocol: int = 6, body: bytes = bytes(20)) -> bytes:
    """With a header checksum of 0, as nobody here looks at it."""
    if len(src) == 4:
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + src + dst + body
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + src + dst + body


def ip_frame(
    dst_mac: bytes, src_mac: bytes, src: bytes, dst: bytes, protocol: int = 6, body: bytes = bytes(20)
) -> bytes:
    ethertype = 0x0800 if len(src) == 4 else 0x86DD
    return header(dst_mac, src_mac, ethertype) + ip_packet(src, dst, protocol, body)


def arp_frame(
    src_mac: bytes, sender: bytes, target: bytes, *, mac: bytes | None = None, reply: bool = False
) -> bytes:
    message = ArpMessage(REPLY if reply else REQUEST, mac or src_mac, sender, ZERO, target)
    return header(BROADCAST, src_mac, 0x0806) + emit_arp(message)


def udp(src_port: int, dst_port: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", src_port, dst_port, 8 + len(payload), 0) + payload


class GuestEnd:
    """The guest's end of a link, and the gateway's socket."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.framing: Framing | None = {"stream": QEMU, "headers": QEMU, "vpnkit": HYPERKIT}.get(kind)
        self.header = HEADER if kind == "headers" else b""
        types = {"datagram": socket.SOCK_DGRAM, "sequence": socket.SOCK_SEQPACKET}
        self.theirs, self.sock = socket.socketpair(socket.AF_UNIX, types.get(kind, socket.SOCK_STREAM))
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._unread = b""
        self._deframer = Deframer(self.framing or QEMU, len(self.header) + MAX_FRAME, DropCounters())

    def send(self, frame: bytes) -> None:
        """All of it, or BlockingIOError."""
        frame = self.header + frame
        data = frame if self.framing is None else self.framing.header(len(frame)) + frame
        if self.sock.send(data) < len(data):
            raise BlockingIOError

    def received(self) -> list[bytes]:
        """The frames that have come."""
        frames: list[bytes] = []
        while True:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return frames
            if not data:
                return frames
            if self.framing is None:
                frames.append(data)
                continue
            self._unread += data
            found, used = self._deframer.find(memoryview(self._unread))
            frames += (bytes(frame[len(self.header) :]) for frame in found)
            self._unread = self._unread[used:]

    def close(self) -> None:
        self.sock.close()
