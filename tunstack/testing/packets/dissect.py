"""Bytes to layers: total, and without a loss.

Any bytes give a `Frame`. What is wrong with them is named in its `problems`; what cannot be taken apart is a
`Raw` layer. A value that `emit` would compute is None, so that `Frame.emit` gives the same bytes again, and
a changed copy of a layer gets the lengths and checksums that belong to it.
"""

from __future__ import annotations

import dataclasses
import enum
import struct

from tunstack.testing.packets import emit as emitting
from tunstack.testing.packets.layers import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    EXTENSIONS,
    FRAGMENT,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    Arp,
    Ethernet,
    Extension,
    Icmp,
    Ipv4,
    Ipv6,
    Layer,
    Ports,
    Raw,
    Tcp,
    Udp,
)
from tunstack.testing.packets.tcp_options import emit_options, parse_options

_ERRORS = {PROTOCOL_ICMP: frozenset({3, 4, 5, 11, 12}), PROTOCOL_ICMPV6: frozenset(range(128))}
"""The types of ICMP message that quote a packet."""


class Problem(enum.StrEnum):
    """What may be wrong with a packet."""

    TRUNCATED = "truncated"
    NOT_IP = "neither IPv4 nor IPv6"
    BAD_HEADER_LENGTH = "bad header length"
    BAD_LENGTH = "bad length"
    BAD_IP_CHECKSUM = "bad IP checksum"
    BAD_EXTENSION = "bad extension header"
    BAD_CHECKSUM = "bad checksum"
    BAD_OPTIONS = "bad TCP options"


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """A packet taken apart.

    Attributes:
        layers: the outermost first.
        raw: the bytes.
        problems: what is wrong with them, the outermost first.
        trailer: bytes behind the IP packet, such as the padding of short Ethernet frames.
    """

    layers: tuple[Layer, ...]
    raw: bytes
    problems: tuple[Problem, ...] = ()
    trailer: bytes = b""

    def emit(self) -> bytes:
        """The same bytes again, made of the layers."""
        return emitting.emit(*self.layers) + self.trailer

    @property
    def ethernet(self) -> Ethernet | None:
        """The Ethernet header."""
        layer = self.layers[0] if self.layers else None
        return layer if isinstance(layer, Ethernet) else None

    @property
    def arp(self) -> Arp | None:
        """The ARP message."""
        return next((layer for layer in self.layers if isinstance(layer, Arp)), None)

    @property
    def ip(self) -> Ipv4 | Ipv6 | None:
        """The IP header."""
        return next((layer for layer in self.layers if isinstance(layer, Ipv4 | Ipv6)), None)

    @property
    def tcp(self) -> Tcp | None:
        """The TCP header."""
        return next((layer for layer in self.layers if isinstance(layer, Tcp)), None)

    @property
    def udp(self) -> Udp | None:
        """The UDP header."""
        return next((layer for layer in self.layers if isinstance(layer, Udp)), None)

    @property
    def icmp(self) -> Icmp | None:
        """The ICMP or ICMPv6 header."""
        return next((layer for layer in self.layers if isinstance(layer, Icmp)), None)

    @property
    def payload(self) -> bytes:
        """What follows the last header."""
        layer = self.layers[-1] if self.layers else None
        return layer.data if isinstance(layer, Raw) else b""

    @property
    def protocol(self) -> int | None:
        """The number of the protocol above IP, or None without IP."""
        for place, layer in enumerate(self.layers):
            if isinstance(layer, Ipv4 | Ipv6):
                stated = layer.protocol if isinstance(layer, Ipv4) else layer.next_header
                if stated is not None:
                    return stated
                inner = self.layers[place + 1] if place + 1 < len(self.layers) else None
                return emitting.upper_protocol(layer, inner)
        return None

    @property
    def quote(self) -> Frame | None:
        """The packet that an ICMP error quotes, as far as it is there."""
        icmp = self.icmp
        if icmp is None or icmp.type not in _ERRORS.get(self.protocol or 0, frozenset()):
            return None
        return dissect(self.payload, quoted=True)


def dissect(data: bytes | bytearray | memoryview, *, l2: bool = False, quoted: bool = False) -> Frame:
    """Take `data` apart: an Ethernet frame (`l2`), an IP packet, or the beginning of one that was quoted."""
    work = _Dissection(bytes(data), quoted)
    if l2:
        work.ethernet(work.raw)
    else:
        work.ip(work.raw)
    return Frame(tuple(work.layers), work.raw, tuple(work.problems), work.trailer)


class _Dissection:
    """One packet on its way through `dissect`."""

    def __init__(self, raw: bytes, quoted: bool) -> None:
        self.raw = raw
        self.quoted = quoted
        self.layers: list[Layer] = []
        self.problems: list[Problem] = []
        self.trailer = b""

    def rest(self, data: bytes, problem: Problem | None = None) -> None:
        if problem is not None and problem not in self.problems:
            self.problems.append(problem)
        if data:
            self.layers.append(Raw(data=data))

    def ethernet(self, data: bytes) -> None:
        if len(data) < 14:
            self.rest(data, Problem.TRUNCATED)
            return
        dst, src, kind = struct.unpack_from("!6s6sH", data)
        body = data[14:]
        place = len(self.layers)
        self.layers.append(Ethernet(dst=dst, src=src, kind=kind))
        if kind == ETHERTYPE_ARP:
            self.arp(body)
        elif (kind == ETHERTYPE_IPV4 and body[:1] and body[0] >> 4 == 4) or (
            kind == ETHERTYPE_IPV6 and body[:1] and body[0] >> 4 == 6
        ):
            self.ip(body)
        elif kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
            self.rest(body, Problem.NOT_IP)
        else:
            self.rest(body)
        inner = self.layers[place + 1] if place + 1 < len(self.layers) else None
        if kind == emitting.ETHERTYPES.get(type(inner), 0):
            self.layers[place] = Ethernet(dst=dst, src=src)

    def arp(self, data: bytes) -> None:
        if len(data) < 28:
            self.rest(data, Problem.TRUNCATED)
            return
        *fixed, sender_mac, sender, target_mac, target = struct.unpack_from("!HHBBH6s4s6s4s", data)
        hardware, protocol, hardware_size, protocol_size, operation = fixed
        self.layers.append(
            Arp(
                operation=operation,
                sender_mac=sender_mac,
                sender=sender,
                target_mac=target_mac,
                target=target,
                hardware=hardware,
                protocol=protocol,
                hardware_size=hardware_size,
                protocol_size=protocol_size,
            )
        )
        self.trailer = data[28:]

    def ip(self, data: bytes) -> None:
        version = data[0] >> 4 if data else 0
        if version == 4:
            self.ipv4(data)
        elif version == 6:
            self.ipv6(data)
        else:
            self.rest(data, Problem.NOT_IP if data else Problem.TRUNCATED)

    def body_of(self, data: bytes, start: int, end: int) -> tuple[bytes, bool]:
        """What lies between `start` and `end` of `data`, and whether that is all of a packet."""
        if end > len(data) or end < start:
            if not self.quoted:
                self.problems.append(Problem.TRUNCATED if end > len(data) else Problem.BAD_LENGTH)
            return data[start:], False
        self.trailer = data[end:]
        return data[start:end], True

    def ipv4(self, data: bytes) -> None:
        words = data[0] & 0x0F
        if len(data) < 20 or words < 5 or len(data) < 4 * words:
            bad = words < 5
            self.rest(data, Problem.BAD_HEADER_LENGTH if bad else Problem.TRUNCATED)
            return
        _, service, total, ident, fragment, ttl, protocol, value, src, dst = struct.unpack_from(
            "!BBHHHBBH4s4s", data
        )
        if not self.quoted and emitting.checksum(data[: 4 * words]):
            self.problems.append(Problem.BAD_IP_CHECKSUM)
        body, whole = self.body_of(data, 4 * words, total)
        header = Ipv4(
            src=src,
            dst=dst,
            protocol=protocol,
            ttl=ttl,
            traffic_class=service,
            ident=ident,
            reserved=bool(fragment & 0x8000),
            df=bool(fragment & 0x4000),
            mf=bool(fragment & 0x2000),
            offset=fragment & 0x1FFF,
            options=data[20 : 4 * words],
            total_length=None if whole else total,
        )
        place = len(self.layers)
        self.layers.append(header)
        self.upper(protocol, body, header, whole, header.mf, header.offset)
        inner = self.layers[place + 1] if place + 1 < len(self.layers) else None
        if protocol == emitting.upper_protocol(header, inner):
            header = dataclasses.replace(header, protocol=None)
        made = emitting.emit_ipv4(header, body, inner)
        if made[10:12] != data[10:12]:
            header = dataclasses.replace(header, checksum=value)
        self.layers[place] = header

    def ipv6(self, data: bytes) -> None:
        if len(data) < 40:
            self.rest(data, Problem.TRUNCATED)
            return
        first, size, following, hop_limit, src, dst = struct.unpack_from("!IHBB16s16s", data)
        body, whole = self.body_of(data, 40, 40 + size)
        extensions: list[Extension] = []
        more = offset = 0
        while following in EXTENSIONS and not offset and not more:
            length = 8 if following == FRAGMENT or len(body) < 2 else 8 * (body[1] + 1)
            if len(body) < length:
                if not self.quoted:
                    self.problems.append(Problem.BAD_EXTENSION)
                break
            reserved = body[1] if following == FRAGMENT and body[1] else None
            extensions.append(Extension(kind=following, data=body[2:length], length=reserved))
            if following == FRAGMENT:
                place = int.from_bytes(body[2:4], "big")
                offset, more = place >> 3, place & 1
            following = body[0]
            body = body[length:]
        header = Ipv6(
            src=src,
            dst=dst,
            next_header=following,
            hop_limit=hop_limit,
            traffic_class=first >> 20 & 0xFF,
            flow_label=first & 0xFFFFF,
            extensions=tuple(extensions),
            payload_length=None if whole else size,
        )
        index = len(self.layers)
        self.layers.append(header)
        self.upper(following, body, header, whole, bool(more), offset)
        inner = self.layers[index + 1] if index + 1 < len(self.layers) else None
        if following == emitting.upper_protocol(header, inner):
            header = dataclasses.replace(header, next_header=None)
        self.layers[index] = header

    def upper(
        self, protocol: int, body: bytes, ip: Ipv4 | Ipv6, whole: bool, more: bool, offset: int
    ) -> None:
        """What IP carries; of a fragment or of a quote the checksum cannot be verified."""
        icmp = PROTOCOL_ICMP if isinstance(ip, Ipv4) else PROTOCOL_ICMPV6
        smallest = {PROTOCOL_TCP: 20, PROTOCOL_UDP: 8, icmp: 8}.get(protocol)
        if offset or smallest is None:
            self.rest(body)
        elif len(body) < smallest:
            if self.quoted and protocol == PROTOCOL_TCP and len(body) >= 8:
                src_port, dst_port, seq = struct.unpack_from("!HHI", body)
                self.layers.append(Ports(src_port=src_port, dst_port=dst_port, seq=seq))
                self.rest(body[8:])
            else:
                self.rest(body, None if self.quoted or more else Problem.TRUNCATED)
        else:
            verify = whole and not more and not self.quoted
            if protocol == PROTOCOL_TCP:
                self.tcp(body, ip, verify)
            elif protocol == PROTOCOL_UDP:
                self.udp(body, ip, verify)
            else:
                self.icmp(body, ip, verify)

    def icmp(self, data: bytes, ip: Ipv4 | Ipv6, verify: bool) -> None:
        kind, code, value, rest = struct.unpack_from("!BBHI", data)
        layer = Icmp(type=kind, code=code, rest=rest)
        if emitting.emit_icmp(layer, data[8:], ip) != data:
            layer = dataclasses.replace(layer, checksum=value)
            if verify:
                self.problems.append(Problem.BAD_CHECKSUM)
        self.layers.append(layer)
        self.rest(data[8:])

    def udp(self, data: bytes, ip: Ipv4 | Ipv6, verify: bool) -> None:
        src_port, dst_port, length, value = struct.unpack_from("!HHHH", data)
        layer = Udp(src_port=src_port, dst_port=dst_port)
        if length != len(data):
            layer = dataclasses.replace(layer, length=length)
            if verify:
                self.problems.append(Problem.BAD_LENGTH)
        if emitting.emit_udp(layer, data[8:], ip) != data:
            layer = dataclasses.replace(layer, checksum=value)
            if verify and (value or isinstance(ip, Ipv6)) and not self._sums_up(data, ip):
                self.problems.append(Problem.BAD_CHECKSUM)
        self.layers.append(layer)
        self.rest(data[8:])

    @staticmethod
    def _sums_up(data: bytes, ip: Ipv4 | Ipv6) -> bool:
        return not emitting.checksum(emitting.pseudo_header(ip, PROTOCOL_UDP, len(data)) + data)

    def tcp(self, data: bytes, ip: Ipv4 | Ipv6, verify: bool) -> None:
        src_port, dst_port, seq, ack, offset, flags, window, value, urgent = struct.unpack_from(
            "!HHIIBBHHH", data
        )
        words = offset >> 4
        end = 4 * words
        whole = 20 <= end <= len(data)
        if not whole:
            end = 20
        text = data[20:end]
        options, intact = parse_options(text)
        layer = Tcp(
            src_port=src_port,
            dst_port=dst_port,
            seq=seq,
            ack=ack,
            flags=flags,
            window=window,
            urgent=urgent,
            options=options,
            reserved=offset & 0x0F,
            data_offset=None if whole else words,
        )
        assert emit_options(options) == text
        if not self.quoted:
            if not whole:
                self.problems.append(Problem.BAD_HEADER_LENGTH)
            if not intact:
                self.problems.append(Problem.BAD_OPTIONS)
        if emitting.emit_tcp(layer, data[end:], ip) != data:
            layer = dataclasses.replace(layer, checksum=value)
            if verify:
                self.problems.append(Problem.BAD_CHECKSUM)
        self.layers.append(layer)
        self.rest(data[end:])
