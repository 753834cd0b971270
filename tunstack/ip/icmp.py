"""ICMP (RFC 792, RFC 1122 3.2.2, RFC 1812 4.3): echo, and errors in both directions.

The kinds of error are the same for both families; types and codes exist on the wire only.
What is not listed here is ignored: source quench (RFC 6633), redirects (a gateway takes none), timestamps,
address masks, router discovery.

An error quotes the packet that it is about, as much of it as lets the whole error fit 576 bytes
(RFC 1812 4.3.2.3). Of a received error the quote is read with distrust: it may be cut after 8 bytes
of layer 4, and whoever acts on it compares addresses, ports and sequence number with what it
has sent (RFC 5927).
"""

from __future__ import annotations

import enum
import struct

from tunstack import native
from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip import ipv4
from tunstack.ip.addresses import is_broadcast, is_multicast, is_single_host
from tunstack.ip.header import ICMP, QUOTE_BYTES, TCP, UDP, IpHeader
from tunstack.packet import Buffer

HEADER_LENGTH = 8
ECHO_REPLY = 0
DESTINATION_UNREACHABLE = 3
ECHO_REQUEST = 8
TIME_EXCEEDED = 11
PARAMETER_PROBLEM = 12

_QUERIES = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18))
"""Types that are no error messages, so that an error may be about them (RFC 1122 3.2.2)."""

_header = struct.Struct("!BBHHH")
_words = struct.Struct("!HH")
_sequence = struct.Struct("!I")


class IcmpErrorKind(enum.Enum):
    """What an ICMP error says, whatever the family."""

    NET_UNREACHABLE = "net-unreachable"
    HOST_UNREACHABLE = "host-unreachable"
    PROTOCOL_UNREACHABLE = "protocol-unreachable"
    PORT_UNREACHABLE = "port-unreachable"
    FRAGMENTATION_NEEDED = "fragmentation-needed"
    ADMIN_PROHIBITED = "admin-prohibited"
    TTL_EXCEEDED = "ttl-exceeded"
    REASSEMBLY_TIMEOUT = "reassembly-timeout"
    PARAMETER_PROBLEM = "parameter-problem"


_EMITTED_V4 = {
    IcmpErrorKind.NET_UNREACHABLE: (DESTINATION_UNREACHABLE, 0),
    IcmpErrorKind.HOST_UNREACHABLE: (DESTINATION_UNREACHABLE, 1),
    IcmpErrorKind.PROTOCOL_UNREACHABLE: (DESTINATION_UNREACHABLE, 2),
    IcmpErrorKind.PORT_UNREACHABLE: (DESTINATION_UNREACHABLE, 3),
    IcmpErrorKind.FRAGMENTATION_NEEDED: (DESTINATION_UNREACHABLE, 4),
    IcmpErrorKind.ADMIN_PROHIBITED: (DESTINATION_UNREACHABLE, 13),
    IcmpErrorKind.TTL_EXCEEDED: (TIME_EXCEEDED, 0),
    IcmpErrorKind.REASSEMBLY_TIMEOUT: (TIME_EXCEEDED, 1),
    IcmpErrorKind.PARAMETER_PROBLEM: (PARAMETER_PROBLEM, 0),
}

# The other codes of RFC 1122 3.2.2.1 and RFC 1812 5.2.7.1, each under the kind that says nearly the same.
_RECEIVED_V4 = {type_and_code: kind for kind, type_and_code in _EMITTED_V4.items()} | {
    (DESTINATION_UNREACHABLE, 5): IcmpErrorKind.NET_UNREACHABLE,  # source route failed
    (DESTINATION_UNREACHABLE, 6): IcmpErrorKind.NET_UNREACHABLE,  # network unknown
    (DESTINATION_UNREACHABLE, 7): IcmpErrorKind.HOST_UNREACHABLE,  # host unknown
    (DESTINATION_UNREACHABLE, 8): IcmpErrorKind.HOST_UNREACHABLE,  # source host isolated
    (DESTINATION_UNREACHABLE, 9): IcmpErrorKind.ADMIN_PROHIBITED,  # network
    (DESTINATION_UNREACHABLE, 10): IcmpErrorKind.ADMIN_PROHIBITED,  # host
    (DESTINATION_UNREACHABLE, 11): IcmpErrorKind.NET_UNREACHABLE,  # for this type of service
    (DESTINATION_UNREACHABLE, 12): IcmpErrorKind.HOST_UNREACHABLE,  # for this type of service
    (DESTINATION_UNREACHABLE, 14): IcmpErrorKind.ADMIN_PROHIBITED,  # host precedence violation
    (DESTINATION_UNREACHABLE, 15): IcmpErrorKind.ADMIN_PROHIBITED,  # precedence cutoff
    (PARAMETER_PROBLEM, 1): IcmpErrorKind.PARAMETER_PROBLEM,  # a required option is missing
    (PARAMETER_PROBLEM, 2): IcmpErrorKind.PARAMETER_PROBLEM,  # bad length
}


class _Echo:
    __slots__ = (
        "dont_fragment",
        "dst",
        "hop_limit",
        "ident",
        "payload",
        "quote",
        "seq",
        "src",
        "traffic_class",
    )

    def __init__(
        self,
        src: bytes,
        dst: bytes,
        ident: int,
        seq: int,
        payload: Buffer,
        hop_limit: int,
        traffic_class: int,
        dont_fragment: bool,
        quote: Buffer,
    ) -> None:
        self.src = src
        self.dst = dst
        self.ident = ident
        self.seq = seq
        self.payload = payload
        self.hop_limit = hop_limit
        self.traffic_class = traffic_class
        self.dont_fragment = dont_fragment
        self.quote = quote

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.src.hex()} > {self.dst.hex()} ident {self.ident} "
            f"seq {self.seq} with {len(self.payload)} bytes>"
        )


class EchoRequest(_Echo):
    """A ping. `payload` and `quote` (the packet's beginning) are borrowed; whoever keeps them copies."""

    __slots__ = ()


class EchoReply(_Echo):
    """The answer to one, with the same fields."""

    __slots__ = ()


class IcmpError:
    """An error that somebody reports about a packet of ours.

    Attributes:
        src: who reports it.
        kind: what.
        mtu: of the next hop, bytes, for FRAGMENTATION_NEEDED; 0 if it was not told (RFC 1191 3).
        protocol: of the quoted packet.
        quoted_src, quoted_dst: its addresses.
        quoted_src_port, quoted_dst_port: its ports if it is TCP or UDP and they are quoted, else None.
            For an echo message `quoted_src_port` is its identifier.
        quoted_seq: the sequence number of a TCP segment (32 bits) or echo message (16 bits), else None.
    """

    __slots__ = (
        "kind",
        "mtu",
        "protocol",
        "quoted_dst",
        "quoted_dst_port",
        "quoted_seq",
        "quoted_src",
        "quoted_src_port",
        "src",
    )

    def __init__(
        self,
        src: bytes,
        kind: IcmpErrorKind,
        mtu: int,
        protocol: int,
        quoted_src: bytes,
        quoted_src_port: int | None,
        quoted_dst: bytes,
        quoted_dst_port: int | None,
        quoted_seq: int | None,
    ) -> None:
        self.src = src
        self.kind = kind
        self.mtu = mtu
        self.protocol = protocol
        self.quoted_src = quoted_src
        self.quoted_src_port = quoted_src_port
        self.quoted_dst = quoted_dst
        self.quoted_dst_port = quoted_dst_port
        self.quoted_seq = quoted_seq

    def __repr__(self) -> str:
        return (
            f"<IcmpError {self.kind.value} from {self.src.hex()} about {self.quoted_src.hex()} > "
            f"{self.quoted_dst.hex()} protocol {self.protocol}>"
        )


def parse(header: IpHeader) -> EchoRequest | EchoReply | IcmpError | None:
    """The message in a packet whose protocol is ICMP; None for one that is ignored.

    Raises:
        BadPacket: BAD_ICMP or BAD_ICMP_CHECKSUM.
    """
    message = header.payload
    if len(message) < HEADER_LENGTH:
        raise BadPacket(DropReason.BAD_ICMP)
    if native.ones_sum(message) != 0xFFFF:
        raise BadPacket(DropReason.BAD_ICMP_CHECKSUM)
    kind, code, _, word, last = _header.unpack_from(message)
    if kind in (ECHO_REQUEST, ECHO_REPLY):
        return (EchoRequest if kind == ECHO_REQUEST else EchoReply)(
            header.src,
            header.dst,
            word,
            last,
            message[HEADER_LENGTH:],
            header.hop_limit,
            header.traffic_class,
            header.dont_fragment,
            header.packet[:QUOTE_BYTES],
        )
    error = _RECEIVED_V4.get((kind, code))
    if error is None:
        return None
    try:
        quoted = ipv4.parse_quote(message[HEADER_LENGTH:])
    except BadPacket:
        raise BadPacket(DropReason.BAD_ICMP) from None
    return read_error(header.src, error, last, quoted, ICMP, (ECHO_REQUEST, ECHO_REPLY))


def read_error(
    src: bytes, kind: IcmpErrorKind, mtu: int, quoted: IpHeader, icmp: int, echo: tuple[int, int]
) -> IcmpError:
    """The error that `src` reports about the packet that begins as `quoted`.

    `icmp` is the protocol number of ICMP in the family, `echo` the two types of its echo messages.
    """
    src_port = dst_port = seq = None
    l4 = quoted.payload
    protocol = quoted.protocol
    if quoted.fragment_offset == 0 and len(l4) >= 8:
        if protocol in (TCP, UDP):
            src_port, dst_port = _words.unpack_from(l4)
            if protocol == TCP:
                (seq,) = _sequence.unpack_from(l4, 4)
        elif protocol == icmp and l4[0] in echo:
            src_port, seq = _words.unpack_from(l4, 4)
    return IcmpError(
        src,
        kind,
        mtu if kind is IcmpErrorKind.FRAGMENTATION_NEEDED else 0,
        protocol,
        quoted.src,
        src_port,
        quoted.dst,
        dst_port,
        seq,
    )


def _emit(kind: int, code: int, word: int, last: int, body: Buffer) -> bytes:
    # Not `-sum % 0xffff`: a reply with nothing in it is all zero, and its checksum 0xffff.
    checksum = 0xFFFF - native.ones_sum(body, (kind << 8 | code) + word + last)
    return _header.pack(kind, code, checksum, word, last) + bytes(body)


def emit_echo_request(ident: int, seq: int, payload: Buffer) -> bytes:
    """The whole ICMPv4 message of a ping, checksum included."""
    return _emit(ECHO_REQUEST, 0, ident, seq, payload)


def emit_echo_reply(ident: int, seq: int, payload: Buffer) -> bytes:
    """The whole ICMPv4 message of the answer to a ping, checksum included."""
    return _emit(ECHO_REPLY, 0, ident, seq, payload)


def emit_error(kind: IcmpErrorKind, quote: Buffer, *, mtu: int = 0, pointer: int = 0) -> bytes:
    """The whole ICMPv4 message of an error about the packet of which `quote` is the beginning.

    The quote is cut so that the error, sent without IP options, has at most 576 bytes.

    Args:
        mtu: bytes that the next hop takes, for FRAGMENTATION_NEEDED (RFC 1191 4).
        pointer: offset of the offending byte, for PARAMETER_PROBLEM.

    Raises:
        LocalError: the quote is no IPv4 packet.
    """
    if len(quote) < ipv4.HEADER_LENGTH or quote[0] >> 4 != 4:
        raise LocalError("an ICMPv4 error quotes an IPv4 packet")
    number, code = _EMITTED_V4[kind]
    word = pointer << 8 if kind is IcmpErrorKind.PARAMETER_PROBLEM else 0
    last = min(mtu, 0xFFFF) if kind is IcmpErrorKind.FRAGMENTATION_NEEDED else 0
    return _emit(number, code, word, last, quote[: QUOTE_BYTES - ipv4.HEADER_LENGTH - HEADER_LENGTH])


def may_answer(header: IpHeader, broadcasts: frozenset[bytes] | set[bytes] = frozenset()) -> bool:
    """Whether an ICMP error may be sent about this packet (RFC 1122 3.2.2, RFC 1812 4.3.2.7).

    Never about an ICMP error (or a type that could be one), a fragment but the first, a packet to many
    hosts or from none. `broadcasts` are the directed broadcast addresses of the link. Whether a packet
    came as a link-layer broadcast the caller must know.
    """
    if header.fragment_offset:
        return False
    dst = header.dst
    if is_multicast(dst) or is_broadcast(dst) or dst in broadcasts:
        return False
    if not is_single_host(header.src) or header.src in broadcasts:
        return False
    if header.protocol == ICMP:
        return len(header.payload) > 0 and header.payload[0] in _QUERIES
    return True


class RateLimiter:
    """A token bucket: `rate` per second on average, `burst` at once. It starts full."""

    __slots__ = ("_burst", "_last", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._last: float | None = None

    def allow(self, now: float) -> bool:
        """Whether one more is allowed at `now` (seconds); takes the token."""
        if self._last is not None and now > self._last:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now if self._last is None else max(now, self._last)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
