"""The layers of a packet as values. None in a field means the right value; see the package."""

from __future__ import annotations

import dataclasses

from tunstack.testing.packets.tcp_options import TcpOption

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))

BROADCAST = b"\xff" * 6

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD

PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ICMPV6 = 58

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
DESTINATION_OPTIONS = 60
EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS})
"""The extension headers that are taken apart (RFC 8200 4)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ethernet:
    """Ethernet II. `kind` is the ethertype, by default that of the next layer."""

    dst: bytes = BROADCAST
    src: bytes = bytes(6)
    kind: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arp:
    """RFC 826 for IPv4 over Ethernet. `operation`: 1 asks, 2 answers."""

    operation: int = 1
    sender_mac: bytes = bytes(6)
    sender: bytes = bytes(4)
    target_mac: bytes = bytes(6)
    target: bytes = bytes(4)
    hardware: int = 1
    protocol: int = ETHERTYPE_IPV4
    hardware_size: int = 6
    protocol_size: int = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ipv4:
    """RFC 791. Addresses in 4 bytes; `offset` in units of 8 bytes, `header_length` of 4, as on the wire.

    `options` are padded by zeros to whole words.
    """

    src: bytes
    dst: bytes
    protocol: int | None = None
    ttl: int = 64
    traffic_class: int = 0
    ident: int = 0
    reserved: bool = False
    df: bool = False
    mf: bool = False
    offset: int = 0
    options: bytes = b""
    header_length: int | None = None
    total_length: int | None = None
    checksum: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """One extension header of IPv6: `data` is what follows the two octets of next header and length.

    Of a fragment header `data` has 6 bytes, and `length` is the reserved octet.
    """

    kind: int
    data: bytes
    length: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ipv6:
    """RFC 8200. Addresses in 16 bytes; `next_header` is what follows the extension headers."""

    src: bytes
    dst: bytes
    next_header: int | None = None
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0
    extensions: tuple[Extension, ...] = ()
    payload_length: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Icmp:
    """ICMP of the family of the layer before. `rest` is the word behind the checksum.

    An echo has its identifier in the upper and its number in the lower half of `rest`; the lower half, or all
    of it in ICMPv6, is the MTU that a packet was too big for.
    """

    type: int
    code: int = 0
    rest: int = 0
    checksum: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Udp:
    """RFC 768. A `checksum` of 0 says that there is none."""

    src_port: int = 0
    dst_port: int = 0
    length: int | None = None
    checksum: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tcp:
    """RFC 9293 3.1. `flags` is the sum of FIN, SYN, …; `data_offset` in words; `window` as in the field."""

    src_port: int = 0
    dst_port: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 65535
    urgent: int = 0
    options: tuple[TcpOption, ...] = ()
    reserved: int = 0
    data_offset: int | None = None
    checksum: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The first 8 bytes of TCP, of which an ICMP error need not quote more."""

    src_port: int
    dst_port: int
    seq: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Payload, or what could not be taken apart; the last layer."""

    data: bytes


Layer = Ethernet | Arp | Ipv4 | Ipv6 | Icmp | Udp | Tcp | Ports | Raw
