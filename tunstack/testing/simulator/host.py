"""A host: a stack of tunstack, and the applications on it, which own its connections."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tunstack import native
from tunstack.errors import LocalError
from tunstack.ip.header import TCP
from tunstack.nat.context import Services
from tunstack.packet import Packet
from tunstack.stack import Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.host import ConnectionOwner
from tunstack.tcp.listener import TcpRequest
from tunstack.testing.services import ServiceHandler
from tunstack.testing.simulator.clock import Clock
from tunstack.testing.simulator.station import Station

EPHEMERAL = range(49152, 65536)
"""RFC 6335 6."""


class Listener:
    """Accepts every connection to a port, and gives each to an application."""

    def __init__(self, stack: Stack, serve: Callable[[Connection], ConnectionOwner | None]) -> None:
        self._stack = stack
        self._serve = serve
        self.accepted: list[Connection] = []

    def tcp_request(self, request: TcpRequest, now: float) -> None:
        """A SYN has come."""
        connection = self._stack.accept(request, now)
        self.accepted.append(connection)
        connection.owner = self._serve(connection)


class Host(Station):
    """A station whose node is a `Stack`. Made by `Network.host`.

    Attributes:
        stack: the protocol core. Whoever uses it between two steps of the clock calls `touch`.
        services: who answers TCP and UDP, by (protocol, own address, port); `Listener` by `listen`.
        errors: the ICMP errors about datagrams that came, oldest first.
        handler: hands out the events of the stack.
    """

    def __init__(
        self,
        clock: Clock,
        name: str,
        stack: Stack,
        addresses: Sequence[bytes],
        rng: random.Random,
        *,
        coalesce: bool = False,
    ) -> None:
        """`coalesce`: segments that arrive at one instant are joined before the stack sees them (GRO)."""
        super().__init__(clock, name, stack, addresses=addresses, l2=stack.l2)
        self.stack = stack
        self.services = Services()
        self.handler = ServiceHandler(stack, self.services)
        self.errors = self.handler.errors
        self._coalesce = coalesce
        self._batch: list[Packet] = []
        self._port = rng.choice(EPHEMERAL)

    @property
    def address(self) -> bytes:
        """The first of its addresses."""
        return self.addresses[0]

    # use

    def listen(
        self, port: int, serve: Callable[[Connection], ConnectionOwner | None], address: bytes | None = None
    ) -> Listener:
        """Accept connections to `port`; `serve` makes the owner of each."""
        listener = Listener(self.stack, serve)
        for own in self.addresses if address is None else (address,):
            self.services[TCP, own, port] = listener
        return listener

    def connect(self, remote: Host | bytes, port: int, *, local_port: int = 0) -> Connection:
        """Open a connection; without `local_port` from the next one that is free.

        Raises:
            LocalError: no port is free, or as `Stack.connect`.
        """
        destination = remote if isinstance(remote, bytes) else remote.address_for(self)
        local = next(own for own in self.addresses if len(own) == len(destination))
        self.touch()
        now = self.clock.now
        if local_port:
            return self.stack.connect(local, local_port, destination, port, now)
        for _ in EPHEMERAL:
            self._port = self._port + 1 if self._port + 1 in EPHEMERAL else EPHEMERAL.start
            key = destination + local + port.to_bytes(2, "big") + self._port.to_bytes(2, "big")
            if key not in self.stack.connections:
                return self.stack.connect(local, self._port, destination, port, now)
        raise LocalError("no local port is free")

    def address_for(self, other: Host) -> bytes:
        """The first own address of a family that `other` has too."""
        families = {len(address) for address in other.addresses}
        return next(own for own in self.addresses if len(own) in families)

    # what the clock drives

    def arrive(self, packet: Packet, now: float) -> None:
        """See `Station`."""
        if self._coalesce:
            self._batch.append(packet)
        else:
            self.stack.receive(packet, now)
        self.clock.touch(self)

    def speak(self, now: float) -> None:
        """Hand out events and send, until there is neither."""
        stack = self.stack
        if self._batch:
            batch, self._batch = self._batch, []
            for packet in native.coalesce(batch, stack.l2) if len(batch) > 1 else batch:
                stack.receive(packet, now)
        handle = self.handler.handle
        while True:
            for event in stack.poll_events():
                handle(event, now)
            stack.settle()
            self.emit(stack.poll_transmit(now), now)
            if not stack.has_events:
                break
        self._alarm.arm()
