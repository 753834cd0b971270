"""Destinations that are reached in another way than by the host's network."""

from __future__ import annotations

import dataclasses

from tunstack.ip.header import TCP
from tunstack.nat.channel import Opener
from tunstack.nat.dialer import Dialer

MOST = 1024
"""Routes of a gateway and protocol: each SYN, and each datagram outside the fast path, looks at them all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Destinations: those within a prefix (`address`, 4 or 16 bytes, and `bits` of it), at some ports.

    `protocol`: TCP or UDP.
    """

    address: bytes
    bits: int
    first_port: int = 0
    last_port: int = 0xFFFF
    protocol: int = TCP

    @property
    def is_single(self) -> bool:
        """Whether it is about one address."""
        return self.bits == 8 * len(self.address)

    def covers(self, dst: bytes, dst_port: int) -> bool:
        """Whether address and port are among them."""
        shift = 8 * len(self.address) - self.bits
        return (
            len(dst) == len(self.address)
            and self.first_port <= dst_port <= self.last_port
            and int.from_bytes(dst, "big") >> shift == int.from_bytes(self.address, "big") >> shift
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """How some destinations are reached.

    Attributes:
        match: which.
        dialer: by whom, of TCP.
        opener: by whom, of UDP. Neither: by the host's network, as if there were no route.
        is_end: it leads to one service, whatever the destination is, so that policy has no say; else it is
            asked for the destination, which policy has to allow.
    """

    match: Match
    dialer: Dialer | None = None
    opener: Opener | None = None
    is_end: bool


class Routes:
    """The routes of a NAT and one protocol; the first that covers a destination counts."""

    __slots__ = ("_routes",)

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def __len__(self) -> int:
        return len(self._routes)

    def add(self, route: Route) -> None:
        """Behind those that are there. ValueError: there are too many."""
        if len(self._routes) >= MOST:
            raise ValueError(f"there are {MOST} routes already")
        self._routes.append(route)

    def remove(self, route: Route) -> None:
        """Flows that were dialled stay."""
        self._routes.remove(route)

    def find(self, dst: bytes, dst_port: int) -> Route | None:
        """The route to a destination, if there is one."""
        for route in self._routes:
            if route.match.covers(dst, dst_port):
                return route
        return None
