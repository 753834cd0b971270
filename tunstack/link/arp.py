"""ARP messages for IPv4 over Ethernet (RFC 826): parse and emit, nothing of what they mean."""

from __future__ import annotations

import struct
from typing import NamedTuple

from tunstack.errors import BadPacket, DropReason
from tunstack.packet import Buffer

REQUEST = 1
REPLY = 2
LENGTH = 28

_MESSAGE = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET = 1
_IEEE_802 = 6
"""RFC 1122 2.3.3: the same layout, sent by hosts that take Ethernet for an IEEE 802 network."""
_IPV4 = 0x0800


class ArpMessage(NamedTuple):
    """A request or a reply; MACs are 6 bytes, addresses 4."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


def parse(data: Buffer, offset: int = 0) -> ArpMessage:
    """The message at `offset`; what follows its 28 bytes is padding."""
    try:
        hardware, protocol, hlen, plen, operation, *fields = _MESSAGE.unpack_from(data, offset)
    except struct.error:
        raise BadPacket(DropReason.BAD_ARP) from None
    if (
        hardware not in (_ETHERNET, _IEEE_802)
        or protocol != _IPV4
        or hlen != 6
        or plen != 4
        or operation not in (REQUEST, REPLY)
    ):
        raise BadPacket(DropReason.BAD_ARP)
    return ArpMessage(operation, *fields)


def emit(message: ArpMessage) -> bytes:
    """The 28 bytes of `message`."""
    return _MESSAGE.pack(_ETHERNET, _IPV4, 6, 4, *message)
