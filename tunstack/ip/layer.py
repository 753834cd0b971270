"""The IP layer of one attached network: packets in, checked and whole; packets out, built and cut.

Input. The version decides who parses; then the source is checked (RFC 1122 3.2.1.3, RFC 4291 2.5): it must
name one host. 0.0.0.0 passes only towards 255.255.255.255, which is how a host without an address asks for
one, and :: only with ICMPv6 to a group, which is how one looks whether its address is free (RFC 4862 5.4).
Destinations are not judged here, since what is refused must be answered and counted by the policy.
Fragments are held until their datagram is whole (`reassembly`).

Output. The length of the addresses decides who writes. Headers carry no options. IPv4 packets with DF are
atomic and carry identification 0; all others, and IPv6 packets that are cut, get a number from a counter per
(source, destination, protocol) that starts at random (RFC 6864 4.1, 4.2, RFC 7739). A packet larger than the
MTU is cut if it may be, its layer-4 checksum being completed first; a packet with `gso_size` is a train and
never cut here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunstack import native
from tunstack.errors import BadPacket, DropCounters, DropReason, LocalError
from tunstack.ip import ipv4, ipv6
from tunstack.ip.addresses import BROADCAST_V4, UNSPECIFIED_V4, UNSPECIFIED_V6, is_single_host
from tunstack.ip.header import ICMPV6, IpHeader
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.ip.reassembly import Reassembler
from tunstack.limits import Limits
from tunstack.packet import Buffer, Checksum, GsoType, Packet

if TYPE_CHECKING:
    import random

_SUSPECT_SOURCES = frozenset((0, 127, *range(224, 240), 255))
"""First bytes of IPv4 addresses that no packet should come from, or that need a closer look."""

TemplateKey = tuple[bytes, bytes, int, int, int]
Template = ipv4.HeaderTemplate | ipv6.HeaderTemplate


def parse_quote(data: Buffer) -> IpHeader:
    """The header of a packet of either family of which perhaps only the beginning is there.

    Raises:
        BadPacket: as `ipv4.parse_quote` and `ipv6.parse_quote`.
    """
    if len(data) and data[0] >> 4 == 6:
        return ipv6.parse_quote(data)
    return ipv4.parse_quote(data)


class IpLayer:
    """IP input and output.

    Attributes:
        mtu: bytes of the largest packet of the link, IP header included; below 1280 there is no IPv6.
        broadcasts: directed broadcast addresses of the attached network; nothing may come from them.
    """

    __slots__ = ("_drops", "_idents", "_limits", "_reassembler", "_rng", "_templates", "broadcasts", "mtu")

    def __init__(self, mtu: int, limits: Limits, drops: DropCounters, rng: random.Random) -> None:
        """`rng` makes identifications unpredictable: `random.SystemRandom`, or seeded in tests."""
        if mtu < ipv4.MIN_MTU:
            raise LocalError(f"an MTU of {mtu} bytes is below {ipv4.MIN_MTU}")
        self.mtu = mtu
        self.broadcasts: set[bytes] = set()
        self._limits = limits
        self._drops = drops
        self._rng = rng
        self._reassembler = Reassembler(limits, drops)
        self._templates: dict[TemplateKey, Template] = {}
        self._idents: dict[tuple[bytes, bytes, int], int] = {}

    def receive(self, data: Buffer, offset: int, now: float) -> IpHeader | None:
        """The packet at `offset`, checked and whole; None if it was dropped (counted) or waits for more."""
        try:
            if len(data) > offset and data[offset] >> 4 == 6:
                header = self._receive_v6(data, offset)
            else:
                header = ipv4.parse(data, offset)
                src = header.src
                if (src[0] in _SUSPECT_SOURCES or src in self.broadcasts) and self._bad_source(header):
                    raise BadPacket(DropReason.BAD_SOURCE)
        except BadPacket as error:
            self._drops.add(error.reason)
            return None
        if header.more_fragments or header.fragment_offset:
            return self._reassemble(header, now)
        return header

    def build(
        self,
        src: bytes,
        dst: bytes,
        protocol: int,
        l4: bytes,
        payload: Sequence[Buffer] = (),
        *,
        hop_limit: int = 64,
        traffic_class: int = 0,
        dont_fragment: bool = True,
        gso_size: int = 0,
        gso_type: int = GsoType.NONE,
        csum_offset: int = -1,
    ) -> list[Packet]:
        """The packet of `l4` (headers, copied) and `payload` (views, kept) as one `Packet` or its fragments.

        With `csum_offset` >= 0 the checksum at that offset of `l4` is PARTIAL and stays so unless the
        packet is cut. Empty, and counted as PACKET_TOO_BIG, if it is larger than the MTU and may not be
        cut, or larger than a packet can be.

        Raises:
            LocalError: a train (`gso_size`) of more than 65535 bytes, or values that fit no header.
        """
        key = (src, dst, protocol, hop_limit, traffic_class)
        template = self._templates.get(key) or self._make_template(key)
        length = template.header_length
        total = length + len(l4)
        for view in payload:
            total += len(view)
        if total > self.mtu and not gso_size:
            return self._build_large(template, key, l4, payload, dont_fragment, csum_offset)
        if total > ipv4.MAX_TOTAL_LENGTH:
            raise LocalError(f"a train of {total} bytes")
        if dont_fragment or length == ipv6.HEADER_LENGTH:
            head = template.emit(total, 0, ipv4.DONT_FRAGMENT) + l4
        else:
            count = -(-(total - length - len(l4)) // gso_size) if gso_size else 1
            head = template.emit(total, self._take_idents(key, count), 0) + l4
        if csum_offset < 0:
            return [Packet(head, payload, gso_size, gso_type)]
        return [Packet(head, payload, gso_size, gso_type, Checksum.PARTIAL, length, csum_offset)]

    def poll_errors(self) -> list[tuple[bytes, IcmpErrorKind]]:
        """Quotes for which Time Exceeded in reassembly is due (RFC 1122 3.3.2); clears."""
        return [(quote, IcmpErrorKind.REASSEMBLY_TIMEOUT) for quote in self._reassembler.poll_quotes()]

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        return self._reassembler.next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Give up the datagrams whose time is over."""
        self._reassembler.handle_timeout(now)

    def _receive_v6(self, data: Buffer, offset: int) -> IpHeader:
        header = ipv6.parse(data, offset)
        src = header.src
        if not is_single_host(src) and not (
            src == UNSPECIFIED_V6 and header.protocol == ICMPV6 and header.dst[0] == 0xFF
        ):
            raise BadPacket(DropReason.BAD_SOURCE)
        return header

    def _bad_source(self, header: IpHeader) -> bool:
        src = header.src
        if src[0] == 0:
            return src != UNSPECIFIED_V4 or header.dst != BROADCAST_V4
        return src[0] != 255 or src == BROADCAST_V4 or src in self.broadcasts

    def _reassemble(self, header: IpHeader, now: float) -> IpHeader | None:
        datagram = self._reassembler.add(header, now)
        if datagram is None:
            return None
        try:
            return ipv4.join(datagram) if header.version == 4 else ipv6.join(datagram)
        except BadPacket as error:
            self._drops.add(error.reason, len(datagram.pieces))
            return None

    def _make_template(self, key: TemplateKey) -> Template:
        template: Template = (ipv4 if len(key[0]) == 4 else ipv6).HeaderTemplate(*key)
        if len(self._templates) >= self._limits.ip_header_templates:
            self._templates.clear()
        self._templates[key] = template
        return template

    def _take_idents(self, key: TemplateKey, count: int) -> int:
        """The first of `count` identifications in a row for this source, destination and protocol."""
        idents = self._idents
        place = key[:3]
        bits = 16 if len(place[0]) == 4 else 32
        first = idents.pop(place, None)
        if first is None:
            first = self._rng.getrandbits(bits)
            if len(idents) >= self._limits.ip_idents:
                del idents[next(iter(idents))]
        idents[place] = (first + count) & ((1 << bits) - 1)
        return first

    def _build_large(
        self,
        template: Template,
        key: TemplateKey,
        l4: bytes,
        payload: Sequence[Buffer],
        dont_fragment: bool,
        csum_offset: int,
    ) -> list[Packet]:
        length = template.header_length
        total = length + len(l4) + sum(map(len, payload))
        if length == ipv6.HEADER_LENGTH:
            fits = total - length <= ipv6.MAX_PAYLOAD_LENGTH and self.mtu >= ipv6.MIN_MTU
        else:
            fits = total <= ipv4.MAX_TOTAL_LENGTH
        if dont_fragment or not fits:
            self._drops.add(DropReason.PACKET_TOO_BIG)
            return []
        ident = self._take_idents(key, 1)
        whole = Packet(template.emit(total, ident, 0) + l4, payload)
        if csum_offset >= 0:
            whole.checksum = Checksum.PARTIAL
            whole.csum_start = length
            whole.csum_offset = csum_offset
            whole = native.complete_checksum(whole)
        body = memoryview(whole.tobytes())[length:]
        if isinstance(template, ipv4.HeaderTemplate):
            pieces = ipv4.fragment(template, body, self.mtu, ident)
        else:
            pieces = ipv6.fragment(template, body, self.mtu, ident)
        return [Packet(header, (piece,)) for header, piece in pieces]
