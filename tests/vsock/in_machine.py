"""AF_VSOCK for real: what `test_machine.py` runs within a machine whose kernel has vsock loopback.

Nothing here is found by pytest itself, for a kernel without the loopback can do none of it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import random
import socket

import pytest
import trio

from tests.lab.agent import AgentGuest
from tests.lab.gateway import HOST, Running
from tests.nat.world import A, ramp, read_all, world
from tests.vsock.test_datagrams import until
from tests.vsock.test_dialers import carry_both_ways
from tunstack.nat.dialer import Refusal, refusal_of
from tunstack.vsock import sockets
from tunstack.vsock.addresses import CID_ANY, CID_LOCAL, VsockAddress
from tunstack.vsock.datagrams import accept_datagrams
from tunstack.vsock.routes import RouteSpec

PORTS = itertools.count(5000)
SERVICE = A("10.0.2.50")


@pytest.fixture
def address() -> VsockAddress:
    return VsockAddress(CID_LOCAL, next(PORTS))


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> object:
    before = set(os.listdir("/proc/self/fd"))
    yield
    left = set(os.listdir("/proc/self/fd")) - before
    assert not left, [
        os.readlink(f"/proc/self/fd/{fd}") for fd in left if os.path.exists(f"/proc/self/fd/{fd}")
    ]


async def joined(address: VsockAddress) -> tuple[trio.SocketStream, trio.SocketStream]:
    with sockets.listening(VsockAddress(CID_ANY, address.port)) as listener:
        client = await sockets.connect(address)
        await trio.lowlevel.wait_readable(listener)
        server, _ = listener.accept()
    assert client.family == server.family == socket.AF_VSOCK and not client.getblocking()
    streams = [trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in (client, server)]
    return streams[0], streams[1]


def test_the_own_cid() -> None:
    assert sockets.local_cid() == CID_LOCAL


async def test_bytes_and_half_close_in_both_directions(address: VsockAddress) -> None:
    one, other = await joined(address)
    async with one, other:
        await one.send_all(b"question")
        await one.send_eof()
        assert await other.receive_some(100) == b"question" and await other.receive_some(100) == b""
        await other.send_all(b"answer")
        await other.send_eof()
        assert await one.receive_some(100) == b"answer" and await one.receive_some(100) == b""


async def test_a_megabyte_each_way_at_once(address: VsockAddress) -> None:
    data = ramp(1 << 20)
    one, other = await joined(address)
    got: dict[trio.SocketStream, bytes] = {}

    async def receive(stream: trio.SocketStream) -> None:
        got[stream] = b"".join([part async for part in stream])

    async def send(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with one, other, trio.open_nursery() as nursery:
        for stream in (one, other):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)
    assert got == {one: data, other: data}


async def test_nobody_is_there(address: VsockAddress) -> None:
    with pytest.raises(OSError) as told:
        await sockets.connect(address)
    assert refusal_of(told.value.errno or 0) is Refusal.REFUSED


async def test_a_peer_that_goes_with_unread_data(address: VsockAddress) -> None:
    one, other = await joined(address)
    async with one:
        await one.send_all(b"x" * 1000)
        await other.aclose()
        with contextlib.suppress(trio.BrokenResourceError):
            while await one.receive_some(100):
                pass
            with pytest.raises(trio.BrokenResourceError):
                for _ in range(100):
                    await one.send_all(b"x" * 1000)


async def test_a_connection_that_is_given_up_leaves_nothing(address: VsockAddress) -> None:
    with sockets.listening(address):
        for delay in (0.0, 0.0001, 0.001):
            with trio.move_on_after(delay):
                (await sockets.connect(address)).close()


async def test_an_address_in_use(address: VsockAddress) -> None:
    with sockets.listening(address), pytest.raises(OSError, match="in use"), sockets.listening(address):
        pass


def test_a_guests_flow_to_a_vsock_service(address: VsockAddress) -> None:
    data = ramp(1 << 18)
    with sockets.listening(address) as server, world() as w:
        spec = RouteSpec.parse(f"10.0.2.50:80={address}")
        w.nat.tcp.routes.add(spec.route(w.poller))
        w.stack.own_addresses.add(SERVICE)
        connection = w.connect(SERVICE, 80)
        w.until(lambda: connection.established)
        outer, _ = server.accept()
        outer.setblocking(False)
        with outer:
            carry_both_ways(w, connection, outer, data)
            connection.shutdown()
            w.run(0.05)
            assert outer.recv(1) == b""
        w.until(lambda: connection.receive_eof and not w.nat.tcp.flows)


def test_a_vsock_service_that_is_not_there_refuses_the_guest(address: VsockAddress) -> None:
    with world() as w:
        w.nat.tcp.routes.add(RouteSpec.parse(f"10.0.2.50={address}").route(w.poller))
        w.stack.own_addresses.add(SERVICE)
        connection = w.connect(SERVICE, 80)
        w.until(lambda: connection.closed)
        assert w.resets == [(SERVICE, 80)]


def test_datagrams_between_two_gateways(address: VsockAddress) -> None:
    rng = random.Random(2)
    payloads = [rng.randbytes(rng.randrange(1400)) for _ in range(300)]
    with world() as near, world() as far, sockets.listening(address) as listener:
        far.nat.forward_datagrams(listener, accept_datagrams, (A("10.0.2.100"), 53))
        near.nat.add_route(RouteSpec.parse(f"10.0.2.50:53/udp={address}").route(near.poller))
        near.stack.own_addresses.add(SERVICE)
        for payload in payloads:
            near.send_udp(SERVICE, 53, payload)
            until((near, far), lambda: far.datagrams)
            source, source_port, port, got = far.datagrams.pop()
            assert (port, got) == (53, payload)
            far.send_udp(source, source_port, payload[::-1], src_port=53)
        until((near, far), lambda: len(near.datagrams) == len(payloads))
        assert [got for *_, got in near.datagrams] == [payload[::-1] for payload in payloads]


def test_a_vsock_listener_that_leads_to_a_guest_and_to_the_host(
    address: VsockAddress, tmp_path: pathlib.Path
) -> None:
    from tests.nat.world import listener, port_of
    from tunstack.vsock.addresses import TcpAddress
    from tunstack.vsock.dialers import AddressDialer

    rng = random.Random(1)
    data = rng.randbytes(300_000)
    other = VsockAddress(CID_LOCAL, next(PORTS))
    with listener() as server, world() as w, contextlib.ExitStack() as stack:
        inner = stack.enter_context(sockets.listening(address))
        outer = stack.enter_context(sockets.listening(other))
        w.nat.forward(inner, A("10.0.2.100"), 80)
        w.nat.forward_to_host(outer, AddressDialer(w.poller, TcpAddress("127.0.0.1", port_of(server))))
        with socket.socket(socket.AF_VSOCK) as client:
            client.connect((other.cid, other.port))
            w.run(0.05)
            far, _ = server.accept()
            with far:
                far.setblocking(False)
                client.setblocking(False)
                sent, got = 0, b""
                while len(got) < len(data):
                    with contextlib.suppress(BlockingIOError):
                        sent += client.send(data[sent : sent + 65536])
                    w.step()
                    with contextlib.suppress(BlockingIOError):
                        got += far.recv(65536)
                assert got == data
                client.shutdown(socket.SHUT_WR)
                w.run(0.05)
                assert far.recv(1) == b""
                far.sendall(b"answer")
            w.run(0.05)
            assert client.recv(100) == b"answer" and client.recv(1) == b""
        with socket.socket(socket.AF_VSOCK) as client:
            client.connect((address.cid, address.port))
            w.until(lambda: w.requests)
            request = w.requests[0]
            connection = w.guest.accept(request, w.now)
            client.setblocking(False)
            client.send(b"question")
            w.until(lambda: connection.readable)
            assert read_all(connection) == b"question"
            connection.send(b"answer")
            w.run(0.05)
            assert client.recv(100) == b"answer"


def test_a_link_over_vsock() -> None:
    """Gateway and agent, both in this machine: DHCP, ping, DNS, and either killed and started anew."""
    url = f"vsock://1:{next(PORTS)}"
    guest = AgentGuest(url)
    gateways = []
    try:
        for _ in range(2):
            gateway = Running("--listen", url.replace("//1:", "//:"))
            gateways.append(gateway)
            gateway.wait_for("waiting at")
            if guest.agent is None:
                guest.start()
            guest.wait_for("with offloads")
            if len(gateways) == 1:
                guest.wait_for("address 192.168.127.2/24")
            assert guest.seconds_until_it_pings(HOST) < 3
            guest.kill()
            guest.start()
            assert guest.seconds_until_it_pings(HOST) < 6  # an interpreter starts slowly here
            guest.wait_for("address 192.168.127.2/24")
            gateway.kill()
            assert guest.address() == "192.168.127.2"
    finally:
        guest.close()
        for gateway in gateways:
            gateway.kill()
