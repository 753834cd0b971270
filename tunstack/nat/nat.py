"""The NAT of one gateway: it turns the stack's events into traffic of host sockets, and back.

Everything that a guest asks of an own address with a service goes to that service; the rest
is decided on by `Policy` and carried by `TcpNat`, `UdpNat` and `EchoNat`. Published ports are listeners of
the host. All timers are in one heap, all descriptors of flows are counted by one budget.
"""

from __future__ import annotations

import socket
from typing import cast

from tunstack.errors import DropCounters, DropReason
from tunstack.ip.header import TCP, UDP
from tunstack.ip.icmp import EchoRequest, IcmpError
from tunstack.ip.udp import UdpDatagram
from tunstack.limits import Limits
from tunstack.nat import descriptors, echo, portable
from tunstack.nat.channel import Accept, Opener
from tunstack.nat.config import NatConfig, Publish
from tunstack.nat.context import Carrier, Context, Counters, ServiceKey, Services, TcpService, UdpService
from tunstack.nat.dialer import Dialer, DirectDialer
from tunstack.nat.forward import TcpForward, open_listener
from tunstack.nat.forward_datagrams import DatagramForward, DatagramTarget
from tunstack.nat.forward_udp import UdpForward
from tunstack.nat.host_addresses import HostAddresses
from tunstack.nat.policy import Policy
from tunstack.nat.poller import Poller
from tunstack.nat.relay import HostForward
from tunstack.nat.routes import Route
from tunstack.nat.tcp import TcpNat
from tunstack.nat.udp import UdpNat
from tunstack.stack import Event, Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest
from tunstack.timers import TimerHeap

AnyForward = TcpForward | UdpForward | HostForward | DatagramForward
"""A listener of the host that leads somewhere."""


class Nat:
    """Flows between a stack and the host.

    Raises `OSError`, with a sentence, when a published port cannot be listened on.

    Attributes:
        services: who answers on own addresses, by (protocol, address, port).
        limits: as given, less what the process has no descriptors for.
        notices: lines for the start log.
        counters: what was done.
        tcp, udp, echo, forwards: the parts.
    """

    def __init__(
        self,
        stack: Stack,
        poller: Poller,
        config: NatConfig,
        limits: Limits,
        drops: DropCounters,
        *,
        dialer: Dialer | None = None,
        echo_mode: str | None = None,
    ) -> None:
        self.limits = descriptors.fit(limits, descriptors.raise_descriptor_limit())
        self.services = Services()
        self.notices: list[str] = list(portable.NOTICES)
        self.counters = Counters()
        self._config = config
        self._host_addresses = HostAddresses(poller)
        self.policy = Policy(config, stack.own_addresses, self._host_addresses)
        self._context = Context(
            stack=stack,
            poller=poller,
            policy=self.policy,
            limits=self.limits,
            drops=drops,
            timers=TimerHeap(),
            budget=descriptors.Budget(self.limits.flows),
            counters=self.counters,
        )
        self.tcp = TcpNat(self._context, dialer or DirectDialer(poller))
        self.udp = UdpNat(self._context, services=self.services, endpoint_filtering=config.endpoint_filtering)
        self.echo = echo.EchoNat(self._context, echo_mode)
        self.policy.on_forget = self._recall
        self.services.on_add = self._service_added
        self.forwards: list[AnyForward] = []
        if self.echo.mode == "none":
            self.notices.append(echo.NOTICE)
        try:
            for publish in config.publish:
                self.publish(publish)
        except OSError:
            self.close()
            raise

    @property
    def echo_mode(self) -> str:
        """How pings leave: "ping", "raw" or "none"."""
        return self.echo.mode

    @property
    def descriptors_used(self) -> int:
        """Descriptors that flows hold now."""
        return self._context.budget.used

    def publish(self, publish: Publish) -> TcpForward | UdpForward:
        """Open a published port. Raises `OSError` if it cannot be listened on."""
        gateway = next(a for a in self._config.gateway if len(a) == len(publish.guest))
        sock = open_listener(publish)
        if publish.protocol == TCP:
            return self.forward(sock, publish.guest, publish.guest_port)
        forward = UdpForward(self._context, self.services, publish, gateway, sock)
        self.forwards.append(forward)
        return forward

    def forward(self, sock: socket.socket, guest: bytes, guest_port: int) -> TcpForward:
        """Lead the clients of `sock`, a listener that belongs to the NAT from now on, to a guest."""
        gateway = next(a for a in self._config.gateway if len(a) == len(guest))
        forward = TcpForward(self._context, self.tcp.flows, guest, guest_port, gateway, sock)
        self.forwards.append(forward)
        return forward

    def forward_to_host(self, sock: socket.socket, dialer: Dialer) -> HostForward:
        """Lead the clients of `sock`, which belongs to the NAT from now on, where `dialer` leads."""
        forward = HostForward(self._context, sock, dialer)
        self.forwards.append(forward)
        return forward

    def forward_datagrams(
        self, sock: socket.socket, accept: Accept, target: tuple[bytes, int] | Opener
    ) -> DatagramForward:
        """Lead datagrams on the streams that `sock` accepts, which belongs to the NAT from now on.

        `accept` makes channels of them; `target`: address and port of a guest, or who opens the way to it.
        """
        if isinstance(target, tuple):
            guest, port = target
            gateway = next(a for a in self._config.gateway if len(a) == len(guest))
            where = DatagramTarget(guest=guest, port=port, gateway=gateway)
        else:
            where = DatagramTarget(opener=target)
        forward = DatagramForward(self._context, self.services, sock, accept, where)
        self.forwards.append(forward)
        return forward

    def add_route(self, route: Route) -> None:
        """Follow `route` from now on, unless an earlier one covers the destination. ValueError: too many."""
        if route.match.protocol == UDP:
            self.udp.add_route(route)
        else:
            self.tcp.routes.add(route)
            self._recall_connections()

    def remove_route(self, route: Route) -> None:
        """Follow it no longer; TCP flows that were dialled stay, those of UDP end."""
        if route.match.protocol == UDP:
            self.udp.remove_route(route)
        else:
            self.tcp.routes.remove(route)
            self._recall_connections()

    def stop_forward(self, forward: AnyForward) -> None:
        """Close its listener; TCP flows to guests go on."""
        self.forwards.remove(forward)
        forward.close()

    def set_carrier(self, carrier: Carrier | None) -> None:
        """From now on `carrier` is asked to carry established flows."""
        self._context.carrier = carrier
        if carrier is not None:
            carrier.serve(self.tcp)

    def _recall_connections(self) -> None:
        if self._context.carrier is not None:
            self._context.carrier.recall()

    def _recall(self) -> None:
        self._recall_connections()
        if self._context.carrier is not None:
            self._context.carrier.datagrams.recall()

    def _service_added(self, key: ServiceKey) -> None:
        if key[0] == TCP:
            self._recall_connections()
        elif self._context.carrier is not None:
            self._context.carrier.datagrams.recall(key[1:])

    def handle(self, event: Event, now: float) -> None:
        """Act on an event of the stack."""
        if isinstance(event, Connection):
            owner = event.owner
            if owner is not None:
                owner.on_progress(now)
        elif isinstance(event, UdpDatagram):
            service = self.services.get((UDP, event.dst, event.dst_port))
            if service is None:
                self.udp.datagram(event, now)
            else:
                cast(UdpService, service).datagram(event, now)
        elif isinstance(event, TcpRequest):
            service = self.services.get((TCP, event.dst, event.dst_port))
            if service is None or event.cancelled or event.answered:
                self.tcp.request(event, now)
            else:
                cast(TcpService, service).tcp_request(event, now)
        elif isinstance(event, EchoRequest):
            self.echo.request(event, now)
        elif isinstance(event, IcmpError):
            # RFC 4787 REQ-12: an error does not end a mapping, and a socket has no way to pass it on.
            self._context.drops.add(DropReason.ICMP_IGNORED)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called (seconds), or None."""
        return self._context.timers.next_deadline()

    def handle_timeout(self, now: float) -> None:
        """Run the timers that are due."""
        for key in self._context.timers.expired(now):
            key.on_timeout(now)

    def close(self) -> None:
        """Reset all flows and close every descriptor."""
        for forward in self.forwards:
            forward.close()
        self.forwards.clear()
        self.tcp.close()
        self.udp.close()
        self.echo.close()
        for closing in list(self._context.lingering):
            closing.close()
        self._host_addresses.close()
