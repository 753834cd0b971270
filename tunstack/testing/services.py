"""What a host made of tunstack does with the events of its stack: services answer, the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from tunstack.ip.header import TCP, UDP
from tunstack.ip.icmp import IcmpError, IcmpErrorKind
from tunstack.ip.udp import UdpDatagram
from tunstack.nat.context import Services, TcpService, UdpService
from tunstack.stack import Event, Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest


class ServiceHandler:
    """Hands each event to whom it concerns. What the engine drives beside the stack of a host.

    Attributes:
        services: who answers, by (protocol, own address, port).
        errors: the ICMP errors about datagrams that came, oldest first.
        on_request: asked about a SYN that no service answers; by default it is reset.
        on_event: told of the progress of a connection without an owner.
    """

    def __init__(self, stack: Stack, services: Services) -> None:
        self._stack = stack
        self.services = services
        self.errors: list[IcmpError] = []
        self.on_request: Callable[[TcpRequest, float], None] = stack.reset
        self.on_event: Callable[[Connection], None] = lambda connection: None

    def handle(self, event: Event, now: float) -> None:
        """Nobody in charge means a refusal."""
        if isinstance(event, Connection):
            if event.owner is not None:
                event.owner.on_progress(now)
            else:
                self.on_event(event)
        elif isinstance(event, TcpRequest):
            service = self.services.get((TCP, event.dst, event.dst_port))
            if event.answered or event.cancelled:
                if not event.answered:
                    self._stack.discard(event)
            elif service is None:
                self.on_request(event, now)
            else:
                cast(TcpService, service).tcp_request(event, now)
        elif isinstance(event, UdpDatagram):
            service = self.services.get((UDP, event.dst, event.dst_port))
            if service is None:
                self._stack.send_icmp_error(event.quote, IcmpErrorKind.PORT_UNREACHABLE, now)
            else:
                cast(UdpService, service).datagram(event, now)
        elif isinstance(event, IcmpError):
            self.errors.append(event)

    def next_timeout(self) -> None:
        """None: services have no timers of their own."""

    def handle_timeout(self, now: float) -> None:
        """Nothing is ever due."""
