"""Routes and forwards of a gateway: destinations that are services elsewhere, and listeners that lead inside.

Both may change while traffic flows. What is under way stays, but for what a forward leads to on the host.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING

import trio

from tunstack.nat.forward import TcpForward
from tunstack.nat.relay import HostForward
from tunstack.nat.routes import Route
from tunstack.vsock.addresses import Address, TcpAddress
from tunstack.vsock.dialers import AddressDialer
from tunstack.vsock.routes import ForwardSpec, RouteSpec
from tunstack.vsock.sockets import listening

if TYPE_CHECKING:
    from tunstack.gateway.gateway import Gateway

_NOBODY = bytes(6)
"""A MAC that no machine has."""


class Bridge:
    """What leads out of and into the virtual network beside the NAT's own ways. Made by `Gateway.bridge`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._routes: dict[RouteSpec, Route] = {}
        self._forwards: dict[ForwardSpec, tuple[TcpForward | HostForward, contextlib.ExitStack]] = {}
        self._added: set[bytes] = set()
        """Addresses that are the gateway's because of a route."""

    @property
    def routes(self) -> list[RouteSpec]:
        """In the order in which they are looked at."""
        return list(self._routes)

    @property
    def forwards(self) -> list[ForwardSpec]:
        """Those that are listened at."""
        return list(self._forwards)

    def add_route(self, spec: RouteSpec) -> None:
        """From now on reach destinations in that way, unless an earlier route covers them.

        A single address within the network that leads to a service becomes one of the gateway's.

        Raises:
            ValueError: it is there already, there are too many, or the address is a guest's.
        """
        gateway, address = self._gateway, spec.match.address
        if spec in self._routes:
            raise ValueError(f"there is the route {spec} already")
        own = gateway.stack.own_addresses
        is_inside = spec.match.is_single and gateway.plan.contains(address)
        if is_inside and (address in gateway.plan.guests or self._is_leased(address)):
            raise ValueError(f"{ipaddress.ip_address(address)} is a guest's address")
        route = spec.route(gateway.engine.poller)
        gateway.nat.tcp.routes.add(route)
        self._routes[spec] = route
        if route.is_end and is_inside and address not in own:
            own.add(address)
            self._added.add(address)
            gateway.nat.policy.forget()

    def remove_route(self, spec: RouteSpec) -> None:
        """KeyError: there is none."""
        gateway, address = self._gateway, spec.match.address
        gateway.nat.tcp.routes.remove(self._routes.pop(spec))
        if address in self._added and not any(one.match.address == address for one in self._routes):
            self._added.discard(address)
            gateway.stack.own_addresses.discard(address)
            gateway.nat.policy.forget()

    def add_forward(self, spec: ForwardSpec) -> None:
        """From now on lead who connects to the listener to the target.

        Raises:
            ValueError: it is there already.
            OSError: it cannot be listened there, with the address.
        """
        if spec in self._forwards:
            raise ValueError(f"there is the forward {spec} already")
        nat, poller = self._gateway.nat, self._gateway.engine.poller
        with contextlib.ExitStack() as stack:
            try:
                sock = stack.enter_context(listening(spec.listener))
            except OSError as error:
                raise OSError(error.errno, f"cannot listen at {spec.listener}: {error.strerror}") from None
            guest = self._guest(spec.target)
            forward: TcpForward | HostForward
            if guest is not None:
                forward = nat.forward(sock, *guest)
            else:
                forward = nat.forward_to_host(sock, AddressDialer(poller, spec.target))
            self._forwards[spec] = forward, stack.pop_all()

    def remove_forward(self, spec: ForwardSpec) -> None:
        """KeyError: there is none."""
        forward, stack = self._forwards.pop(spec)
        self._gateway.nat.stop_forward(forward)
        stack.close()

    def close(self) -> None:
        """Listen no longer."""
        for spec in self.forwards:
            self.remove_forward(spec)

    def _is_leased(self, address: bytes) -> bool:
        leases = self._gateway.switch.guard.leases
        return leases is not None and leases.may_use(_NOBODY, address, trio.current_time()) is False

    def _guest(self, target: Address) -> tuple[bytes, int] | None:
        """Address and port of `target` if it is within the virtual network."""
        if not isinstance(target, TcpAddress):
            return None
        family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
        address = socket.inet_pton(family, target.host)
        return (address, target.port) if self._gateway.plan.contains(address) else None
