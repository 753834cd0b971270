"""Routes and forwards of a gateway: destinations that are services elsewhere, and listeners that lead inside.

Both may change while traffic flows. What is under way stays, but for what a forward leads to on the host.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import trio

from tunstack.nat.nat import AnyForward
from tunstack.nat.routes import Route
from tunstack.vsock.addresses import Address, TcpAddress, UdpAddress
from tunstack.vsock.datagrams import SocketOpener, accept_datagrams
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
        self._forwards: dict[ForwardSpec, tuple[AnyForward, contextlib.ExitStack]] = {}
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
        gateway.nat.add_route(route)
        self._routes[spec] = route
        if route.is_end and is_inside and address not in own:
            own.add(address)
            self._added.add(address)
            gateway.nat.policy.forget()

    def remove_route(self, spec: RouteSpec) -> None:
        """KeyError: there is none."""
        gateway, address = self._gateway, spec.match.address
        gateway.nat.remove_route(self._routes.pop(spec))
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
            guest, target = self._guest(spec.target), spec.target
            forward: AnyForward
            if isinstance(target, UdpAddress):
                forward = nat.forward_datagrams(sock, accept_datagrams, guest or SocketOpener(target))
            elif guest is not None:
                forward = nat.forward(sock, *guest)
            else:
                forward = nat.forward_to_host(sock, AddressDialer(poller, target))
            self._forwards[spec] = forward, stack.pop_all()

    def remove_forward(self, spec: ForwardSpec) -> None:
        """KeyError: there is none."""
        forward, stack = self._forwards.pop(spec)
        self._gateway.nat.stop_forward(forward)
        stack.close()

    def change(
        self,
        routes_before: Sequence[RouteSpec],
        routes: Sequence[RouteSpec],
        forwards_before: Sequence[ForwardSpec],
        forwards: Sequence[ForwardSpec],
    ) -> list[str]:
        """Have these in the place of those that were ordered before; sentences about those that cannot be.

        Routes that stay in their order are not touched, nor are those that somebody else has added, behind
        which the others are put.
        """
        complaints = []
        pairs = zip(routes_before, routes, strict=False)
        stay = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        for route in routes_before[stay:]:
            with contextlib.suppress(KeyError):  # somebody has removed it
                self.remove_route(route)
        for route in routes[stay:]:
            try:
                self.add_route(route)
            except ValueError as error:
                complaints.append(str(error))
        for forward in forwards_before:
            if forward not in forwards:
                with contextlib.suppress(KeyError):
                    self.remove_forward(forward)
        for forward in forwards:
            if forward not in forwards_before:
                try:
                    self.add_forward(forward)
                except ValueError as error:
                    complaints.append(str(error))
                except OSError as error:
                    complaints.append(error.strerror or str(error))
        return complaints

    def close(self) -> None:
        """Listen no longer."""
        for spec in self.forwards:
            self.remove_forward(spec)

    def _is_leased(self, address: bytes) -> bool:
        leases = self._gateway.switch.guard.leases
        return leases is not None and leases.may_use(_NOBODY, address, trio.current_time()) is False

    def _guest(self, target: Address | UdpAddress) -> tuple[bytes, int] | None:
        """Address and port of `target` if it is within the virtual network."""
        if not isinstance(target, (TcpAddress, UdpAddress)):
            return None
        family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
        address = socket.inet_pton(family, target.host)
        return (address, target.port) if self._gateway.plan.contains(address) else None
