"""A guest made of tunstack: a second stack across a link, for tests and demonstrations without a namespace.

    async with open_network() as (gateway, guest):
        stream = await guest.open_tcp_stream("198.51.100.7", 80)

Over memory nothing but the two stacks takes part, so that `trio.testing.MockClock` may jump. A `GuestHost`
has the guest's addresses of the plan and reaches everything outside its network through the gateway; it
refuses what nobody here listens for.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

from tunstack.gateway.gateway import Gateway, open_gateway
from tunstack.gateway.host import VirtualHost
from tunstack.gateway.plan import DEFAULT_PLAN, AddressPlan
from tunstack.ip.addresses import Prefix, is_link_local
from tunstack.limits import DEFAULT_LIMITS, MAX_FRAME, Limits
from tunstack.link.devices.base import Device, Offloads
from tunstack.link.devices.memory import memory_pair
from tunstack.link.interface import EthernetLink
from tunstack.nat.context import Services
from tunstack.nat.poller import new_poller
from tunstack.stack import Stack
from tunstack.testing.services import ServiceHandler

OFFLOADS = Offloads(checksum=True, tso4=True, tso6=True, max_frame=MAX_FRAME)
"""What a TAP of Linux has; UDP trains are left out."""


class GuestHost(VirtualHost):
    """The guest's end of a virtual network. Made by `open_guest`.

    Attributes:
        errors: the ICMP errors about datagrams that came, oldest first.
    """

    def __init__(self, plan: AddressPlan, limits: Limits) -> None:
        self._plan = plan
        self._gateways = {len(gateway): gateway for gateway in plan.gateways}
        stack = Stack(
            mac=plan.guest_mac,
            mtu=plan.mtu,
            prefixes=[Prefix(network, length) for network, length in plan.networks],
            own_addresses=plan.guests,
            rng=random.SystemRandom(),
            limits=limits,
        )
        self._poller = new_poller()
        super().__init__(stack, self._poller, Services(), addresses=plan.guests, peers=plan.gateways)
        handler = ServiceHandler(stack, self.services)
        self.errors = handler.errors
        self.engine.handler = handler

    def attach_device(self, device: Device) -> None:
        """Use `device`, which belongs to the guest from now on. One at a time."""
        l2 = device.offloads.l2
        self.stack.set_link(l2=l2, afresh=True)
        if isinstance(self.stack.link, EthernetLink):
            self.stack.link.route = self._route
        self.engine.attach(device)

    def _route(self, destination: bytes) -> bytes:
        """The world outside the plan's network lies behind the gateway."""
        is_group = destination[0] >= (224 if len(destination) == 4 else 0xFF)
        if is_group or self._plan.contains(destination) or is_link_local(destination):
            return destination
        return self._gateways.get(len(destination), destination)

    def close(self) -> None:
        """Close every descriptor. The engine must have ended."""
        self.close_sockets()
        self.engine.detach()
        self._poller.close()


@contextlib.asynccontextmanager
async def open_guest(
    plan: AddressPlan = DEFAULT_PLAN, *, limits: Limits = DEFAULT_LIMITS
) -> AsyncIterator[GuestHost]:
    """The guest of a gateway with the same `plan`; it runs as long as the block."""
    guest = GuestHost(plan, limits)
    try:
        async with guest.engine.running():
            yield guest
    finally:
        guest.close()


def join(
    gateway: Gateway, guest: GuestHost, offloads: Offloads = OFFLOADS, *, scribble: bool = False
) -> None:
    """Put a link in memory between the two; `offloads` and `scribble` as in `memory_pair`."""
    near, far = memory_pair(offloads, scribble=scribble)
    gateway.attach_device(near)
    guest.attach_device(far)


@contextlib.asynccontextmanager
async def open_network(
    plan: AddressPlan = DEFAULT_PLAN,
    *,
    limits: Limits = DEFAULT_LIMITS,
    offloads: Offloads = OFFLOADS,
    scribble: bool = False,
    **options: Any,
) -> AsyncIterator[tuple[Gateway, GuestHost]]:
    """A gateway (`options` as for `open_gateway`) and its guest, joined over memory."""
    async with (
        open_gateway(plan, limits=limits, **options) as gateway,
        open_guest(plan, limits=limits) as guest,
    ):
        join(gateway, guest, offloads, scribble=scribble)
        yield gateway, guest
