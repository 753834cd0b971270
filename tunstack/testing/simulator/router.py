"""A router: forwards by prefix, takes one off the hop limit, and says what became of what it drops.

Its queues are those of the links that lead away from it. It is a host as well, with addresses of its own at
which it answers pings and from which its ICMP errors come; those are made, and limited, by the stack
that it is a host with (RFC 1812 4.3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.ip.addresses import Prefix, format_address
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.nat.context import Services
from tunstack.packet import Packet
from tunstack.stack import Stack
from tunstack.testing.services import ServiceHandler
from tunstack.testing.simulator import forwarding
from tunstack.testing.simulator.clock import Clock
from tunstack.testing.simulator.link import Direction
from tunstack.testing.simulator.station import Station

FindWay = Callable[["Router", bytes], Direction | None]
"""Finds the way to a station's address for a router whose table does not have it."""


class Router(Station):
    """A station with any number of links. Made by `Network.router`.

    Attributes:
        stack: what it is a host with.
        silent: whether it keeps to itself what it drops: a black hole.
        forwarded: packets.
        drops: packets that ended here, by cause.
    """

    most_links = 1 << 16

    def __init__(
        self, clock: Clock, name: str, stack: Stack, addresses: Sequence[bytes], find_way: FindWay
    ) -> None:
        super().__init__(clock, name, stack, addresses=addresses)
        self.stack = stack
        self.silent = False
        self.forwarded = 0
        self.drops = DropCounters()
        self._own = frozenset(addresses)
        self._handler = ServiceHandler(stack, Services())
        self._find_way = find_way
        self._routes: list[tuple[Prefix, Direction]] = []
        self._ways: dict[bytes, Direction | None] = {}

    def route(self, prefix: str, neighbour: str | Station) -> None:
        """Send what goes to `prefix` ("10.1.0.0/16") over the link to `neighbour`; the longest prefix holds.

        Without routes the stations of the network are reached on the shortest way.

        Raises:
            ValueError: it is no prefix, or there is no such link.
        """
        name = neighbour if isinstance(neighbour, str) else neighbour.name
        if name not in self.directions:
            raise ValueError(f"there is no link from {self.name} to {name}")
        self._routes.append((Prefix.parse(prefix), self.directions[name]))
        self._routes.sort(key=lambda route: -route[0].length)
        self.forget_ways()

    def forget_ways(self) -> None:
        """The topology has changed."""
        self._ways.clear()

    def way(self, address: bytes) -> Direction | None:
        """Where packets to `address` leave, or None."""
        if address not in self._ways:
            found = next((way for prefix, way in self._routes if prefix.contains(address)), None)
            self._ways[address] = found or self._find_way(self, address)
        return self._ways[address]

    # what the clock drives

    def arrive(self, packet: Packet, now: float) -> None:
        """Take a packet that came over a link: it is for this host, or goes on, or ends here."""
        data = bytes(packet.head)
        try:
            address = forwarding.destination(data)
        except BadPacket as error:
            self.drops.add(error.reason)
            return
        if address in self._own:
            self.stack.receive(packet, now)
            self.touch()
        elif forwarding.hops_left(data) <= 1:
            self._refuse(data, DropReason.TTL_EXCEEDED, IcmpErrorKind.TTL_EXCEEDED, now)
        elif (way := self.way(address)) is None:
            self._refuse(data, DropReason.BAD_DESTINATION, IcmpErrorKind.NET_UNREACHABLE, now)
        elif len(data) <= way.mtu:
            self.forwarded += 1
            way.forward(Packet(forwarding.one_hop_less(data)), now)
        elif forwarding.may_fragment(data):
            self.forwarded += 1
            for piece in forwarding.fragment(forwarding.one_hop_less(data), way.mtu):
                way.forward(Packet(piece), now)
        else:
            kind = IcmpErrorKind.FRAGMENTATION_NEEDED
            self._refuse(data, DropReason.PACKET_TOO_BIG, kind, now, mtu=way.mtu)

    def speak(self, now: float) -> None:
        """Send what the host that it is has to send."""
        stack = self.stack
        while True:
            for event in stack.poll_events():
                self._handler.handle(event, now)
            self.emit(stack.poll_transmit(now), now)
            if not stack.has_events:
                break
        self._alarm.arm()

    def emit(self, packets: Sequence[Packet], now: float) -> None:
        """Send own packets to where they go; one without a way is dropped."""
        for packet in packets:
            way = self.way(forwarding.destination(packet.tobytes()))
            if way is None:
                self.drops.add(DropReason.BAD_DESTINATION)
            else:
                way.send([packet], now)

    def _refuse(
        self, data: bytes, reason: DropReason, kind: IcmpErrorKind, now: float, *, mtu: int = 0
    ) -> None:
        self.drops.add(reason)
        source = next((own for own in self.addresses if len(own) == (4 if data[0] >> 4 == 4 else 16)), None)
        if not self.silent and source is not None:
            self.stack.send_icmp_error(data, kind, now, mtu=mtu, source=source)
            self.touch()

    def routes(self) -> list[tuple[str, str]]:
        """The table as (prefix, neighbour) in the order in which it is searched, for people."""
        listed = [(str(prefix), way.target.name) for prefix, way in self._routes]
        found = [
            (format_address(a), way.target.name) for a, way in sorted(self._ways.items()) if way is not None
        ]
        return listed + found
