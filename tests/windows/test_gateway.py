"""A gateway on a fake Wintun adapter, and a stack in Windows' place: TCP, UDP, ICMP and DNS, start and end.

The pollers of both are those of the platform, and, where that is another one, the one of Windows too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from tests.windows import fake
from tests.windows.driver import DriverDevice
from tests.windows.fake import Fake
from tunstack import Gateway, open_gateway
from tunstack.gateway import gateway as gateway_module
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.ip.addresses import parse_address
from tunstack.link.devices.wintun import open_wintun
from tunstack.nat.poller import Poller, new_poller
from tunstack.nat.task_poller import TaskPoller
from tunstack.testing import guest as guest_module
from tunstack.testing.guest import GuestHost, open_guest

NAME = "tunstack test"
HOST = parse_address("10.0.2.9")
"""Means the host's 127.0.0.1."""
FLOWS = 500
POLLERS: list[Callable[[], Poller]] = [TaskPoller] if sys.platform == "win32" else [new_poller, TaskPoller]
pytestmark = pytest.mark.parametrize("poller", POLLERS)


@pytest.fixture(autouse=True)
def the_poller(poller: Callable[[], Poller], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gateway_module, guest_module):
        monkeypatch.setattr(module, "new_poller", poller)


@contextlib.asynccontextmanager
async def on_wintun(**options: object) -> AsyncIterator[tuple[Gateway, GuestHost]]:
    """A gateway, and what is at the other end of its adapter."""
    async with (
        open_gateway(DEFAULT_PLAN, host_loopback=HOST, **options) as gateway,  # type: ignore[arg-type]
        open_wintun(NAME, mtu=1500, library=fake.library()) as device,
        open_guest(DEFAULT_PLAN) as guest,
        trio.open_nursery() as nursery,
    ):
        gateway.attach_device(device)
        far = DriverDevice(Fake(NAME), 1500)
        nursery.start_soon(far.serve)
        guest.attach_device(far)
        yield gateway, guest
        nursery.cancel_scope.cancel()
    assert Fake(NAME).open == (0, 0)


@contextlib.asynccontextmanager
async def tcp_server(handler: Callable[[trio.SocketStream], object]) -> AsyncIterator[int]:
    """A server at the host's loopback; gives its port."""
    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, and the end of it."""
    async for data in stream:
        await stream.send_all(data)
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_eof()


async def exchange(guest: GuestHost, port: int, data: bytes, host: str = "10.0.2.9") -> bytes:
    """What comes back of `data`."""
    got = bytearray()
    async with await guest.open_tcp_stream(host, port) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        while part := await stream.receive_some():
            got += part
    return bytes(got)


async def test_tcp() -> None:
    data = bytes(range(256)) * 4000
    with trio.fail_after(60):
        async with on_wintun() as (gateway, guest), tcp_server(echo) as port:
            got = await exchange(guest, port, data)
            assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
            with trio.fail_after(30):
                while gateway.nat.tcp.flows:
                    await trio.sleep(0.01)


async def test_what_nobody_listens_for_is_refused() -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        port = gone.getsockname()[1]
    with trio.fail_after(60):
        async with on_wintun() as (_, guest):
            with pytest.raises(ConnectionRefusedError):
                await guest.open_tcp_stream("10.0.2.9", port)


async def test_many_flows_at_once() -> None:
    answers: list[bytes] = []
    with trio.fail_after(120):
        async with on_wintun() as (_, guest), tcp_server(echo) as port, trio.open_nursery() as nursery:

            async def ask(number: int) -> None:
                answers.append(await exchange(guest, port, b"question %d" % number))

            for number in range(FLOWS):
                nursery.start_soon(ask, number)
    assert sorted(answers) == sorted(b"question %d" % number for number in range(FLOWS))


@pytest.mark.skipif(sys.platform == "win32", reason="wine ends a connection in order, whatever is unread")
async def test_a_service_that_breaks_off_is_a_reset() -> None:
    async def abort(stream: trio.SocketStream) -> None:
        await trio.lowlevel.wait_readable(stream.socket)
        stream.socket.close()  # with something that it has not read

    with trio.fail_after(60):
        async with (
            on_wintun() as (_, guest),
            tcp_server(abort) as port,
            await guest.open_tcp_stream("10.0.2.9", port) as stream,
        ):
            await stream.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass


async def test_udp() -> None:
    server = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await server.bind(("127.0.0.1", 0))
    port = server.getsockname()[1]
    with trio.fail_after(60), server:
        async with on_wintun() as (gateway, guest):
            sock = await guest.open_udp_socket(5000)
            for number in range(20):
                await sock.send_to(b"question %d" % number, HOST, port)
                data, sender = await server.recvfrom(100)
                assert data == b"question %d" % number
                await server.sendto(b"answer to " + data, sender)
                assert await sock.receive_from() == (b"answer to " + data, (HOST, port))
            assert len(gateway.nat.udp) == 1
            assert gateway.nat.counters.untold == (20 if sys.platform == "win32" else 0)


async def test_a_udp_service_that_is_not_there_does_not_disturb_others() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        nobody = gone.getsockname()[1]
    server = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await server.bind(("127.0.0.1", 0))
    with trio.fail_after(60), server:
        async with on_wintun() as (_, guest):
            sock = await guest.open_udp_socket(5000)
            for _ in range(5):
                await sock.send_to(b"x", HOST, nobody)
            await sock.send_to(b"question", HOST, server.getsockname()[1])
            _, sender = await server.recvfrom(100)
            await server.sendto(b"answer", sender)
            while (await sock.receive_from())[0] != b"answer":
                pass


async def test_dns() -> None:
    name = b"\7gateway\x08tunstack\x08internal\0"
    query = struct.pack("!6H", 77, 0x100, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1)
    with trio.fail_after(60):
        async with on_wintun(dns=[(parse_address("127.0.0.1"), 9)]) as (_, guest):
            sock = await guest.open_udp_socket(5000)
            await sock.send_to(query, DEFAULT_PLAN.dns, 53)
            answer, source = await sock.receive_from()
            assert source == (DEFAULT_PLAN.dns, 53) and answer[:2] == query[:2] and answer[3] & 15 == 0
            assert answer[-4:] == DEFAULT_PLAN.gateway


async def test_a_ping_of_the_gateway_is_answered() -> None:
    from tunstack.ip import icmp
    from tunstack.ip.header import ICMP

    with trio.fail_after(60):
        async with on_wintun() as (_, guest):
            replies: list[bytes] = []
            driver = Fake(NAME)
            guest.engine.detach()
            message = icmp.emit_echo_request(7, 1, b"ping" * 8)
            for packet in guest.stack.ip.build(DEFAULT_PLAN.guest, DEFAULT_PLAN.gateway, ICMP, message):
                assert driver.inject(packet.tobytes())
            while not replies:
                replies = [data for data in driver.collect_all() if data[9] == ICMP]
                await trio.sleep(0.005)
            (reply,) = replies
            assert reply[12:16] == DEFAULT_PLAN.gateway and reply[20] == 0 and reply.endswith(b"ping" * 8)


async def test_an_adapter_that_goes_away_detaches_and_the_gateway_goes_on() -> None:
    with trio.fail_after(60):
        async with open_gateway(DEFAULT_PLAN, host_loopback=HOST) as gateway:
            for _ in range(3):
                async with open_wintun(NAME, mtu=1500, library=fake.library()) as device:
                    gateway.attach_device(device)
                    await trio.sleep(0.01)
                    Fake(NAME).terminate()
                    await gateway.wait_detached()
            assert Fake(NAME).open == (0, 0)


async def test_start_and_stop_leave_nothing(poller: Callable[[], Poller]) -> None:
    async with on_wintun():
        pass
    before = fake.handles()
    for _ in range(20):
        with trio.fail_after(60):
            async with on_wintun():
                await trio.sleep(0)
    assert fake.handles() <= before + 3
