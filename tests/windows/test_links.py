"""Virtual machines at sockets where there is no epoll: a segment of several, over TCP, with real traffic."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator

import pytest
import trio

from tests.windows.test_gateway import POLLERS, echo, exchange, tcp_server, the_poller  # noqa: F401 - a fixture
from tunstack import Gateway, open_gateway
from tunstack.errors import DropReason
from tunstack.gateway.link_service import LinkServices
from tunstack.gateway.links import Link
from tunstack.gateway.plan import MACHINES, AddressPlan
from tunstack.ip.addresses import parse_address
from tunstack.link.devices.stream import StreamDevice
from tunstack.link.framings import QEMU
from tunstack.testing.guest import GuestHost, open_guest

PLAN = AddressPlan.from_subnet(layout=MACHINES)
HOST = "192.168.127.254"
"""Means the host's 127.0.0.1."""
pytestmark = pytest.mark.parametrize("poller", POLLERS)


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[Gateway, int, list[str]]]:
    """A gateway with a listener for machines; gives its port and what it tells."""
    told: list[str] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with (
        open_gateway(PLAN, host_loopback=parse_address(HOST)) as gateway,
        trio.open_nursery() as nursery,
    ):
        services = LinkServices(gateway, once=False, tell=told.append)
        nursery.start_soon(services.run, [Link.parse(f"qemu+tcp://127.0.0.1:{port}")])
        while not told:
            await trio.sleep(0.01)
        yield gateway, port, told
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def machine(port: int, number: int) -> AsyncIterator[GuestHost]:
    """The machine `number`, at the end of a connection."""
    plan = dataclasses.replace(
        PLAN,
        guest=PLAN.network[:3] + bytes([number]),
        guest6=PLAN.network6[:15] + bytes([number]),
        guest_mac=PLAN.guest_mac[:5] + bytes([number]),
    )
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    raw = socket.socket(fileno=stream.socket.detach())
    async with open_guest(plan) as guest:
        guest.attach_device(StreamDevice(raw, framing=QEMU, mtu=PLAN.mtu))
        yield guest


async def test_machines_reach_the_host_and_each_other() -> None:
    data = bytes(range(256)) * 2000
    with trio.fail_after(60):
        async with (
            tcp_server(echo) as served,
            listening() as (_, port, _),
            machine(port, 2) as first,
            machine(port, 3) as second,
        ):
            for guest in (first, second):
                assert await exchange(guest, served, data, HOST) == data
            listener = await second.open_tcp_listener(8000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, echo, [listener])
                assert await exchange(first, 8000, data, "192.168.127.3") == data
                nursery.cancel_scope.cancel()


async def test_a_machine_goes_and_the_next_one_comes() -> None:
    with trio.fail_after(60):
        async with tcp_server(echo) as served, listening() as (gateway, port, told):
            for _ in range(3):
                async with machine(port, 2) as guest:
                    assert await exchange(guest, served, b"x" * 5000, HOST) == b"x" * 5000
                while "has gone" not in told[-1]:
                    await trio.sleep(0.01)
            assert sum("is connected" in line for line in told) == 3
            assert gateway.engine.device is not None


async def test_who_does_not_read_is_nobody_elses_concern() -> None:
    frame = b"\xff" * 6 + b"\x5a\x94\xef\xe4\x0c\x09" + b"\x88\xb5" + bytes(1400)
    flood = (len(frame).to_bytes(4, "big") + frame) * 500
    with trio.fail_after(120):
        async with tcp_server(echo) as served, listening() as (gateway, port, _), machine(port, 2) as guest:
            with socket.create_connection(("127.0.0.1", port)):  # and reads nothing
                async with (
                    await trio.open_tcp_stream("127.0.0.1", port) as noisy,
                    trio.open_nursery() as nursery,
                ):

                    async def listen() -> None:
                        while await noisy.receive_some():
                            pass

                    nursery.start_soon(listen)
                    drops = gateway.stack.drops
                    while not drops[DropReason.PORT_QUEUE_FULL]:
                        await noisy.send_all(flood)
                    assert await exchange(guest, served, bytes(200_000), HOST) == bytes(200_000)
                    nursery.cancel_scope.cancel()
