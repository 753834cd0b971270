"""Two stacks on one simulated wire, whose every packet a test decides on: what the TCP tests run in."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from tunstack.errors import BadPacket
from tunstack.ip.addresses import Prefix, parse_address
from tunstack.limits import Limits
from tunstack.link.shaping.stage import Stage
from tunstack.packet import Packet
from tunstack.stack import Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest
from tunstack.testing.simulator import Host, Network

A = parse_address("10.0.0.1")
B = parse_address("10.0.0.2")
PREFIX = Prefix.parse("10.0.0.0/24")
ADDRESSES = {4: (A, B), 6: (parse_address("fd00::a"), parse_address("fd00::b"))}
PREFIXES = {4: PREFIX, 6: Prefix.parse("fd00::/64")}

Fate = Callable[[random.Random], list[float]]
"""For one wire packet: after how many seconds copies of it arrive; empty if it is lost."""


def perfect(delay: float = 0.005) -> Fate:
    """Every packet arrives once after `delay` seconds."""
    return lambda rng: [delay]


class Wire(Stage):
    """Asks the world what becomes of each packet: after which times copies of it arrive."""

    kind = "wire"

    def __init__(self, world: World, stack: Stack) -> None:
        super().__init__()
        self._world = world
        self._stack = stack
        self._held: list[tuple[float, int, bytes]] = []

    def push(self, packet: Packet, at: float) -> None:
        world = self._world
        wire = bytes(packet.head)
        assert len(wire) <= self._stack.mtu, "a wire packet is larger than the MTU"
        world.carried += 1
        world.sending = self._stack
        for observer in world.observers:
            observer(self._stack, wire)
        for delay in world.fate_of(wire):
            copy = world.mangle(self._stack, wire)
            heapq.heappush(self._held, (at + delay, next(world.count), copy))

    def advance(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            due, _, wire = heapq.heappop(self._held)
            self._forward(Packet(memoryview(bytearray(wire))), due)

    def next_timeout(self) -> float | None:
        return self._held[0][0] if self._held else None


class World:
    """Two L3 stacks of a simulated network, `a` and `b`, and the wire between them, which a `Fate` rules.

    `family` is the IP version that they speak. A `Network` with what the tests of TCP want beside: a fate for
    single packets, sight of the stacks at every instant, numbers that come from the seed of a stack alone.
    """

    def __init__(
        self,
        fate: Fate | None = None,
        *,
        seed: int = 0,
        mtu: int = 1500,
        limits: Limits | None = None,
        start: float = 1000.0,
        family: int = 4,
    ) -> None:
        self.network = Network(seed, start=start)
        self.rng = random.Random(seed)
        self.fate = fate or perfect()
        limits = limits or Limits()
        self.family = family
        self.address_a, self.address_b = ADDRESSES[family]
        hosts = [
            self._host(name, address, mtu, limits, seed + number)
            for number, (name, address) in enumerate(zip("ab", ADDRESSES[family], strict=True))
        ]
        self.hosts = hosts
        self.a, self.b = (host.stack for host in hosts)
        self.count = itertools.count()
        self.carried = 0
        self.sending = self.a
        """Who sent the packet whose fate is asked for."""
        self.observers: list[Callable[[Stack, bytes], None]] = []
        """Called with the sending stack and each wire packet, lost ones included."""
        self.on_request: Callable[[Stack, TcpRequest], None] = self._accept
        self.accepted: list[Connection] = []
        self.on_event: Callable[[Connection], None] = lambda connection: None
        self.wires = [Wire(self, stack) for stack in (self.a, self.b)]
        self.network.link(*hosts, [self.wires[0]], [self.wires[1]], mtu=1 << 16)

    def _host(self, name: str, address: bytes, mtu: int, limits: Limits, seed: int) -> Host:
        stack = Stack(
            mac=bytes(6),
            mtu=mtu,
            prefixes=[PREFIXES[self.family]],
            own_addresses=[address],
            rng=random.Random(seed),
            l2=False,
            limits=limits,
        )
        host = self.network.add(Host(self.network.clock, name, stack, [address], random.Random(seed)))
        host.handler.on_request = lambda request, now: self.on_request(stack, request)
        host.handler.on_event = lambda connection: self.on_event(connection)
        return host

    @property
    def now(self) -> float:
        """The time, seconds."""
        return self.network.now

    @now.setter
    def now(self, now: float) -> None:
        self.network.clock.now = now

    def _accept(self, stack: Stack, request: TcpRequest) -> None:
        self.accepted.append(stack.accept(request, self.now))

    def connect(self, port: int = 80, local_port: int = 40000) -> Connection:
        """`a` opens a connection to `b`."""
        return self.a.connect(self.address_a, local_port, self.address_b, port, self.now)

    def pump(self) -> None:
        """Deliver events and flush until both stacks are quiet at this instant."""
        self.network.touch()
        self.network.clock.listen()

    def fate_of(self, wire: bytes) -> list[float]:
        """After how many seconds copies of `wire` arrive."""
        return self.fate(self.rng)

    def mangle(self, stack: Stack, wire: bytes) -> bytes:
        """What arrives of a copy of `wire`, which `stack` sent."""
        return wire

    def arrival(self) -> float:
        """When the next packet arrives."""
        return min((t for wire in self.wires if (t := wire.next_timeout()) is not None), default=float("inf"))

    def next_time(self) -> float | None:
        """When something happens next."""
        times = [self.a.next_timeout(), self.b.next_timeout(), *(wire.next_timeout() for wire in self.wires)]
        return min((t for t in times if t is not None), default=None)

    def step(self, until: float) -> bool:
        """Go to the next instant at which something happens, if it is not after `until`."""
        return self.network.step(until)

    def run(self, seconds: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Run for `seconds` of virtual time, or until `done()`; returns `done()`."""
        until = self.now + seconds
        stuck = 0
        while not done():
            before = self.now
            if not self.step(until):
                break
            stuck = stuck + 1 if self.now == before else 0
            assert stuck < 1000, "the clock stands still: a timer that is due is not acted upon"
        return done()


class Transfer:
    """Pumps bytes from one connection to the other through `World.on_event`, half-close included."""

    def __init__(self, world: World, sender: Connection, data: bytes) -> None:
        self.world = world
        self.sender = sender
        self.data = memoryview(data)
        self.sent = 0
        self.received = bytearray()
        self.eof = False
        world.on_event = self.on_event

    def on_event(self, connection: Connection) -> None:
        """Feed the sender, drain the receiver."""
        if connection is self.sender:
            self.feed()
        else:
            for view in connection.peek():
                self.received += view
            connection.consume(connection.readable)
            if connection.receive_eof:
                self.eof = True
                connection.shutdown()

    def feed(self) -> None:
        """Queue as much as there is room for; a FIN after the last byte."""
        if not self.sender.established or self.sender.closed:
            return
        while self.sent < len(self.data):
            taken = self.sender.send(self.data[self.sent : self.sent + 65536]) if self.sender.writable else 0
            if not taken:
                return
            self.sent += taken
        self.sender.shutdown()


__all__ = ["A", "B", "BadPacket", "Fate", "Transfer", "World", "perfect"]
