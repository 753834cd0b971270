"""DHCP messages (RFC 2131 section 2): read and written, with the options of RFC 2132 as bytes.

An option that comes in several parts is one (RFC 3396), and `file` and `sname` hold options if the message
says so (option 52). What a guest sends is hostile: a message is at most `LARGEST` bytes, and any bytes give a
message or `BadPacket`.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Iterable, Mapping

from tunstack.errors import BadPacket, DropReason
from tunstack.packet import Buffer

SERVER_PORT = 67
CLIENT_PORT = 68
LARGEST = 2048
"""Bytes of a message that is read; clients send 300 to 600."""
SMALLEST = 300
"""Bytes of a message at the least: a BOOTP client may take no less (RFC 1542 2.1)."""
LEAST_ROOM = 576 - 28
"""Bytes of UDP payload that every client takes (RFC 2131 2)."""
BROADCAST_FLAG = 0x8000
ETHERNET = 1
"""The hardware type of RFC 1700."""
REQUEST, REPLY = 1, 2
"""Values of `op`."""

_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_PART = 255
_FILE, _SNAME = 128, 64
"""Bytes of these fields of the header."""
_OVERLOAD_SIZE = 3
_END = b"\xff"


class MessageType(enum.IntEnum):
    """Option 53 (RFC 2132 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(enum.IntEnum):
    """The options that are used here (RFC 2132; 119 is RFC 3397, 121 RFC 3442, 82 RFC 3046)."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOST_NAME = 12
    DOMAIN_NAME = 15
    MTU = 26
    BROADCAST = 28
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETERS = 55
    MESSAGE = 56
    MAX_SIZE = 57
    RENEWAL = 58
    REBINDING = 59
    CLIENT_ID = 61
    RELAY = 82
    DOMAIN_SEARCH = 119
    ROUTES = 121
    END = 255


@dataclasses.dataclass(slots=True, kw_only=True)
class DhcpMessage:
    """A message. Addresses are 4 bytes; `chaddr` has as many as the hardware address."""

    op: int = REQUEST
    htype: int = ETHERNET
    hops: int = 0
    xid: int = 0
    secs: int = 0
    flags: int = 0
    ciaddr: bytes = bytes(4)
    yiaddr: bytes = bytes(4)
    siaddr: bytes = bytes(4)
    giaddr: bytes = bytes(4)
    chaddr: bytes = bytes(6)
    options: dict[int, bytes] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> MessageType | None:
        """Option 53; None if there is none that is known."""
        value = self.options.get(Option.MESSAGE_TYPE, b"")
        try:
            return MessageType(value[0]) if len(value) == 1 else None
        except ValueError:
            return None

    def address(self, option: Option) -> bytes | None:
        """An option that is one address; None if it is missing or is none."""
        value = self.options.get(option)
        return value if value is not None and len(value) == 4 else None

    def number(self, option: Option) -> int | None:
        """An option that is a number of 2 or 4 bytes; None if it is missing or is none."""
        value = self.options.get(option)
        return int.from_bytes(value, "big") if value is not None and len(value) in (2, 4) else None


def parse(data: Buffer) -> DhcpMessage:
    """The message in a datagram's payload; `BadPacket` if there is none."""
    if not _HEADER.size <= len(data) <= LARGEST:
        raise BadPacket(DropReason.BAD_DHCP)
    op, htype, hlen, hops, xid, secs, flags, *rest = _HEADER.unpack_from(data)
    ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, cookie = rest
    if cookie != _COOKIE or hlen > len(chaddr):
        raise BadPacket(DropReason.BAD_DHCP)
    parts: dict[int, list[bytes]] = {}
    _collect(bytes(data[_HEADER.size :]), parts)
    overload = b"".join(parts.pop(Option.OVERLOAD, []))
    if overload:
        for bit, field in ((1, file), (2, sname)):  # in this order, RFC 3396 section 5
            if overload[0] & bit:
                _collect(field, parts)
        parts.pop(Option.OVERLOAD, None)
    return DhcpMessage(
        op=op,
        htype=htype,
        hops=hops,
        xid=xid,
        secs=secs,
        flags=flags,
        ciaddr=ciaddr,
        yiaddr=yiaddr,
        siaddr=siaddr,
        giaddr=giaddr,
        chaddr=chaddr[:hlen],
        options={code: b"".join(values) for code, values in parts.items()},
    )


def emit(message: DhcpMessage, room: int = LEAST_ROOM) -> bytes:
    """The payload of a datagram, of at most `room` bytes.

    What does not fit behind the header goes into `file` and `sname`, which have no other use here (option
    52), and what does not fit there is left out. What must not be missing (53, 54 and 51, RFC 2131 table 3)
    has to stand first.
    """
    parts = [emit_option(code, value) for code, value in message.options.items()]
    fields = _spread(parts, (room - _HEADER.size - 1, _FILE - 1, _SNAME - 1))
    out = bytearray(
        _HEADER.pack(
            message.op,
            message.htype,
            len(message.chaddr),
            message.hops,
            message.xid,
            message.secs,
            message.flags,
            message.ciaddr,
            message.yiaddr,
            message.siaddr,
            message.giaddr,
            message.chaddr,
            fields[2] and fields[2] + _END,
            fields[1] and fields[1] + _END,
            _COOKIE,
        )
    )
    out += fields[0] + _END
    return bytes(out.ljust(SMALLEST, b"\0"))


def _spread(parts: Iterable[bytes], room: tuple[int, int, int]) -> list[bytes]:
    """The options of the three fields, in the order in which they are read (RFC 3396 section 5)."""
    parts = list(parts)
    if sum(map(len, parts)) <= room[0]:
        return [b"".join(parts), b"", b""]
    rest = [room[0] - _OVERLOAD_SIZE, *room[1:]]
    fields = [bytearray() for _ in rest]
    for part in parts:
        for place, free in enumerate(rest):
            if len(part) <= free:
                fields[place] += part
                rest[place] -= len(part)
                break
    used = (1 if fields[1] else 0) | (2 if fields[2] else 0)
    if used:
        fields[0] += emit_option(Option.OVERLOAD, bytes((used,)))
    return list(map(bytes, fields))


def emit_option(code: int, value: bytes) -> bytes:
    """An option, in several parts if it is long (RFC 3396)."""
    starts = range(0, len(value) or 1, _PART)
    return b"".join(
        bytes((code, len(value[start : start + _PART]))) + value[start : start + _PART] for start in starts
    )


def _collect(data: bytes, parts: dict[int, list[bytes]]) -> None:
    """Add the options of one field; `BadPacket` if one ends behind it."""
    place = 0
    while place < len(data):
        code = data[place]
        place += 1
        if code == Option.END:
            return
        if code == Option.PAD:
            continue
        end = place + 1 + data[place] if place < len(data) else len(data) + 1
        if end > len(data):
            raise BadPacket(DropReason.BAD_DHCP)
        parts.setdefault(code, []).append(data[place + 1 : end])
        place = end


def emit_search(domains: Iterable[str]) -> bytes:
    """Option 119 (RFC 3397), without compression: names as in DNS, one behind the other."""
    out = bytearray()
    for domain in domains:
        labels = [label.encode("ascii") for label in domain.strip(".").split(".")]
        if all(0 < len(label) <= 63 for label in labels):
            out += b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return bytes(out)


def emit_routes(routes: Mapping[tuple[bytes, int], bytes]) -> bytes:
    """Option 121 (RFC 3442): router by (network, prefix length); only the bytes that count are sent."""
    return b"".join(
        bytes((length,)) + network[: (length + 7) // 8] + router
        for (network, length), router in routes.items()
    )
