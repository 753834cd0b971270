"""The attached network as the stack sees it: who we are there, the link, and IP over it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from tunstack.errors import DropCounters
from tunstack.ip.addresses import Prefix, is_link_local, is_single_host, link_local
from tunstack.ip.discovery import NeighbourDiscovery
from tunstack.ip.layer import IpLayer
from tunstack.limits import Limits
from tunstack.link.interface import EthernetLink, IpLink
from tunstack.packet import Buffer, Packet


class Network:
    """Link and IP layer of one attached network.

    Attributes:
        mtu: bytes of the largest IP packet.
        l2: the link carries Ethernet frames.
        own_addresses: IP addresses at which the stack is a host itself. If one of them is IPv6, the
            link-local address of the MAC is among them.
        ip: the IP layer; it knows the directed broadcast addresses of the prefixes.
        link: what frames packets; `set_link` replaces it.
        discovery: speaks for it in NDP; None on a link without neighbours.
    """

    __slots__ = ("_drops", "_limits", "_mac", "discovery", "ip", "l2", "link", "mtu", "own_addresses")

    def __init__(
        self,
        mac: bytes,
        mtu: int,
        prefixes: Iterable[Prefix],
        own_addresses: Iterable[bytes],
        rng: random.Random,
        *,
        l2: bool,
        limits: Limits,
        drops: DropCounters,
    ) -> None:
        self.mtu = mtu
        self.l2 = l2
        self.own_addresses: set[bytes] = set(own_addresses)
        if any(len(address) == 16 for address in self.own_addresses):
            self.own_addresses.add(link_local(mac))
        self._mac = mac
        self._limits = limits
        self._drops = drops
        self.ip = IpLayer(mtu, limits, drops, rng)
        for prefix in prefixes:
            broadcast = prefix.broadcast
            if broadcast is not None:
                self.ip.broadcasts.add(broadcast)
        self.link: EthernetLink | IpLink
        self.discovery: NeighbourDiscovery | None
        self._make_link()

    def set_link(self, *, l2: bool, afresh: bool = False) -> None:
        """Change the kind of link, or begin one `afresh`: neighbours and what waited are forgotten."""
        if l2 != self.l2 or afresh:
            self.l2 = l2
            self._make_link()

    def _make_link(self) -> None:
        link_class = EthernetLink if self.l2 else IpLink
        self.link = link = link_class(self._mac, self.mtu, self._limits, self._drops)
        link.own_addresses = self.own_addresses
        self.discovery = None
        if isinstance(link, EthernetLink):
            self.discovery = NeighbourDiscovery(link, self.ip, self._drops)

    def is_one_host(self, address: bytes) -> bool:
        """Whether `address` names a single host, and is no broadcast address of this network."""
        return is_single_host(address) and address not in self.ip.broadcasts

    def own_address_for(self, guest: bytes) -> bytes | None:
        """The smallest own address of the family of `guest`: the gateway's in every address plan.

        In IPv6 of its scope too (RFC 6724 5, rule 2).
        """
        same = [own for own in self.own_addresses if len(own) == len(guest)]
        if len(guest) == 16:
            same = [own for own in same if is_link_local(own) == is_link_local(guest)]
        return min(same, default=None)

    def send(
        self,
        src: bytes,
        dst: bytes,
        protocol: int,
        l4: bytes,
        payload: Sequence[Buffer],
        now: float,
        *,
        csum_offset: int = -1,
        hop_limit: int = 64,
        traffic_class: int = 0,
        dont_fragment: bool = True,
        mac: bytes | None = None,
    ) -> None:
        """Send a packet, or its fragments, whose parts are those of `IpLayer.build`.

        `mac`: who on the link gets it, if that is not the neighbours' to tell.
        """
        packets = self.ip.build(
            src,
            dst,
            protocol,
            l4,
            payload,
            hop_limit=hop_limit,
            traffic_class=traffic_class,
            dont_fragment=dont_fragment,
            csum_offset=csum_offset,
        )
        for packet in packets:
            if mac is None:
                self.link.send(packet, dst, now)
            else:
                self.link.send_to(packet, mac)

    def poll_transmit(self) -> list[Packet]:
        """The frames that are ready, questions about neighbours among them; clears."""
        if self.discovery is not None:
            self.discovery.solicit()
        return self.link.poll_transmit()

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do (seconds)."""
        link_deadline = self.link.next_timeout()
        ip_deadline = self.ip.next_timeout()
        if link_deadline is None or ip_deadline is None:
            return ip_deadline if link_deadline is None else link_deadline
        return min(link_deadline, ip_deadline)

    def handle_timeout(self, now: float) -> None:
        """Run the timers of link and IP that are due."""
        for layer in (self.link, self.ip):
            deadline = layer.next_timeout()
            if deadline is not None and deadline <= now:
                layer.handle_timeout(now)
