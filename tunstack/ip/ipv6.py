"""IPv6 headers (RFC 8200): read, written, cut into fragments by their source, and put together.

The header has no checksum and no options: 40 bytes, and a next header that says what follows. A fragment
header is looked through; where another extension header follows (hop-by-hop options, routing, destination
options, authentication, mobility, HIP, shim6) the packet is dropped as EXTENSION_HEADER. A fragment that is
a whole datagram by itself is one (RFC 6946); the first one of several has to hold the header of its protocol
(RFC 7112), and neighbour discovery must not come in fragments at all (RFC 6980): both are BAD_FRAGMENT.

A router never fragments (RFC 8200 4.5): what is received may not be cut again, so every received packet
counts as one with DF. The link must carry 1280 bytes (RFC 8200 5).
"""

from __future__ import annotations

import struct

from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip.header import ICMPV6, TCP, UDP, IpHeader
from tunstack.ip.ipv4 import cut
from tunstack.ip.reassembly import Reassembled
from tunstack.packet import Buffer

HEADER_LENGTH = 40
MAX_PAYLOAD_LENGTH = 65535
"""Bytes behind the header; jumbograms (RFC 2675) are not known here."""
MIN_MTU = 1280
"""RFC 8200 5: every link carries this much."""

FRAGMENT = 44
NO_NEXT_HEADER = 59
"""RFC 8200 4.7: nothing follows, and whatever does is ignored."""
EXTENSION_HEADERS = frozenset((0, 43, FRAGMENT, 51, 60, 135, 139, 140))
"""RFC 7045: the next headers that are not the last; 50 (ESP) hides what follows and counts as a protocol."""

FRAGMENT_LENGTH = 8
MORE_FRAGMENTS = 1
"""In the word of the fragment header whose upper 13 bits are the offset in units of 8 bytes."""

_LEAST = {TCP: 20, UDP: 8, ICMPV6: 8}
"""Bytes of the header of a protocol that the first fragment holds (RFC 7112 5)."""
_DISCOVERY = frozenset((133, 134, 135, 136, 137, 148, 149))
"""ICMPv6 types that must not come in fragments (RFC 6980 5)."""

_unpack = struct.Struct("!IHBB16s16s").unpack_from
_pack = struct.Struct("!IHH32s").pack
_fragment = struct.Struct("!BxHI")


def parse(data: Buffer, offset: int = 0) -> IpHeader:
    """The packet that starts at `offset`; what follows its payload length (padding) is cut.

    Of a fragment `protocol`, `header_length` and `payload` are what is behind the fragment header.

    Raises:
        BadPacket: IP_TRUNCATED, BAD_IP_VERSION, EXTENSION_HEADER or BAD_FRAGMENT.
    """
    view = memoryview(data)
    available = len(view) - offset
    if available < HEADER_LENGTH:
        raise BadPacket(DropReason.IP_TRUNCATED)
    first, length, protocol, hop_limit, src, dst = _unpack(view, offset)
    if first >> 28 != 6:
        raise BadPacket(DropReason.BAD_IP_VERSION)
    total = HEADER_LENGTH + length
    if total > available:
        raise BadPacket(DropReason.IP_TRUNCATED)
    end = offset + total
    if protocol == FRAGMENT:
        return _parse_fragment(view[offset:end])
    if protocol in EXTENSION_HEADERS:
        raise BadPacket(DropReason.EXTENSION_HEADER)
    return IpHeader(
        6,
        src,
        dst,
        protocol,
        hop_limit,
        first >> 20 & 0xFF,
        HEADER_LENGTH,
        total,
        0,
        True,
        False,
        0,
        False,
        view[offset + HEADER_LENGTH : end],
        view[offset:end],
    )


def _parse_fragment(packet: memoryview) -> IpHeader:
    header = parse_quote(packet)
    if header.protocol in EXTENSION_HEADERS:
        raise BadPacket(DropReason.EXTENSION_HEADER)
    is_first = not header.fragment_offset
    least = _LEAST.get(header.protocol, 0) if is_first and header.more_fragments else 0
    if len(header.payload) < least or (is_first and _is_discovery(header.protocol, header.payload)):
        raise BadPacket(DropReason.BAD_FRAGMENT)
    return header


def _is_discovery(protocol: int, payload: Buffer) -> bool:
    return protocol == ICMPV6 and len(payload) > 0 and payload[0] in _DISCOVERY


def join(datagram: Reassembled) -> IpHeader:
    """The datagram that the fragments make: the header of the first one, without its fragment header.

    Raises:
        BadPacket: BAD_FRAGMENT, if it is longer than a packet may be.
    """
    first = bytearray(datagram.first_header)
    length = sum(map(len, datagram.pieces))
    if length > MAX_PAYLOAD_LENGTH:
        raise BadPacket(DropReason.BAD_FRAGMENT)
    if datagram.congestion_experienced:
        first[1] |= 3 << 4
    first[4:6] = length.to_bytes(2, "big")
    first[6] = first[HEADER_LENGTH]
    del first[HEADER_LENGTH:]
    return parse(b"".join((first, *datagram.pieces)))


def parse_quote(data: Buffer, offset: int = 0) -> IpHeader:
    """The header of a packet of which perhaps only the beginning is there, as ICMP errors quote it.

    A fragment header is looked through: `protocol`, `header_length` and `payload` are what is behind it.
    `payload` and `packet` end where the quote or the packet ends, whichever comes first.

    Raises:
        BadPacket: IP_TRUNCATED (the header is not whole) or BAD_IP_VERSION.
    """
    view = memoryview(data)[offset:]
    if len(view) < HEADER_LENGTH:
        raise BadPacket(DropReason.IP_TRUNCATED)
    first, length, protocol, hop_limit, src, dst = _unpack(view)
    if first >> 28 != 6:
        raise BadPacket(DropReason.BAD_IP_VERSION)
    total = HEADER_LENGTH + length
    start = HEADER_LENGTH
    ident = word = 0
    if protocol == FRAGMENT:
        start += FRAGMENT_LENGTH
        if len(view) < start or total < start:
            raise BadPacket(DropReason.IP_TRUNCATED)
        protocol, word, ident = _fragment.unpack_from(view, HEADER_LENGTH)
    return IpHeader(
        6,
        src,
        dst,
        protocol,
        hop_limit,
        first >> 20 & 0xFF,
        start,
        total,
        ident,
        True,
        bool(word & MORE_FRAGMENTS),
        word & 0xFFF8,
        False,
        view[start:total],
        view[:total],
    )


class HeaderTemplate:
    """A header of which only the length changes from packet to packet.

    The twin of `ipv4.HeaderTemplate`. The flow label is 0 (RFC 6437 3: a source that does not label).
    """

    __slots__ = ("_addresses", "_first", "_hop_limit", "_next_word", "header_length")

    def __init__(self, src: bytes, dst: bytes, protocol: int, hop_limit: int, traffic_class: int) -> None:
        """Raises LocalError if an address is not IPv6 or a number does not fit its byte."""
        if len(src) != 16 or len(dst) != 16:
            raise LocalError("an IPv6 header needs two addresses of 16 bytes")
        for number in (protocol, hop_limit, traffic_class):
            if not 0 <= number <= 255:
                raise LocalError(f"{number} does not fit a byte of an IPv6 header")
        self.header_length = HEADER_LENGTH
        self._addresses = src + dst
        self._first = 6 << 28 | traffic_class << 20
        self._next_word = protocol << 8 | hop_limit
        self._hop_limit = hop_limit

    def emit(self, total_length: int, ident: int = 0, flags: int = 0) -> bytes:
        """The 40 bytes; `ident` and `flags` have no place in them."""
        return _pack(self._first, total_length - HEADER_LENGTH, self._next_word, self._addresses)

    def emit_fragment(self, total_length: int, ident: int, word: int) -> bytes:
        """The 48 bytes of header and fragment header; `word` has the offset in bytes and MORE_FRAGMENTS."""
        header = _pack(
            self._first, total_length - HEADER_LENGTH, FRAGMENT << 8 | self._hop_limit, self._addresses
        )
        return header + _fragment.pack(self._next_word >> 8, word, ident)


def emit(
    src: bytes, dst: bytes, protocol: int, payload_length: int, *, hop_limit: int = 64, traffic_class: int = 0
) -> bytes:
    """A header of 40 bytes for `payload_length` bytes.

    Raises:
        LocalError: a value does not fit its field.
    """
    if not 0 <= payload_length <= MAX_PAYLOAD_LENGTH:
        raise LocalError(f"{payload_length} bytes do not fit an IPv6 packet")
    template = HeaderTemplate(src, dst, protocol, hop_limit, traffic_class)
    return template.emit(HEADER_LENGTH + payload_length)


def fragment(
    template: HeaderTemplate, payload: Buffer, mtu: int, ident: int
) -> list[tuple[bytes, memoryview]]:
    """Headers and pieces of `payload` that fit `mtu`, in order (RFC 8200 4.5).

    Raises:
        LocalError: the payload is too long for a packet, or the MTU below 1280 bytes.
    """
    if mtu < MIN_MTU:
        raise LocalError(f"an MTU of {mtu} bytes is below {MIN_MTU}")
    if len(payload) > MAX_PAYLOAD_LENGTH:
        raise LocalError(f"{len(payload)} bytes do not fit an IPv6 packet")
    headers = HEADER_LENGTH + FRAGMENT_LENGTH
    pieces = []
    for offset, piece, more in cut(payload, mtu - headers):
        word = offset | (MORE_FRAGMENTS if more else 0)
        pieces.append((template.emit_fragment(headers + len(piece), ident, word), piece))
    return pieces
