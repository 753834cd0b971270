"""A link: two directions, each with a pipeline of shaping stages and an MTU of its own."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from tunstack.errors import DropCounters, DropReason
from tunstack.gateway.files import read
from tunstack.limits import DEFAULT_LIMITS, Limits
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.shaper import to_wire
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Stage
from tunstack.packet import Packet
from tunstack.testing.simulator.clock import Alarm, Clock

if TYPE_CHECKING:
    from tunstack.testing.simulator.station import Station

Shape = str | ShapeSpec | Iterable[Stage] | None
"""How one direction treats packets: the words of docs/shaping.md, or stages; None is perfect."""

ETHERNET_HEADER = 14
"""Bytes that come on top of the MTU where packets are frames."""


class What(enum.Enum):
    """What happens to a packet on a link."""

    SENT = "sent"
    """It was put on the link."""
    ARRIVED = "arrived"
    """It, or a copy of it, has come out at the other end."""
    DROPPED = "dropped"
    """It ended on the way."""


Observer = Callable[[float, What, "Direction", Packet, DropReason | None], None]
"""Told of everything that happens on a link: the time, what, where, to which packet, and why."""


class Direction:
    """One way of a link.

    Attributes:
        name: "a>b", by the names of its ends.
        source, target: its ends.
        mtu: of IP packets, bytes; what is larger is dropped here.
        pipeline: what packets pass on the way; replaced by `shape`.
        drops: what ended here, by cause.
        packets: how many were sent.
        octets: their bytes.
        observers: told of every packet, in this order, after those of the network.
    """

    def __init__(
        self,
        clock: Clock,
        source: Station,
        target: Station,
        shape: Shape,
        *,
        mtu: int,
        seed: int,
        watchers: list[Observer],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """`seed` holds unless `shape` has one; `watchers`: the observers of the whole network."""
        self.name = f"{source.name}>{target.name}"
        self.source = source
        self.target = target
        self.mtu = mtu
        self.drops = DropCounters()
        self.packets = 0
        self.octets = 0
        self.observers: list[Observer] = []
        self._clock = clock
        self._seed = seed
        self._limits = limits
        self._watchers = watchers
        self._l2 = source.l2
        self._largest = mtu + (ETHERNET_HEADER if self._l2 else 0)
        self.pipeline = self._build(shape)
        self._alarm = self._make_alarm()

    def shape(self, shape: Shape) -> None:
        """Treat packets in this way from now on; what is under way in the old pipeline is lost."""
        self.pipeline.clear()
        self.pipeline = self._build(shape)
        self._alarm = self._make_alarm()

    def send(self, packets: Sequence[Packet], now: float) -> None:
        """Send `packets`, cut to wire size; nothing is borrowed afterwards."""
        pipeline = self.pipeline
        observed = bool(self._watchers or self.observers)
        for packet in packets:
            for wire in to_wire(packet, self._l2):
                size = len(wire)
                self.packets += 1
                self.octets += size
                if observed:
                    self._tell(now, What.SENT, wire)
                if size > self._largest:
                    self.drop(wire, DropReason.PACKET_TOO_BIG)
                else:
                    pipeline.push(wire, now)
        self._alarm.arm()

    def forward(self, wire: Packet, now: float) -> None:
        """Send one packet of wire size that is its own already; over a perfect link it arrives at once."""
        self.packets += 1
        self.octets += len(wire)
        if self._watchers or self.observers:
            self._tell(now, What.SENT, wire)
        if self.pipeline.stages:
            self.pipeline.push(wire, now)
            self._alarm.arm()
        else:
            if self._watchers or self.observers:
                self._tell(now, What.ARRIVED, wire)
            self.target.arrive(wire, now)

    def drop(self, packet: Packet, reason: DropReason) -> None:
        """`packet` does not get onto the link."""
        self.drops.add(reason)
        self._dropped(packet, reason)

    def _build(self, shape: Shape) -> Pipeline:
        if isinstance(shape, str):
            shape = ShapeSpec.parse(shape)
        if isinstance(shape, ShapeSpec):
            pipeline = build(shape, self._seed, self._limits, self.drops, read)
        else:
            pipeline = Pipeline(shape or (), self.drops)
        pipeline.watch(self._dropped)
        return pipeline

    def _make_alarm(self) -> Alarm:
        return Alarm(self._clock, self.pipeline.next_timeout, self._depart, timer=False)

    def _depart(self, now: float) -> None:
        arrive = self.target.arrive
        observed = bool(self._watchers or self.observers)
        for packet in self.pipeline.pop(now):
            if observed:
                self._tell(now, What.ARRIVED, packet)
            arrive(packet, now)

    def _dropped(self, packet: Packet, reason: DropReason) -> None:
        if self._watchers or self.observers:
            self._tell(self._clock.now, What.DROPPED, packet, reason)

    def _tell(self, now: float, what: What, packet: Packet, reason: DropReason | None = None) -> None:
        for observer in (*self._watchers, *self.observers):
            observer(now, what, self, packet, reason)

    def __repr__(self) -> str:
        return f"<Direction {self.name}, mtu {self.mtu}>"


class Link:
    """Two stations joined. Made by `Network.link`.

    Attributes:
        forth: from the first station to the second.
        back: from the second to the first.
    """

    __slots__ = ("back", "forth")

    def __init__(self, forth: Direction, back: Direction) -> None:
        self.forth = forth
        self.back = back

    def cut(self) -> None:
        """Lose what is under way, and everything from now on, in both directions."""
        for direction in (self.forth, self.back):
            direction.shape("loss 100%")

    def shape(self, forth: Shape, back: Shape) -> None:
        """Treat packets in these ways from now on."""
        self.forth.shape(forth)
        self.back.shape(back)
