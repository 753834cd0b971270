"""The network: hosts, routers and links on one virtual clock.

    network = Network(seed=1)
    client, server = network.host("client"), network.host("server")
    network.link(client, server, "delay 20ms loss 1%")
    transfer = Transfer(client, server, 1_000_000)
    network.run_until(lambda: transfer.done, 60)

Everything that is random comes from the seed, by the name of whom it serves: the same program gives the same
packets at the same times, and a station that is added changes no other's numbers.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from tunstack.ip.addresses import Prefix, parse_address
from tunstack.limits import DEFAULT_LIMITS, Limits
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.stack import Stack
from tunstack.tcp import congestion as congestion_control
from tunstack.testing.simulator.clock import Clock
from tunstack.testing.simulator.host import Host
from tunstack.testing.simulator.link import Direction, Link, Observer, Shape
from tunstack.testing.simulator.router import Router
from tunstack.testing.simulator.station import Node, Station

HOSTS = Prefix.parse("10.0.0.0/8")
HOSTS_V6 = Prefix.parse("fd00:10::/64")
ROUTERS = Prefix.parse("198.18.0.0/15")
ROUTERS_V6 = Prefix.parse("2001:2::/48")
"""Where addresses come from that nobody chose: private ones (RFC 1918, RFC 4193), and those for tests of
network equipment (RFC 2544, RFC 5180)."""
MTU = 1500
"""Bytes of an IP packet, where nothing else is said."""

Kind = TypeVar("Kind", bound=Station)


class Same(enum.Enum):
    """Stands for a direction that treats packets as the other one does."""

    SAME = enum.auto()


class Network:
    """A simulated network.

    Attributes:
        seed: of everything random in it.
        stations: by name, in the order in which they were made.
        directions: all ways of all links, by name ("client>server").
        observers: told of every packet on every link; see `trace`. Empty, they cost nothing.
    """

    def __init__(self, seed: int = 0, *, start: float = 0.0) -> None:
        """`start`: what the clock shows first, seconds."""
        self.seed = seed
        self.clock = Clock(start)
        self.stations: dict[str, Station] = {}
        self.directions: dict[str, Direction] = {}
        self.observers: list[Observer] = []

    # making it

    def host(
        self,
        name: str,
        *addresses: str,
        mtu: int = MTU,
        limits: Limits = DEFAULT_LIMITS,
        congestion: str = congestion_control.DEFAULT,
        ecn: bool = True,
        coalesce: bool = False,
    ) -> Host:
        """A host with a tunstack of its own; without `addresses` it has one of each family.

        `congestion` and `ecn` as for `Stack`, `coalesce` as for `Host`.
        """
        number = len(self.stations) + 1
        chosen = [parse_address(text) for text in addresses] or [
            HOSTS.address(number),
            HOSTS_V6.address(number),
        ]
        stack = self._stack(name, chosen, mtu, limits, congestion=congestion, ecn=ecn)
        return self.add(Host(self.clock, name, stack, chosen, self.rng(f"{name} port"), coalesce=coalesce))

    def router(self, name: str, *addresses: str) -> Router:
        """A router; without `addresses` it has one of each family."""
        number = len(self.stations) + 1
        chosen = [parse_address(text) for text in addresses] or [
            ROUTERS.address(number),
            ROUTERS_V6.address(number),
        ]
        stack = self._stack(name, chosen, 0xFFFF, DEFAULT_LIMITS)
        return self.add(Router(self.clock, name, stack, chosen, self.way))

    def attach(self, name: str, node: Node, *addresses: str, l2: bool = False) -> Station:
        """A station for anything that is a `Node`; only what has `addresses` is reached through routers."""
        chosen = [parse_address(text) for text in addresses]
        return self.add(Station(self.clock, name, node, addresses=chosen, l2=l2))

    def add(self, station: Kind) -> Kind:
        """Take a station.

        Raises:
            ValueError: its name is taken.
        """
        if station.name in self.stations:
            raise ValueError(f"there is a station {station.name} already")
        self.stations[station.name] = station
        return station

    def link(
        self,
        first: Station,
        second: Station,
        forth: Shape = None,
        back: Shape | Same = Same.SAME,
        *,
        mtu: int = MTU,
    ) -> Link:
        """Join two stations; `forth` says what happens to packets to `second`, `back` to those to `first`.

        `back` is like `forth`, with a seed of its own, where nothing else is said; stages, which hold
        packets, cannot serve both. `mtu` counts IP packets, in bytes; larger ones are dropped.

        Raises:
            ValueError: frames on one end and IP packets on the other, or `Station.attach` refuses.
            ShapeError: words that say nothing.
        """
        if first.l2 != second.l2:
            raise ValueError(f"{first.name} and {second.name} do not speak the same link layer")
        if back is Same.SAME:
            if forth is not None and not isinstance(forth, str | ShapeSpec):
                raise ValueError("stages serve one direction; give the other one its own")
            back = forth
        ways = []
        for source, target, shape in ((first, second, forth), (second, first, back)):
            seed = self.rng(f"{source.name}>{target.name}").getrandbits(64)
            way = Direction(self.clock, source, target, shape, mtu=mtu, seed=seed, watchers=self.observers)
            source.attach(way)
            self.directions[way.name] = way
            ways.append(way)
        self._forget_ways()
        return Link(*ways)

    def rng(self, name: str) -> random.Random:
        """The random numbers of whoever has this name."""
        return random.Random(f"{self.seed} {name}")

    # running it

    @property
    def now(self) -> float:
        """What the clock shows, seconds."""
        return self.clock.now

    def at(self, time: float, action: Callable[[], object]) -> None:
        """Call `action` at `time`; every station may have something to say after it."""

        def act(now: float) -> None:
            action()
            self.touch()

        self.clock.at(time, act)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """The same, so many seconds from now."""
        self.at(self.now + seconds, action)

    def touch(self) -> None:
        """Stations were used from outside: ask each of them for packets at the next opportunity."""
        for station in self.stations.values():
            station.touch()

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        self.touch()
        self.clock.run(self.now + seconds)

    def run_until(self, done: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Run until `done()`, which is asked after each instant and may not touch a station; returns it.

        Ends early after `seconds`, or when nothing will ever happen any more.
        """
        self.touch()
        return self.clock.run(self.now + seconds, done)

    def step(self, until: float = float("inf")) -> bool:
        """Go to the next instant at which something happens, unless it is after `until`: then False."""
        self.touch()
        clock = self.clock
        clock.listen()
        time = clock.next_time()
        if time is None or time > until:
            if until != float("inf"):
                clock.now = max(clock.now, until)
            return False
        clock.instant()
        return True

    def next_time(self) -> float | None:
        """When something happens next, or None: never."""
        return self.clock.next_time()

    # ways

    def way(self, router: Router, address: bytes) -> Direction | None:
        """The first link of a shortest way from `router` to the station that has `address`."""
        first: dict[str, Direction] = {}
        waiting: deque[Station] = deque([router])
        while waiting:
            station = waiting.popleft()
            for direction in station.directions.values():
                target = direction.target
                if target is router or target.name in first:
                    continue
                first[target.name] = first.get(station.name, direction)
                if address in target.addresses:
                    return first[target.name]
                if isinstance(target, Router):
                    waiting.append(target)
        return None

    def _forget_ways(self) -> None:
        for station in self.stations.values():
            if isinstance(station, Router):
                station.forget_ways()

    def _stack(
        self,
        name: str,
        addresses: Sequence[bytes],
        mtu: int,
        limits: Limits,
        *,
        congestion: str = congestion_control.DEFAULT,
        ecn: bool = True,
    ) -> Stack:
        return Stack(
            mac=b"\x02" + self.rng(f"{name} mac").randbytes(5),
            mtu=mtu,
            prefixes=(),
            own_addresses=addresses,
            rng=self.rng(name),
            l2=False,
            limits=limits,
            congestion=congestion,
            ecn=ecn,
        )
