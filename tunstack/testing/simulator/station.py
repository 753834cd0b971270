"""A place of the network: what can stand at the end of a link, and how the clock drives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tunstack.packet import Packet
from tunstack.testing.simulator.clock import Alarm, Clock
from tunstack.testing.simulator.link import Direction


class Node(Protocol):
    """Anything that takes part: packets and times in, packets and deadlines out, no clock of its own.

    A `tunstack.stack.Stack` is one; so is whatever else has these four methods.
    """

    def receive(self, packet: Packet, now: float) -> None:
        """Take one packet, which `packet.head` holds; the bytes are not to be changed."""
        ...

    def poll_transmit(self, now: float) -> Sequence[Packet]:
        """What it has to send, in order; called after it received something or a timer expired."""
        ...

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called (seconds), or None."""
        ...

    def handle_timeout(self, now: float) -> None:
        """A deadline has come."""
        ...


class Station:
    """Where a node is attached. Made by `Network.attach`; `Host` and `Router` are its kinds.

    Attributes:
        name: unique in its network.
        addresses: at which it is reached, 4 or 16 bytes each.
        l2: whether its packets begin with an Ethernet header.
        directions: what leads away from here, by the name of the neighbour there.
        most_links: how many it can have.
    """

    most_links = 1

    def __init__(
        self, clock: Clock, name: str, node: Node, *, addresses: Sequence[bytes] = (), l2: bool = False
    ) -> None:
        self.clock = clock
        self.name = name
        self.node = node
        self.addresses = tuple(addresses)
        self.l2 = l2
        self.touched = False
        self.directions: dict[str, Direction] = {}
        self._alarm = Alarm(clock, node.next_timeout, self._expire, timer=True)

    def attach(self, direction: Direction) -> None:
        """Take `direction`, which begins here.

        Raises:
            ValueError: there is no room for one more link, or one to the same neighbour.
        """
        if len(self.directions) >= self.most_links:
            raise ValueError(f"{self.name} has a link already; only routers have more than one")
        if direction.target.name in self.directions:
            raise ValueError(f"there is a link between {self.name} and {direction.target.name} already")
        self.directions[direction.target.name] = direction

    def arrive(self, packet: Packet, now: float) -> None:
        """`packet` has come over a link."""
        self.node.receive(packet, now)
        self.clock.touch(self)

    def touch(self) -> None:
        """The node was used from outside: ask it for packets at the next opportunity."""
        self.clock.touch(self)

    def speak(self, now: float) -> None:
        """Send what the node has to send."""
        self.emit(self.node.poll_transmit(now), now)
        self._alarm.arm()

    def emit(self, packets: Sequence[Packet], now: float) -> None:
        """Put `packets` on the one link that there is; without one they are lost."""
        if packets:
            for direction in self.directions.values():
                direction.send(packets, now)

    def _expire(self, now: float) -> None:
        self.node.handle_timeout(now)
        self.clock.touch(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
