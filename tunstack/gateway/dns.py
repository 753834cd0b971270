"""The DNS service of a gateway: which names are its own, who is asked for the others, and the sockets."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING

import trio

from tunstack.gateway.late_dns import LateDns
from tunstack.ip.addresses import format_address
from tunstack.ip.header import UDP
from tunstack.ip.udp import UdpDatagram
from tunstack.services.local_names import ZONE, Labels, LocalName, LocalNames, Zone, parse_name
from tunstack.services.resolv_conf import FixedResolvers, Nameserver, ResolvConf, Upstreams

if TYPE_CHECKING:
    from tunstack.gateway.gateway import Gateway
    from tunstack.services.dns import DnsService
    from tunstack.services.dns_messages import Query

PORT = 53
Servers = Iterable[tuple[bytes, int]]
"""Addresses and ports of resolvers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """What a gateway answers, and whom it asks.

    Attributes:
        resolvers: in the place of those that this system asks itself, if there are any.
        hosts: names that are answered here.
        zones: zones that are.
        routes: resolvers for names within a zone, by the zone's name.
    """

    resolvers: tuple[tuple[bytes, int], ...] = ()
    hosts: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    zones: tuple[Zone, ...] = ()
    routes: Mapping[str, tuple[tuple[bytes, int], ...]] = dataclasses.field(default_factory=dict)


class GatewayDns:
    """The service of one gateway, whose settings may change.

    Raises:
        ValueError: a name, zone or expression cannot be, or there are too many resolvers.
    """

    def __init__(self, gateway: Gateway, settings: DnsSettings, host_loopback: bytes | None) -> None:
        self._gateway = gateway
        self._own = {
            f"gateway.{ZONE}": list(gateway.plan.gateways),
            f"host.{ZONE}": [] if host_loopback is None else [host_loopback],
        }
        self._names, self._routes = self._make(settings)
        self._upstreams = self._chosen(settings)
        self._service: DnsService | None = None

    def change(self, settings: DnsSettings) -> None:
        """Answer and ask by `settings` from now on; nothing changes if they cannot be (ValueError)."""
        names, routes = self._make(settings)
        upstreams = self._chosen(settings)
        self._names, self._routes, self._upstreams = names, routes, upstreams
        if self._service is not None:
            self._service.names = names
            self._service.ask(upstreams, routes)

    async def start(self, nursery: trio.Nursery) -> None:
        """Serve as long as `nursery`."""
        late = LateDns(self.get)
        for own in self._gateway.plan.resolvers:
            self._gateway.services[UDP, own, PORT] = DnsDatagrams(self, self._gateway, own, nursery)
            listener = await self._gateway.open_tcp_listener(PORT, format_address(own))
            nursery.start_soon(late.serve_tcp, listener)

    def _make(self, settings: DnsSettings) -> tuple[LocalNames, dict[Labels, FixedResolvers]]:
        hosts = {name: list(addresses) for name, addresses in self._own.items()}
        for name, address in settings.hosts.items():
            hosts.setdefault(name, []).append(address)
        plan = self._gateway.plan
        zones: list[str | Zone] = [ZONE, *settings.zones]
        if plan.prefix % 8 == 0:  # RFC 6303: what is private here is nobody else's to tell
            octets = list(plan.network[: plan.prefix // 8])
            zones.append(".".join(map(str, octets[::-1])) + ".in-addr.arpa")
        names = LocalNames(hosts, zones)
        names.others = self._find_guest
        routes = {parse_name(zone): _fixed(servers) for zone, servers in settings.routes.items()}
        return names, routes

    def _chosen(self, settings: DnsSettings) -> Upstreams:
        if settings.resolvers:
            return _fixed(settings.resolvers)
        return host_resolvers(self._gateway.plan.resolvers)

    def _find_guest(self, name: Labels) -> LocalName | None:
        guests = self._gateway.guest_names
        return None if guests is None else guests.find(name)

    def get(self) -> DnsService:
        """The service, made when it is asked for the first time."""
        if self._service is not None:
            return self._service
        from tunstack.services.dns import DnsService

        stack = self._gateway.stack
        self._service = DnsService(
            self._names, self._upstreams, stack.limits, stack.drops, routes=self._routes
        )
        return self._service


class DnsDatagrams:
    """Answers what comes to port 53 of an own address, what it can at once; a service of the NAT."""

    def __init__(self, dns: GatewayDns, gateway: Gateway, own: bytes, nursery: trio.Nursery) -> None:
        self._dns = dns
        self._gateway = gateway
        self._own = own
        self._nursery = nursery

    def datagram(self, datagram: UdpDatagram, now: float) -> None:
        """One from the guest, or a train of them."""
        if not datagram.src_port:
            return  # no answer is wanted (RFC 768)
        service = self._dns.get()
        payload = datagram.payload
        size = datagram.gso_size or len(payload) or 1
        for start in range(0, len(payload) or 1, size):
            step = service.begin(bytes(payload[start : start + size]), datagram.src)
            if isinstance(step, bytes):
                self._send(step, datagram.src, datagram.src_port, now)
            elif step is not None:
                self._nursery.start_soon(self._finish, service, step, datagram.src, datagram.src_port)

    async def _finish(self, service: DnsService, query: Query, address: bytes, port: int) -> None:
        self._send(await service.finish(query, address), address, port, trio.current_time())
        self._gateway.engine.wake()

    def _send(self, answer: bytes, address: bytes, port: int, now: float) -> None:
        self._gateway.stack.send_udp(self._own, PORT, address, port, answer, now)


def host_resolvers(own: Container[bytes]) -> Upstreams:
    """Those that this system asks itself; `own` are the gateway's addresses, which may be among them."""
    if sys.platform == "win32":
        from tunstack.services.windows_resolvers import WindowsResolvers

        return WindowsResolvers(own)
    return ResolvConf()


def _fixed(servers: Servers) -> FixedResolvers:
    return FixedResolvers([Nameserver(address, port=port) for address, port in servers])
