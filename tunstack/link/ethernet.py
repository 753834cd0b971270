"""Ethernet II framing (RFC 894, RFC 2464): constants, the header, group addresses, MAC text."""

from __future__ import annotations

import struct
from typing import cast

from tunstack.errors import BadPacket, DropReason
from tunstack.packet import Buffer

HEADER_LENGTH = 14
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD

BROADCAST = b"\xff" * 6
ZERO = bytes(6)

_HEADER = struct.Struct("!6s6sH")
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


def parse(frame: Buffer) -> tuple[bytes, bytes, int]:
    """The destination MAC, the source MAC and the ethertype of `frame`."""
    try:
        return cast("tuple[bytes, bytes, int]", _HEADER.unpack_from(frame))
    except struct.error:
        raise BadPacket(DropReason.FRAME_TOO_SHORT) from None


def header(dst: bytes, src: bytes, ethertype: int) -> bytes:
    """The 14 bytes in front of a payload."""
    return _HEADER.pack(dst, src, ethertype)


def is_group(mac: Buffer) -> bool:
    """Whether `mac` is multicast or broadcast (the I/G bit)."""
    return bool(mac[0] & 1)


def local_mac(seed: Buffer) -> bytes:
    """The locally administered MAC of one interface (IEEE 802, bits 0 and 1) of 6 bytes of a digest."""
    return bytes((seed[0] & 0xFC | 2, *seed[1:6]))


def is_station(mac: Buffer) -> bool:
    """Whether `mac` can be the address of one interface: neither a group nor all zero."""
    return not mac[0] & 1 and mac != ZERO


def group_mac(address: bytes) -> bytes | None:
    """The MAC for an IP multicast or limited broadcast address, None for any other.

    RFC 1112 6.4 (01-00-5E and 23 bits), RFC 2464 section 7 (33-33 and 32 bits). The broadcast
    address of a subnet looks like any other; only its owner knows it.
    """
    if len(address) == 16:
        return b"\x33\x33" + address[12:] if address[0] == 0xFF else None
    if address == b"\xff\xff\xff\xff":
        return BROADCAST
    if address[0] & 0xF0 == 0xE0:
        return b"\x01\x00\x5e" + bytes((address[1] & 0x7F,)) + address[2:]
    return None


def parse_mac(text: str) -> bytes:
    """The 6 bytes of `text`, which separates them by colons or hyphens; ValueError otherwise."""
    parts = text.replace("-", ":").split(":")
    if len(parts) != 6 or not all(0 < len(part) <= 2 and _HEX_DIGITS.issuperset(part) for part in parts):
        raise ValueError(f"not a MAC address: {text!r}")
    return bytes(int(part, 16) for part in parts)


def format_mac(mac: Buffer) -> str:
    """`mac` in the usual text form, lower case with colons."""
    return bytes(mac).hex(":")
