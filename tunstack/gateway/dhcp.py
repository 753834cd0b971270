"""The DHCP service of a gateway: what its plan has to give, to whom, and where that is remembered."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from tunstack.gateway.dns import host_resolvers
from tunstack.gateway.plan import AddressPlan, PlanError
from tunstack.ip.addresses import BROADCAST_V4, Prefix, format_address, parse_address
from tunstack.ip.header import UDP
from tunstack.link.ethernet import format_mac, is_station, parse_mac

if TYPE_CHECKING:
    from tunstack.gateway.gateway import Gateway

log = logging.getLogger(__name__)


class DhcpError(ValueError):
    """Leases cannot be what the settings or their file say; the message is one sentence."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DhcpSettings:
    """What a gateway is to do as a DHCP server.

    Attributes:
        static: addresses of particular machines, by MAC.
        leases: the file in which leases survive the gateway; None: they do not.
        lease_time: seconds, for clients that do not say; None: the usual.
        search: domains that guests complete names with; None: those that the host has.
    """

    static: Mapping[bytes, bytes] = dataclasses.field(default_factory=dict)
    leases: str | os.PathLike[str] | None = None
    lease_time: float | None = None
    search: tuple[str, ...] | None = None


def parse_static(text: str, plan: AddressPlan) -> tuple[bytes, bytes]:
    """A MAC and its address, from "MAC=IP".

    Raises:
        PlanError: the text does not have this form, or no guest of the plan can have the address.
    """
    mac_text, _, address_text = text.partition("=")
    try:
        mac, address = parse_mac(mac_text), parse_address(address_text)
    except ValueError:
        form = "MAC=IP, as in 5a:94:ef:00:00:64=192.168.127.7"
        raise PlanError(f"--static-lease: '{text}' is not {form}") from None
    if not is_station(mac):
        raise PlanError(f"--static-lease: {mac_text} is not the MAC of one machine")
    if len(address) != 4 or not plan.contains(address):
        raise PlanError(f"--static-lease: {address_text} is not in {plan.subnet_text}")
    taken = {plan.network, plan.gateway, plan.dns, plan.host, Prefix(plan.network, plan.prefix).broadcast}
    if address in taken:
        raise PlanError(f"--static-lease: {address_text} is not for guests")
    return mac, address


def start_dhcp(gateway: Gateway, nursery: trio.Nursery, settings: DhcpSettings) -> None:
    """Serve DHCP as long as `nursery`. The first address is the plan's guest, whom published ports lead to.

    Raises:
        DhcpError: two MACs have one static address, it is the gateway's, or the file of leases is none.
        OSError: the file cannot be read.
    """
    from tunstack.services.dhcp import LEASE_TIME, DhcpConfig, DhcpServer
    from tunstack.services.dhcp_leases import LeaseTable, Pool
    from tunstack.services.dhcp_names import LeaseNames
    from tunstack.services.dhcp_service import DhcpService, LeaseFileError, load
    from tunstack.services.dhcp_wire import SERVER_PORT
    from tunstack.services.local_names import ZONE, parse_name

    plan, stack = gateway.plan, gateway.stack
    network = Prefix(plan.network, plan.prefix)
    broadcast = network.broadcast
    assert broadcast is not None, "a plan has room for more than two hosts"
    own = frozenset(address for address in (*stack.own_addresses, plan.host) if address and len(address) == 4)
    for address in own.intersection(settings.static.values()):
        raise DhcpError(f"the static address {format_address(address)} is the gateway's own")
    try:
        table = LeaseTable(Pool(plan.guest, network.address(-2), own), settings.static, stack.limits)
    except ValueError as error:
        raise DhcpError(str(error)) from None
    table.port_of = gateway.switch.port_of
    table.is_used = gateway.switch.guard.is_in_use
    gateway.switch.guard.leases = table
    gateway.guest_names = LeaseNames(table, parse_name(ZONE), trio.current_time)
    config = DhcpConfig(
        server=plan.gateway,
        network=network,
        router=plan.gateway,
        dns=(plan.dns,),
        mtu=plan.mtu,
        search=settings.search or (),
        lease_time=settings.lease_time or LEASE_TIME,
    )
    resolvers = host_resolvers(plan.resolvers)
    search = None if settings.search is not None else lambda now: resolvers.current(now).search
    service = DhcpService(DhcpServer(config, table, stack.drops), stack, search)
    for mac, address in settings.static.items():
        log.info("DHCP: %s is for %s", format_address(address), format_mac(mac))
    if settings.leases is not None:
        try:
            known = load(table, settings.leases)
        except LeaseFileError as error:
            raise DhcpError(str(error)) from None
        log.info("DHCP: %d leases are known from %s", known, settings.leases)
        nursery.start_soon(service.keep, settings.leases)
    for address in (BROADCAST_V4, broadcast, plan.gateway):
        gateway.services[UDP, address, SERVER_PORT] = service
