"""Neighbour discovery (RFC 4861): solicitations and advertisements, read, checked and written.

A message counts only if it cannot have come from beyond the link, which its hop limit of 255 shows, and if it
is right in every other way that RFC 4861 lists (6.1.1, 7.1.1, 7.1.2): checksum, code, length, no option of
length 0, no multicast target, and no link-layer address of nobody. The cache that the messages feed is
`link.neighbour`; what answers them is the stack.

Router advertisements and redirects are ignored: the gateway is the router of its link.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tunstack.errors import BadPacket, DropReason
from tunstack.ip import icmpv6
from tunstack.ip.addresses import UNSPECIFIED_V6, is_multicast
from tunstack.ip.header import IpHeader

ROUTER_SOLICITATION = 133
ROUTER_ADVERTISEMENT = 134
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136
TYPES = range(133, 138)
"""The types of RFC 4861: these and redirects."""

HOP_LIMIT = 255
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
ALL_ROUTERS = bytes.fromhex("ff020000000000000000000000000002")
_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")

SOURCE_LINK_ADDRESS = 1
TARGET_LINK_ADDRESS = 2

_ROUTER = 0x80000000
_SOLICITED = 0x40000000
_OVERRIDE = 0x20000000

_message = struct.Struct("!BBHI16s")
_option = struct.Struct("!BB6s")


class NeighbourSolicitation(NamedTuple):
    """Who has `target`? `mac` is the asker's, None if it does not say (a probe, from ::)."""

    src: bytes
    dst: bytes
    target: bytes
    mac: bytes | None


class NeighbourAdvertisement(NamedTuple):
    """`target` is at `mac` (None: where you have asked), says `src` to `dst`."""

    src: bytes
    dst: bytes
    target: bytes
    mac: bytes | None
    router: bool
    solicited: bool
    override: bool


class RouterSolicitation(NamedTuple):
    """Is there a router? `mac` is the asker's, None if it does not say."""

    src: bytes
    dst: bytes
    mac: bytes | None


NdpMessage = NeighbourSolicitation | NeighbourAdvertisement | RouterSolicitation


def solicited_node(address: bytes) -> bytes:
    """The multicast group on which `address` is asked for (RFC 4291 2.7.1)."""
    return _SOLICITED_NODE + address[13:]


def parse(header: IpHeader) -> NdpMessage | None:
    """The message in a packet of ICMPv6 whose type is in `TYPES`; None for one that is ignored.

    Raises:
        BadPacket: BAD_NDP, BAD_ICMP or BAD_ICMP_CHECKSUM.
    """
    icmpv6.verify(header)
    data = header.payload
    kind = data[0]
    if header.hop_limit != HOP_LIMIT or data[1]:
        raise BadPacket(DropReason.BAD_NDP)
    if kind == ROUTER_SOLICITATION:
        return _parse_router_solicitation(header)
    if kind not in (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT):
        return None
    if len(data) < _message.size:
        raise BadPacket(DropReason.BAD_NDP)
    _, _, _, flags, target = _message.unpack_from(data)
    if is_multicast(target) or target == UNSPECIFIED_V6:
        raise BadPacket(DropReason.BAD_NDP)
    src = header.src
    dst = header.dst
    if kind == NEIGHBOUR_SOLICITATION:
        mac = _link_address(data, _message.size, SOURCE_LINK_ADDRESS)
        if src == UNSPECIFIED_V6 and (mac is not None or dst[:13] != _SOLICITED_NODE):
            raise BadPacket(DropReason.BAD_NDP)
        return NeighbourSolicitation(src, dst, target, mac)
    solicited = flags & _SOLICITED != 0
    if (solicited and is_multicast(dst)) or src == UNSPECIFIED_V6:
        raise BadPacket(DropReason.BAD_NDP)
    mac = _link_address(data, _message.size, TARGET_LINK_ADDRESS)
    return NeighbourAdvertisement(
        src, dst, target, mac, flags & _ROUTER != 0, solicited, flags & _OVERRIDE != 0
    )


def _parse_router_solicitation(header: IpHeader) -> RouterSolicitation:
    mac = _link_address(header.payload, icmpv6.HEADER_LENGTH, SOURCE_LINK_ADDRESS)
    if header.src == UNSPECIFIED_V6 and mac is not None:
        raise BadPacket(DropReason.BAD_NDP)
    return RouterSolicitation(header.src, header.dst, mac)


def _link_address(data: memoryview, place: int, wanted: int) -> bytes | None:
    """The MAC in the first option of type `wanted`. All options must be whole, those unknown as well."""
    found: bytes | None = None
    size = len(data)
    while place < size:
        length = data[place + 1] * 8 if place + 1 < size else 0
        if length == 0 or place + length > size:
            raise BadPacket(DropReason.BAD_NDP)
        if data[place] == wanted and found is None:
            if length != _option.size:
                raise BadPacket(DropReason.BAD_NDP)
            found = bytes(data[place + 2 : place + 8])
        place += length
    return found


def emit_solicitation(src: bytes, dst: bytes, target: bytes, mac: bytes | None) -> bytes:
    """The whole ICMPv6 message of a neighbour solicitation; `mac` None for a probe from ::."""
    option = b"" if mac is None else _option.pack(SOURCE_LINK_ADDRESS, 1, mac)
    return icmpv6.emit(src, dst, NEIGHBOUR_SOLICITATION, 0, 0, target + option)


def emit_advertisement(
    src: bytes,
    dst: bytes,
    target: bytes,
    mac: bytes | None,
    *,
    router: bool,
    solicited: bool,
    override: bool,
) -> bytes:
    """The whole ICMPv6 message of a neighbour advertisement; `mac` None leaves the option out."""
    flags = (_ROUTER if router else 0) | (_SOLICITED if solicited else 0) | (_OVERRIDE if override else 0)
    option = b"" if mac is None else _option.pack(TARGET_LINK_ADDRESS, 1, mac)
    return icmpv6.emit(src, dst, NEIGHBOUR_ADVERTISEMENT, 0, flags, target + option)
