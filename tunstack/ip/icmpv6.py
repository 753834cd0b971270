"""ICMPv6 (RFC 4443): echo, and errors in both directions; neighbour discovery is in `ndp`.

Messages, kinds and limits are those of `icmp`, which serves both families; here are the types and codes of
IPv6, the checksum over the pseudo-header, and when no error is sent (RFC 4443 2.4).

An error quotes as much of the packet that it is about as lets the whole error fit 1280 bytes. What is not
listed here is ignored: multicast listener discovery, node information, redirects.
"""

from __future__ import annotations

import struct

from tunstack import native
from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip import ipv6
from tunstack.ip.addresses import is_multicast, is_single_host
from tunstack.ip.header import ICMPV6, QUOTE_BYTES_V6, IpHeader
from tunstack.ip.icmp import EchoReply, EchoRequest, IcmpError, IcmpErrorKind, read_error
from tunstack.ip.ipv4 import pseudo_header_sum
from tunstack.packet import Buffer

HEADER_LENGTH = 8
DESTINATION_UNREACHABLE = 1
PACKET_TOO_BIG = 2
TIME_EXCEEDED = 3
PARAMETER_PROBLEM = 4
ECHO_REQUEST = 128
ECHO_REPLY = 129
REDIRECT = 137

NEXT_HEADER_OFFSET = 6
"""Of the field that a parameter problem about an unknown protocol points to."""

_header = struct.Struct("!BBHI")

_EMITTED = {
    IcmpErrorKind.NET_UNREACHABLE: (DESTINATION_UNREACHABLE, 0),
    IcmpErrorKind.ADMIN_PROHIBITED: (DESTINATION_UNREACHABLE, 1),
    IcmpErrorKind.HOST_UNREACHABLE: (DESTINATION_UNREACHABLE, 3),
    IcmpErrorKind.PORT_UNREACHABLE: (DESTINATION_UNREACHABLE, 4),
    IcmpErrorKind.FRAGMENTATION_NEEDED: (PACKET_TOO_BIG, 0),
    IcmpErrorKind.TTL_EXCEEDED: (TIME_EXCEEDED, 0),
    IcmpErrorKind.REASSEMBLY_TIMEOUT: (TIME_EXCEEDED, 1),
    IcmpErrorKind.PARAMETER_PROBLEM: (PARAMETER_PROBLEM, 0),
    IcmpErrorKind.PROTOCOL_UNREACHABLE: (PARAMETER_PROBLEM, 1),
}

# The other codes of RFC 4443 3, each under the kind that says nearly the same.
_RECEIVED = {type_and_code: kind for kind, type_and_code in _EMITTED.items()} | {
    (DESTINATION_UNREACHABLE, 2): IcmpErrorKind.HOST_UNREACHABLE,  # beyond the scope of the source address
    (DESTINATION_UNREACHABLE, 5): IcmpErrorKind.ADMIN_PROHIBITED,  # the source address failed a policy
    (DESTINATION_UNREACHABLE, 6): IcmpErrorKind.NET_UNREACHABLE,  # a route that rejects
    (PARAMETER_PROBLEM, 2): IcmpErrorKind.PARAMETER_PROBLEM,  # an unknown option
}


def verify(header: IpHeader) -> None:
    """Check length and checksum of the message in a packet whose protocol is ICMPv6.

    Raises:
        BadPacket: BAD_ICMP (shorter than 8 bytes) or BAD_ICMP_CHECKSUM.
    """
    message = header.payload
    if len(message) < HEADER_LENGTH:
        raise BadPacket(DropReason.BAD_ICMP)
    start = pseudo_header_sum(header.src, header.dst, ICMPV6, len(message))
    if native.ones_sum(message, start) != 0xFFFF:
        raise BadPacket(DropReason.BAD_ICMP_CHECKSUM)


def parse(header: IpHeader) -> EchoRequest | EchoReply | IcmpError | None:
    """The message in a packet whose protocol is ICMPv6; None for one that is ignored.

    Raises:
        BadPacket: BAD_ICMP or BAD_ICMP_CHECKSUM.
    """
    verify(header)
    message = header.payload
    kind, code, _, last = _header.unpack_from(message)
    if kind in (ECHO_REQUEST, ECHO_REPLY):
        return (EchoRequest if kind == ECHO_REQUEST else EchoReply)(
            header.src,
            header.dst,
            last >> 16,
            last & 0xFFFF,
            message[HEADER_LENGTH:],
            header.hop_limit,
            header.traffic_class,
            header.dont_fragment,
            header.packet[:QUOTE_BYTES_V6],
        )
    if kind == PACKET_TOO_BIG:
        code = 0  # RFC 4443 3.2: ignored by the receiver
    error = _RECEIVED.get((kind, code))
    if error is None:
        return None
    try:
        quoted = ipv6.parse_quote(message[HEADER_LENGTH:])
    except BadPacket:
        raise BadPacket(DropReason.BAD_ICMP) from None
    return read_error(header.src, error, last, quoted, ICMPV6, (ECHO_REQUEST, ECHO_REPLY))


def emit(src: bytes, dst: bytes, kind: int, code: int, last: int, body: Buffer) -> bytes:
    """A whole ICMPv6 message with its checksum; `last` is the second word of its header."""
    length = HEADER_LENGTH + len(body)
    start = pseudo_header_sum(src, dst, ICMPV6, length) + (kind << 8 | code) + (last >> 16) + (last & 0xFFFF)
    return _header.pack(kind, code, 0xFFFF - native.ones_sum(body, start), last) + bytes(body)


def emit_echo_request(src: bytes, dst: bytes, ident: int, seq: int, payload: Buffer) -> bytes:
    """The whole ICMPv6 message of a ping, checksum included."""
    return emit(src, dst, ECHO_REQUEST, 0, ident << 16 | seq, payload)


def emit_echo_reply(src: bytes, dst: bytes, ident: int, seq: int, payload: Buffer) -> bytes:
    """The whole ICMPv6 message of the answer to a ping, checksum included."""
    return emit(src, dst, ECHO_REPLY, 0, ident << 16 | seq, payload)


def emit_error(
    src: bytes, dst: bytes, kind: IcmpErrorKind, quote: Buffer, *, mtu: int = 0, pointer: int = 0
) -> bytes:
    """The whole ICMPv6 message of an error about the packet of which `quote` is the beginning.

    The quote is cut so that the error has at most 1280 bytes (RFC 4443 2.4 c).

    Args:
        mtu: bytes that the next hop takes, for FRAGMENTATION_NEEDED, which is Packet Too Big.
        pointer: offset of the offending byte, for PARAMETER_PROBLEM.

    Raises:
        LocalError: the quote is no IPv6 packet.
    """
    if len(quote) < ipv6.HEADER_LENGTH or quote[0] >> 4 != 6:
        raise LocalError("an ICMPv6 error quotes an IPv6 packet")
    number, code = _EMITTED[kind]
    last = 0
    if kind is IcmpErrorKind.FRAGMENTATION_NEEDED:
        last = mtu
    elif kind is IcmpErrorKind.PARAMETER_PROBLEM:
        last = pointer
    elif kind is IcmpErrorKind.PROTOCOL_UNREACHABLE:
        last = NEXT_HEADER_OFFSET
    return emit(src, dst, number, code, last, quote[:QUOTE_BYTES_V6])


def may_answer(header: IpHeader) -> bool:
    """Whether an ICMPv6 error may be sent about this packet (RFC 4443 2.4 e).

    Never about an ICMPv6 error or a redirect, a fragment but the first, a packet to many or from none. The
    exceptions for multicast, Packet Too Big and unknown options, concern routers of multicast and
    extension headers. Whether a packet came as a link-layer multicast the caller must know.
    """
    if header.fragment_offset or is_multicast(header.dst) or not is_single_host(header.src):
        return False
    if header.protocol == ICMPV6:
        return len(header.payload) > 0 and header.payload[0] >= 128 and header.payload[0] != REDIRECT
    return True
