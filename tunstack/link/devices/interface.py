"""How an adapter becomes an interface of Windows: addresses, MTU, metric, routes and resolvers.

Theory of operation. An adapter that has just been made may not have its protocols yet, so what is not found
is tried again for some seconds; everything may be done twice, so all of it is. IPv6 that never comes has been
switched off by the user, and is gone without; and so are resolvers where Windows is too old to be told.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import uuid
from collections.abc import Collection, Sequence

import trio

from tunstack.link.devices.iphlpapi import (
    IPV4,
    IPV6,
    LEAST_MTU6,
    NO_FUNCTION,
    NOT_FOUND,
    InterfaceError,
    Interfaces,
    family_of,
)

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for a protocol to come."""
PAUSE = 0.25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceSettings:
    """What an interface is to have.

    Attributes:
        addresses: its addresses, with the bits of their prefixes.
        routes: networks beyond those, as first address and bits, that it leads to.
        resolvers: addresses of the DNS servers that Windows asks by it.
        metric: of its routes; the lowest counts. None: Windows finds one itself.
    """

    addresses: Sequence[tuple[bytes, int]]
    routes: Sequence[tuple[bytes, int]] = ()
    resolvers: Sequence[bytes] = ()
    metric: int | None = None


async def set_up_interface(
    interfaces: Interfaces, luid: int, name: str, settings: InterfaceSettings, mtu: int
) -> None:
    """Give the interface `luid`, which users know as `name`, what `settings` say.

    Raises:
        InterfaceError: no administrator, an address that cannot be, …; one sentence says what to do.
    """
    for family in (IPV4, IPV6):
        if not any(family_of(address) == family for address, _ in settings.addresses):
            continue
        if family == IPV6 and mtu < LEAST_MTU6:
            continue
        try:
            await _insist(interfaces, luid, settings, mtu, family)
        except InterfaceError as error:
            if error.code != NOT_FOUND or family == IPV4:
                raise
            log.warning("'%s' has no IPv6: it is switched off on this machine", name)
            continue
        servers = [str(ipaddress.ip_address(a)) for a in settings.resolvers if family_of(a) == family]
        if servers:
            await _set_resolvers(interfaces, luid, name, family, servers)


async def _insist(
    interfaces: Interfaces, luid: int, settings: InterfaceSettings, mtu: int, family: int
) -> None:
    """Set one family up, as soon as it is there."""
    deadline = trio.current_time() + PATIENCE
    while True:
        try:
            return await trio.to_thread.run_sync(_set_up, interfaces, luid, settings, mtu, family)
        except InterfaceError as error:
            if error.code != NOT_FOUND or trio.current_time() >= deadline:
                raise
        await trio.sleep(PAUSE)


def _set_up(interfaces: Interfaces, luid: int, settings: InterfaceSettings, mtu: int, family: int) -> None:
    interfaces.set_up(luid, family, mtu, settings.metric)
    for address, length in settings.addresses:
        if family_of(address) == family:
            interfaces.add_address(luid, address, length)
    for network, length in settings.routes:
        if family_of(network) == family:
            interfaces.add_route(luid, network, length)


async def _set_resolvers(
    interfaces: Interfaces, luid: int, name: str, family: int, servers: Sequence[str]
) -> None:
    try:
        await trio.to_thread.run_sync(interfaces.set_resolvers, luid, family, servers)
    except InterfaceError as error:
        if error.code != NO_FUNCTION:
            raise
        words = 'netsh interface %s set dnsservers name="%s" static %s register=none validate=no'
        by_hand = words % ("ipv4" if family == IPV4 else "ipv6", name, servers[0])
        log.warning("this Windows does not let a program set resolvers; do it by hand: %s", by_hand)


def is_foreign(interfaces: Interfaces, name: str, own: Collection[uuid.UUID]) -> bool:
    """Whether an interface of that name is there, and is none of those that are `own`."""
    luid = interfaces.luid_of(name)
    return luid is not None and interfaces.guid_of(luid) not in own
