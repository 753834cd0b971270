"""One end of a link: what stands between a device and the IP layer.

`EthernetLink` (layer 2) strips and prepends frame headers and speaks ARP for its own addresses;
`IpLink` (layer 3) has the same methods and nothing to do. Both are sans-IO.

Theory of operation of ARP (RFC 826 with RFC 1122 2.3.2; RFC 5227 for probes). Requests for own addresses
are answered to the sender hardware address, probes (sender 0.0.0.0) included. What a message says of its
sender goes to the neighbour cache: a request aimed at us makes an entry, everything else only touches an
entry that exists, and only a reply sent to our own MAC can confirm one. A message is broken, counted as
BAD_ARP and neither answered nor learnt from when its sender MAC is zero, a group or our own, or its sender
address is one of ours, of net 0 (but for 0.0.0.0) or 127, multicast or broadcast.

IPv6 uses the same cache. Its questions are ICMPv6 and therefore the IP layer's: it takes them by
`poll_solicitations` and brings what it hears to `neighbour_heard`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.limits import Limits
from tunstack.link import arp, ethernet
from tunstack.link.neighbour import NeighbourCache, Solicitation
from tunstack.packet import Packet

_DESTINATION_AND_TYPE = struct.Struct("!6s6xH")
_UNSPECIFIED = bytes(4)


class EthernetLink:
    """A layer-2 link with one MAC and any number of own addresses.

    Attributes:
        mac: our address, 6 bytes.
        own_addresses: IP addresses that ARP answers for; owned by the stack, which may change it at any time.
        mtu: of IP packets, bytes.
        neighbours: the cache, for inspection.
        route: says by whom on the link a destination is reached; None: all are on the link.
    """

    __slots__ = (
        "_drops",
        "_headers",
        "_ready",
        "_solicitations",
        "mac",
        "mtu",
        "neighbours",
        "own_addresses",
        "route",
    )

    def __init__(self, mac: bytes, mtu: int, limits: Limits, drops: DropCounters) -> None:
        self.mac = mac
        self.mtu = mtu
        self.own_addresses: set[bytes] = set()
        self.route: Callable[[bytes], bytes] | None = None
        self.neighbours = NeighbourCache(limits, drops, self._header)
        self._headers = self.neighbours.headers
        self._drops = drops
        self._ready: list[Packet] = []
        self._solicitations: dict[bytes, Solicitation] = {}

    def receive(self, packet: Packet, now: float) -> int:
        """The offset of the IP header in `packet.head`, or -1: consumed or dropped."""
        try:
            dst, ethertype = _DESTINATION_AND_TYPE.unpack_from(packet.head)
        except struct.error:
            self._drops.add(DropReason.FRAME_TOO_SHORT)
            return -1
        if dst != self.mac and not dst[0] & 1:
            self._drops.add(DropReason.NOT_FOR_US)
            return -1
        if ethertype == 0x0800 or ethertype == 0x86DD:
            return 14
        if ethertype == ethernet.ETHERTYPE_ARP:
            self._receive_arp(packet, now, dst == self.mac)
        else:
            self._drops.add(DropReason.UNKNOWN_ETHERTYPE)
        return -1

    def send(self, packet: Packet, next_hop: bytes, now: float) -> None:
        """Frame `packet`, whose head starts with the IP header, for `next_hop`; or let it wait for ARP.

        `next_hop` is an address on the link, multicast and limited broadcast included, or has a `route`.
        """
        if self.route is not None:
            next_hop = self.route(next_hop)
        header = self._headers.get(next_hop)
        is_known = header is not None
        if header is None:
            header = self._find_header(packet, next_hop, now)
        if header is not None:
            packet.head = header + packet.head
            packet.csum_start += 14
            self._ready.append(packet)
        if not is_known:  # behind the packet: U-Boot forgets what it waits for when a question comes first
            self._solicit()

    def known_header(self, address: bytes) -> bytes | None:
        """The link header towards `address`, if it may be used without asking."""
        return self._headers.get(address)

    def use_header(self, address: bytes, now: float) -> bytes | None:
        """The link header towards `address`, if it is known at all; it is in use from now on."""
        header = self.neighbours.use(address, now)
        self._solicit()
        return header

    @property
    def changes(self) -> int:
        """Grows whenever what `known_header` answers changes."""
        return self.neighbours.changes

    def send_to(self, packet: Packet, mac: bytes) -> None:
        """Frame `packet` for `mac`, whatever the neighbour cache says."""
        is_ipv6 = packet.head[0] >> 4 == 6
        ethertype = ethernet.ETHERTYPE_IPV6 if is_ipv6 else ethernet.ETHERTYPE_IPV4
        packet.head = ethernet.header(mac, self.mac, ethertype) + packet.head
        packet.csum_start += 14
        self._ready.append(packet)

    def poll_transmit(self) -> list[Packet]:
        """Frames that are ready to go, in order; clears."""
        ready, self._ready = self._ready, []
        return ready

    def poll_failures(self) -> list[Packet]:
        """IP packets whose next hop did not answer (counted already); clears."""
        return self.neighbours.poll_failures()

    def poll_solicitations(self) -> list[Solicitation]:
        """Questions about IPv6 neighbours for NDP to ask, at most one for each entry; clears."""
        if not self._solicitations:
            return []
        wanted = list(self._solicitations.values())
        self._solicitations.clear()
        return wanted

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called next, or None."""
        return self.neighbours.next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Age the neighbours."""
        self.neighbours.handle_timeout(now)
        self._solicit()

    def neighbour_heard(
        self, address: bytes, mac: bytes, now: float, *, solicited: bool, create: bool
    ) -> None:
        """A well-formed message said that `address` is at `mac`; see `NeighbourCache.update`."""
        for packet in self.neighbours.update(address, mac, now, solicited=solicited, create=create):
            self.send(packet, address, now)
        self._solicit()

    def _header(self, address: bytes, mac: bytes) -> bytes:
        return ethernet.header(
            mac, self.mac, ethernet.ETHERTYPE_IPV4 if len(address) == 4 else ethernet.ETHERTYPE_IPV6
        )

    def _find_header(self, packet: Packet, next_hop: bytes, now: float) -> bytes | None:
        group = ethernet.group_mac(next_hop)
        if group is not None:
            return self._header(next_hop, group)
        return self.neighbours.resolve(packet, next_hop, now)

    def _receive_arp(self, packet: Packet, now: float, to_us: bool) -> None:
        try:
            message = arp.parse(packet.head, ethernet.HEADER_LENGTH)
        except BadPacket as error:
            self._drops.add(error.reason)
            return
        operation, mac, sender, _, target = message
        own = self.own_addresses
        if not ethernet.is_station(mac) or mac == self.mac or sender in own or _never_a_sender(sender):
            self._drops.add(DropReason.BAD_ARP)
            return
        asks_us = operation == arp.REQUEST and target in own
        if sender != _UNSPECIFIED:
            self.neighbour_heard(sender, mac, now, solicited=operation == arp.REPLY and to_us, create=asks_us)
        if asks_us:
            reply = arp.ArpMessage(arp.REPLY, self.mac, target, mac, sender)
            self._transmit_arp(mac, reply)

    def _solicit(self) -> None:
        for solicitation in self.neighbours.poll_solicitations():
            address, mac = solicitation
            if len(address) != 4:
                self._remember(solicitation)
                continue
            request = arp.ArpMessage(arp.REQUEST, self.mac, self._sender_for(address), ethernet.ZERO, address)
            self._transmit_arp(mac or ethernet.BROADCAST, request)

    def _remember(self, solicitation: Solicitation) -> None:
        wanted = self._solicitations
        wanted[solicitation.address] = solicitation
        if len(wanted) > len(self.neighbours):
            for address in [a for a in wanted if self.neighbours.state(a) is None]:
                del wanted[address]

    def _sender_for(self, address: bytes) -> bytes:
        """The own IPv4 address that shares the longest prefix with `address`, else 0.0.0.0 (a probe)."""
        number = int.from_bytes(address, "big")
        candidates = [own for own in self.own_addresses if len(own) == 4]
        return min(candidates, key=lambda own: int.from_bytes(own, "big") ^ number, default=_UNSPECIFIED)

    def _transmit_arp(self, dst: bytes, message: arp.ArpMessage) -> None:
        frame = ethernet.header(dst, self.mac, ethernet.ETHERTYPE_ARP) + arp.emit(message)
        self._ready.append(Packet(frame))


class IpLink:
    """A layer-3 link: IP packets with nothing around them. `mac` means nothing here."""

    __slots__ = ("_drops", "_ready", "mac", "mtu", "own_addresses")

    def __init__(self, mac: bytes, mtu: int, limits: Limits, drops: DropCounters) -> None:
        self.mac = mac
        self.mtu = mtu
        self.own_addresses: set[bytes] = set()
        self._drops = drops
        self._ready: list[Packet] = []

    def receive(self, packet: Packet, now: float) -> int:
        """0, the offset of the IP header; -1 for a packet without a byte."""
        if not packet.head:
            self._drops.add(DropReason.FRAME_TOO_SHORT)
            return -1
        return 0

    def send(self, packet: Packet, next_hop: bytes, now: float) -> None:
        """Let `packet` go; there is one place where it can go."""
        self._ready.append(packet)

    def send_to(self, packet: Packet, mac: bytes) -> None:
        """The same."""
        self._ready.append(packet)

    def known_header(self, address: bytes) -> bytes | None:
        """Nothing: there is no header."""
        return b""

    def use_header(self, address: bytes, now: float) -> bytes | None:
        """Nothing: there is no header."""
        return b""

    @property
    def changes(self) -> int:
        """Always 0."""
        return 0

    def poll_transmit(self) -> list[Packet]:
        """Packets that are ready to go, in order; clears."""
        ready, self._ready = self._ready, []
        return ready

    def poll_failures(self) -> list[Packet]:
        """Always empty: nothing is resolved here."""
        return []

    def poll_solicitations(self) -> list[Solicitation]:
        """Always empty."""
        return []

    def next_timeout(self) -> float | None:
        """Always None."""
        return None

    def handle_timeout(self, now: float) -> None:
        """Nothing ages here."""


def _never_a_sender(address: bytes) -> bool:
    """Whether no host may claim `address` (RFC 1122 3.2.1.3); 0.0.0.0 is the sender of a probe."""
    return (address[0] in (0, 127) and address != _UNSPECIFIED) or address[0] >= 224
