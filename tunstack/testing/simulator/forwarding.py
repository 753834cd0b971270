"""What a router does to the bytes of a packet: one hop less to go, and IPv4 packets cut to an MTU."""

from __future__ import annotations

import struct

from tunstack.errors import BadPacket, DropReason
from tunstack.ip import ipv4, ipv6

_LENGTH = struct.Struct("!H").unpack_from
_COPIED = 0x80
"""The bit of an option that goes into every fragment (RFC 791 3.1)."""


def destination(data: bytes) -> bytes:
    """Where `data`, one whole packet, wants to go.

    Raises:
        BadPacket: it is none; a router drops it (RFC 1812 5.2.2).
    """
    if data[:1] == b"\x45" and len(data) >= ipv4.HEADER_LENGTH:
        if int.from_bytes(data[:20], "big") % 0xFFFF:
            raise BadPacket(DropReason.BAD_IP_CHECKSUM)
        if not ipv4.HEADER_LENGTH <= _LENGTH(data, 2)[0] <= len(data):
            raise BadPacket(DropReason.IP_TRUNCATED)
        return data[16:20]
    if data[:1] and data[0] >> 4 == 6:
        if len(data) < ipv6.HEADER_LENGTH or _LENGTH(data, 4)[0] + ipv6.HEADER_LENGTH > len(data):
            raise BadPacket(DropReason.IP_TRUNCATED)
        return data[24:40]
    return ipv4.parse(data).dst


def hops_left(data: bytes) -> int:
    """How many hops the sender allows from here on."""
    return data[7] if data[0] >> 4 == 6 else data[8]


def one_hop_less(data: bytes) -> bytes:
    """A copy with the hop limit decremented, and the checksum of IPv4 as it must be then."""
    copy = bytearray(data)
    if copy[0] >> 4 == 6:
        copy[7] -= 1
    else:
        copy[8] -= 1
        # RFC 1624: the word with the hop limit is less by 0x100, so its complement is more by that.
        copy[10:12] = (((copy[10] << 8 | copy[11]) + 0x100) % 0xFFFF).to_bytes(2, "big")
    return bytes(copy)


def may_fragment(data: bytes) -> bool:
    """Whether a router may cut it: IPv4 without DF."""
    return data[0] >> 4 == 4 and not data[6] & ipv4.DONT_FRAGMENT >> 8


def fragment(data: bytes, mtu: int) -> list[bytes]:
    """An IPv4 packet, which may be a fragment itself, in pieces of at most `mtu` bytes (RFC 791 3.2).

    Options go into the first piece; into the others only those that are marked for it.
    """
    length = (data[0] & 15) * 4
    header, body = data[:length], data[length : int.from_bytes(data[2:4], "big")]
    later = header[:20] + _copied_options(header[20:])
    word = int.from_bytes(header[6:8], "big")
    base, last = word & ipv4.OFFSET_MASK, not word & ipv4.MORE_FRAGMENTS
    pieces = []
    start = 0
    while start < len(body):
        head = bytearray(later if start else header)
        step = (mtu - len(head)) & ~7
        if len(head) + len(body) - start <= mtu:
            step = len(body) - start
        more = 0 if last and start + step >= len(body) else ipv4.MORE_FRAGMENTS
        head[0] = 0x40 | len(head) // 4
        head[2:4] = (len(head) + step).to_bytes(2, "big")
        head[6:8] = (base + start // 8 | more).to_bytes(2, "big")
        _complete(head, len(head))
        pieces.append(bytes(head) + body[start : start + step])
        start += step
    return pieces


def _complete(packet: bytearray, length: int) -> None:
    packet[10:12] = bytes(2)
    packet[10:12] = (-int.from_bytes(packet[:length], "big") % 0xFFFF).to_bytes(2, "big")


def _copied_options(options: bytes) -> bytes:
    kept = b""
    place = 0
    while place < len(options) and options[place] != 0:
        size = 1 if options[place] == 1 else options[place + 1]  # well formed: `destination` has parsed it
        if options[place] & _COPIED:
            kept += options[place : place + size]
        place += size
    return kept + bytes(-len(kept) % 4)
