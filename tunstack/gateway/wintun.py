"""A gateway on an adapter of Windows: what the adapter is given, and how both belong together."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
from collections.abc import AsyncIterator, Sequence

from tunstack.gateway.gateway import Gateway
from tunstack.gateway.plan import AddressPlan, PlanError
from tunstack.ip.addresses import format_address
from tunstack.link.devices.interface import InterfaceSettings as InterfaceSettings
from tunstack.link.devices.iphlpapi import FUNCTIONS, Interfaces, system_interfaces
from tunstack.link.devices.wintun import open_wintun
from tunstack.link.devices.wintun_api import Library, find_library, load


def parse_interface(
    plan: AddressPlan,
    *,
    addresses: Sequence[str] = (),
    routes: Sequence[str] = (),
    use_dns: bool = False,
    metric: int | None = None,
) -> InterfaceSettings:
    """The interface of an adapter in the network of `plan`; a family without an address has the guest's.

    `routes`: networks that Windows reaches by it. `use_dns`: Windows is to ask the gateway's DNS service.
    `metric`: of its routes; None: Windows finds one.

    Raises:
        PlanError: something is no address or network, or cannot be one of the adapter.
    """
    given = [_parse_address(text, plan) for text in addresses]
    lengths = {len(address) for address, _ in given}
    networks = zip(plan.guests, plan.networks, strict=True)
    own = [(guest, length) for guest, (_, length) in networks if len(guest) not in lengths]
    return InterfaceSettings(
        addresses=[*given, *own],
        routes=[_parse_network(text, plan) for text in routes],
        resolvers=plan.resolvers if use_dns else (),
        metric=metric,
    )


def with_guest(plan: AddressPlan, interface: InterfaceSettings) -> AddressPlan:
    """`plan`, in which the guest has the interface's first address of each family."""
    first = {len(address): address for address, _ in reversed(interface.addresses)}
    return dataclasses.replace(plan, guest=first.get(4, plan.guest), guest6=first.get(16, plan.guest6))


def missing_functions() -> list[str]:
    """What this system's library lacks to set up an interface; everything where it is not Windows."""
    interfaces = system_interfaces()
    return list(FUNCTIONS) if interfaces is None else interfaces.missing()


def describe_library() -> str:
    """Where wintun.dll is, and whether its driver is loaded. `WintunError`: there is none."""
    version = load().driver_version
    driver = "its driver is not loaded yet" if version is None else f"driver {version[0]}.{version[1]}"
    return f"{find_library()}, {driver}"


def has_wintun() -> bool:
    """Whether this is a machine that may have such adapters."""
    return system_interfaces() is not None


@contextlib.asynccontextmanager
async def attach_wintun(
    gateway: Gateway,
    name: str,
    interface: InterfaceSettings,
    *,
    library: Library | str | os.PathLike[str] | None = None,
    interfaces: Interfaces | None = None,
) -> AsyncIterator[None]:
    """Let `gateway` serve the adapter `name`, which is there as long as the block; see `open_wintun`.

    Raises:
        WintunError: there is no DLL, no right to make adapters, …; one sentence says what to do.
        InterfaceError: Windows does not take addresses or routes.
        RuntimeError: another device is attached.
    """
    mtu = gateway.plan.mtu
    async with open_wintun(
        name, mtu=mtu, interface=interface, library=library, interfaces=interfaces
    ) as device:
        gateway.attach_device(device)
        yield


def _parse_address(text: str, plan: AddressPlan) -> tuple[bytes, int]:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise PlanError(f"--address: '{text}' is not an IP address, nor one with a prefix length") from None
    address = interface.packed
    if len(address) == 16 and not plan.has_ipv6:
        raise PlanError("--address: with this MTU there is no IPv6")
    if not plan.contains(address):
        raise PlanError(f"--address: {interface.ip} is not in the gateway's network; see --subnet")
    if address in (*plan.gateways, *plan.resolvers):
        raise PlanError(f"--address: {interface.ip} is the gateway's own address")
    length = next(bits for network, bits in plan.networks if len(network) == len(address))
    if "/" in text and interface.network.prefixlen != length:
        raise PlanError(f"--address: the gateway's network has /{length}, not /{interface.network.prefixlen}")
    subnet = ipaddress.ip_interface((address, length)).network
    if interface.ip == subnet[0] or (interface.version == 4 and interface.ip == subnet[-1]):
        raise PlanError(f"--address: {interface.ip} is the first or last address of {subnet}")
    return address, length


def _parse_network(text: str, plan: AddressPlan) -> tuple[bytes, int]:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise PlanError(f"--route: '{text}' is no network ({error}), and leads to no TARGET") from None
    if network.version == 6 and not plan.has_ipv6:
        raise PlanError("--route: with this MTU there is no IPv6")
    return network.network_address.packed, network.prefixlen


def describe(name: str, interface: InterfaceSettings) -> str:
    """One line for people."""
    addresses = ", ".join(f"{format_address(address)}/{length}" for address, length in interface.addresses)
    return f"adapter '{name}': {addresses}"
