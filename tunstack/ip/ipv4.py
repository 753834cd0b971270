"""IPv4 headers (RFC 791, RFC 1122 3.2.1): read, written, cut into fragments, put together.

All sums rest on one fact: a sum of 16-bit words in one's complement is the same sum modulo
0xffff, and since 2^16 is 1 modulo 0xffff, so is the whole header read as one big integer.
A sum of words that are not all zero is folded to 0xffff, never to 0; its complement, the checksum, is
therefore `-sum % 0xffff`.

On input the header must be whole, its checksum right and its options well formed. Options have no
effect, except that a packet with a source route is dropped (RFC 7126 4.3, 4.4): a gateway that decides by
the destination must not be told another one. The reserved flag is ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tunstack import native
from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip.header import IpHeader
from tunstack.ip.reassembly import Reassembled
from tunstack.packet import Buffer, Checksum

HEADER_LENGTH = 20
"""Bytes of a header without options; the stack sends no other."""
MAX_TOTAL_LENGTH = 65535
MIN_MTU = 68
"""RFC 791 3.2: every link carries this much unfragmented."""

DONT_FRAGMENT = 0x4000
MORE_FRAGMENTS = 0x2000
OFFSET_MASK = 0x1FFF

_END_OF_OPTIONS = 0
_NO_OPERATION = 1
_LOOSE_SOURCE_ROUTE = 131
_STRICT_SOURCE_ROUTE = 137

_unpack = struct.Struct("!BBHHHBBH4s4s").unpack_from
_pack = struct.Struct("!HHHHHH8s").pack


def parse(data: Buffer, offset: int = 0) -> IpHeader:
    """The packet that starts at `offset`; what follows its total length (padding) is cut.

    Raises:
        BadPacket: IP_TRUNCATED, BAD_IP_VERSION, BAD_IP_HEADER, BAD_IP_CHECKSUM or SOURCE_ROUTE.
    """
    view = memoryview(data)
    available = len(view) - offset
    if available < HEADER_LENGTH:
        raise BadPacket(DropReason.IP_TRUNCATED)
    first, traffic_class, total, ident, flags, ttl, protocol, _, src, dst = _unpack(view, offset)
    length = HEADER_LENGTH if first == 0x45 else _header_length(first)
    if total < length:
        raise BadPacket(DropReason.BAD_IP_HEADER)
    if total > available:
        raise BadPacket(DropReason.IP_TRUNCATED)
    end = offset + total
    start = offset + length
    if int.from_bytes(view[offset:start], "big") % 0xFFFF:
        raise BadPacket(DropReason.BAD_IP_CHECKSUM)
    if length != HEADER_LENGTH:
        _check_options(bytes(view[offset + HEADER_LENGTH : start]))
    return IpHeader(
        4,
        src,
        dst,
        protocol,
        ttl,
        traffic_class,
        length,
        total,
        ident,
        flags & DONT_FRAGMENT != 0,
        flags & MORE_FRAGMENTS != 0,
        (flags & OFFSET_MASK) << 3,
        length != HEADER_LENGTH,
        view[start:end],
        view[offset:end],
    )


def parse_quote(data: Buffer, offset: int = 0) -> IpHeader:
    """The header of a packet of which perhaps only the beginning is there, as ICMP errors quote it.

    Neither checksum nor options are looked at: routers change the one and the other on the way. `payload`
    and `packet` end where the quote or the packet ends, whichever comes first; `total_length` is
    what the header says.

    Raises:
        BadPacket: IP_TRUNCATED (the header is not whole), BAD_IP_VERSION or BAD_IP_HEADER.
    """
    view = memoryview(data)[offset:]
    if len(view) < HEADER_LENGTH:
        raise BadPacket(DropReason.IP_TRUNCATED)
    first, traffic_class, total, ident, flags, ttl, protocol, _, src, dst = _unpack(view)
    length = _header_length(first)
    if total < length:
        raise BadPacket(DropReason.BAD_IP_HEADER)
    if len(view) < length:
        raise BadPacket(DropReason.IP_TRUNCATED)
    return IpHeader(
        4,
        src,
        dst,
        protocol,
        ttl,
        traffic_class,
        length,
        total,
        ident,
        flags & DONT_FRAGMENT != 0,
        flags & MORE_FRAGMENTS != 0,
        (flags & OFFSET_MASK) << 3,
        length != HEADER_LENGTH,
        view[length:total],
        view[:total],
    )


def _header_length(first: int) -> int:
    if first >> 4 != 4:
        raise BadPacket(DropReason.BAD_IP_VERSION)
    length = (first & 15) * 4
    if length < HEADER_LENGTH:
        raise BadPacket(DropReason.BAD_IP_HEADER)
    return length


def _check_options(options: bytes) -> None:
    place = 0
    size = len(options)
    while place < size:
        kind = options[place]
        if kind == _END_OF_OPTIONS:
            return
        if kind == _NO_OPERATION:
            place += 1
            continue
        length = options[place + 1] if place + 1 < size else 0
        if length < 2 or place + length > size:
            raise BadPacket(DropReason.BAD_IP_HEADER)
        if kind in (_LOOSE_SOURCE_ROUTE, _STRICT_SOURCE_ROUTE):
            raise BadPacket(DropReason.SOURCE_ROUTE)
        place += length


class HeaderTemplate:
    """A header of which only length, identification and flags change from packet to packet."""

    __slots__ = ("_addresses", "_class_word", "_protocol_word", "_sum", "header_length")

    def __init__(self, src: bytes, dst: bytes, protocol: int, hop_limit: int, traffic_class: int) -> None:
        """Raises LocalError if an address is not IPv4 or a number does not fit its byte."""
        if len(src) != 4 or len(dst) != 4:
            raise LocalError("an IPv4 header needs two addresses of 4 bytes")
        for number in (protocol, hop_limit, traffic_class):
            if not 0 <= number <= 255:
                raise LocalError(f"{number} does not fit a byte of an IPv4 header")
        self.header_length = HEADER_LENGTH
        self._addresses = src + dst
        self._class_word = 0x4500 | traffic_class
        self._protocol_word = hop_limit << 8 | protocol
        self._sum = self._class_word + self._protocol_word + int.from_bytes(self._addresses, "big") % 0xFFFF

    def emit(self, total_length: int, ident: int, flags: int) -> bytes:
        """The 20 bytes; `flags` is the word with DF, MF and the offset in units of 8 bytes."""
        return _pack(
            self._class_word,
            total_length,
            ident,
            flags,
            self._protocol_word,
            -(self._sum + total_length + ident + flags) % 0xFFFF,
            self._addresses,
        )


def emit(
    src: bytes,
    dst: bytes,
    protocol: int,
    payload_length: int,
    *,
    ident: int = 0,
    hop_limit: int = 64,
    traffic_class: int = 0,
    dont_fragment: bool = True,
    more_fragments: bool = False,
    fragment_offset: int = 0,
) -> bytes:
    """A header of 20 bytes for `payload_length` bytes; `fragment_offset` is in bytes.

    Raises:
        LocalError: a value does not fit its field.
    """
    total = HEADER_LENGTH + payload_length
    if not HEADER_LENGTH <= total <= MAX_TOTAL_LENGTH:
        raise LocalError(f"{payload_length} bytes do not fit an IPv4 packet")
    if fragment_offset & 7 or not 0 <= fragment_offset >> 3 <= OFFSET_MASK or not 0 <= ident <= 0xFFFF:
        raise LocalError("an offset is a multiple of 8 below 65536, an identification has 16 bits")
    flags = fragment_offset >> 3
    if dont_fragment:
        flags |= DONT_FRAGMENT
    if more_fragments:
        flags |= MORE_FRAGMENTS
    return HeaderTemplate(src, dst, protocol, hop_limit, traffic_class).emit(total, ident, flags)


def pseudo_header_sum(src: bytes, dst: bytes, protocol: int, length: int) -> int:
    """The folded sum, not inverted, of the pseudo-header of either family (RFC 9293 3.1, RFC 8200 8.1).

    The sum is linear in the length: a caller whose addresses stay keeps the sum for length 0
    and adds.
    """
    total = int.from_bytes(src, "big") + int.from_bytes(dst, "big") + protocol + length
    return total % 0xFFFF or (0xFFFF if total else 0)


def is_right(data: Buffer, offset: int, start: int, state: int) -> bool:
    """Whether the layer-4 checksum at `offset` of `data` is right, or may be taken for right.

    `start`: the sum of the pseudo-header; `state`: what is known of the checksum, one of `UNVERIFIED`.
    """
    if native.ones_sum(data, start) == 0xFFFF:
        return True
    return state == Checksum.UNTOLD and int.from_bytes(data[offset : offset + 2], "big") == start


def cut(payload: Buffer, room: int) -> Iterator[tuple[int, memoryview, bool]]:
    """Fragments of at most `room` bytes, for either family: offset in bytes, bytes, whether more follow."""
    view = memoryview(payload)
    size = len(view)
    step = room & ~7  # RFC 791 3.2, RFC 8200 4.5: in units of 8 bytes
    for start in range(0, size, step):
        yield start, view[start : start + step], start + step < size


def fragment(
    template: HeaderTemplate, payload: Buffer, mtu: int, ident: int
) -> list[tuple[bytes, memoryview]]:
    """Headers and pieces of `payload` that fit `mtu`, in order (RFC 791 3.2).

    Raises:
        LocalError: the payload is too long for a packet, or the MTU below 68 bytes.
    """
    if mtu < MIN_MTU:
        raise LocalError(f"an MTU of {mtu} bytes is below {MIN_MTU}")
    if HEADER_LENGTH + len(payload) > MAX_TOTAL_LENGTH:
        raise LocalError(f"{len(payload)} bytes do not fit an IPv4 packet")
    pieces = []
    for offset, piece, more in cut(payload, mtu - HEADER_LENGTH):
        word = offset >> 3 | (MORE_FRAGMENTS if more else 0)
        pieces.append((template.emit(HEADER_LENGTH + len(piece), ident, word), piece))
    return pieces


def join(datagram: Reassembled) -> IpHeader:
    """The datagram that the fragments make: the header of the first one, as if it had not been cut.

    Raises:
        BadPacket: BAD_FRAGMENT, if it is longer than a packet may be.
    """
    first = bytearray(datagram.first_header)
    total = len(first) + sum(map(len, datagram.pieces))
    if total > MAX_TOTAL_LENGTH:
        raise BadPacket(DropReason.BAD_FRAGMENT)
    if datagram.congestion_experienced:
        first[1] |= 3
    first[2:4] = total.to_bytes(2, "big")
    first[6] &= DONT_FRAGMENT >> 8
    first[7] = 0
    first[10:12] = bytes(2)
    first[10:12] = (-int.from_bytes(first, "big") % 0xFFFF).to_bytes(2, "big")
    return parse(b"".join((first, *datagram.pieces)))
