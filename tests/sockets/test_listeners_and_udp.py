"""Listeners and UDP sockets inside the virtual network: ports, backlog, ends, limits."""

from __future__ import annotations

import contextlib

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tunstack.errors import DropReason
from tunstack.gateway.gateway import Gateway
from tunstack.ip.addresses import parse_address
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.link.devices.base import Offloads
from tunstack.sockets import UDP_QUEUE, TcpListener, TcpStream
from tunstack.testing.guest import OFFLOADS, open_network

pytestmark = pytest.mark.usefixtures("no_fd_leak")

PORT = 8080
GATEWAY = parse_address("10.0.2.2")
GUEST = parse_address("10.0.2.100")


# listeners


async def test_connections_are_accepted_in_the_order_of_their_arrival(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest), await gateway.open_tcp_listener(PORT) as listener:
        assert listener.address == ("10.0.2.2", PORT)
        streams = [await guest.open_tcp_stream(port=PORT) for _ in range(5)]
        for stream in streams:
            assert (await listener.accept()).remote == stream.local


async def test_serve_listeners_of_trio_serves_them(autojump_clock: MockClock) -> None:
    async def echo(stream: TcpStream) -> None:
        async with stream:
            while data := await stream.receive_some():
                await stream.send_all(data)

    async with open_network() as (gateway, guest), trio.open_nursery() as nursery:
        listener = await gateway.open_tcp_listener(PORT)
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        for number in range(10):
            async with await guest.open_tcp_stream(port=PORT) as stream:
                await stream.send_all(b"%d" % number)
                assert await stream.receive_some() == b"%d" % number
        nursery.cancel_scope.cancel()


async def test_beyond_the_backlog_a_syn_is_dropped_and_its_retry_admitted(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest):
        listener = await gateway.open_tcp_listener(PORT, backlog=2)
        opened: list[TcpStream] = []

        async def connect() -> None:
            opened.append(await guest.open_tcp_stream(port=PORT))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(connect)
            await trio.sleep(0.5)
            assert len(opened) == 2
            assert gateway.stack.drops[DropReason.TCP_BACKLOG_FULL] == 1
            await listener.accept()
            with trio.fail_after(10):
                while len(opened) < 3:
                    await trio.sleep(0.1)
        await listener.aclose()


async def test_closing_a_listener_resets_who_waits_and_frees_the_port(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest):
        listener = await gateway.open_tcp_listener(PORT)
        kept = await guest.open_tcp_stream(port=PORT)
        accepted = await listener.accept()
        waiting = await guest.open_tcp_stream(port=PORT)
        for _ in range(2):
            await listener.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await waiting.receive_some()
        with pytest.raises(ConnectionRefusedError):
            await guest.open_tcp_stream(port=PORT)
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        await kept.send_all(b"unharmed")
        assert await accepted.receive_some() == b"unharmed"
        async with await gateway.open_tcp_listener(PORT) as again:
            await guest.open_tcp_stream(port=PORT)
            await again.accept()


async def test_a_close_wakes_all_who_accept(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, _):
        listener = await gateway.open_tcp_listener(PORT)

        async def closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(closed)
            await wait_all_tasks_blocked()
            await listener.aclose()


async def test_a_cancelled_accept_loses_no_connection(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest), await gateway.open_tcp_listener(PORT) as listener:
        accepted: list[TcpStream] = []

        async def accept_with_interruptions() -> None:
            turn = 0
            while len(accepted) < 20:
                turn += 1
                with trio.move_on_after((0, 1e-6, 0.01)[turn % 3]):
                    accepted.append(await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_with_interruptions)
            for _ in range(20):
                await guest.open_tcp_stream(port=PORT)
        assert len({stream.remote for stream in accepted}) == 20


async def test_many_acceptors_get_one_connection_each(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest), await gateway.open_tcp_listener(PORT) as listener:
        accepted: list[TcpStream] = []

        async def accept(listener: TcpListener) -> None:
            accepted.append(await listener.accept())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(accept, listener)
            await wait_all_tasks_blocked()
            for _ in range(5):
                await guest.open_tcp_stream(port=PORT)
        assert len({stream.remote for stream in accepted}) == 5


# ports and addresses, of both


async def test_a_port_in_use_is_refused_until_it_is_free(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, _):
        for opener in (gateway.open_tcp_listener, gateway.open_udp_socket):
            first = await opener(PORT)
            with pytest.raises(OSError, match="port 8080 is in use"):
                await opener(PORT)
            other = await opener(PORT, "10.0.2.3")
            await first.aclose()
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback((await opener(PORT)).aclose)
            await other.aclose()


async def test_port_0_is_any_that_is_free(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest), await gateway.open_tcp_listener(0) as listener:
        port = listener.address[1]
        assert 49152 <= port <= 65535
        await guest.open_tcp_stream(port=port)
        assert (await listener.accept()).local == ("10.0.2.2", port)


@pytest.mark.parametrize("host", ["10.0.2.4", "127.0.0.1", "0.0.0.0", "::"])
async def test_one_cannot_listen_at_an_address_of_others(autojump_clock: MockClock, host: str) -> None:
    async with open_network() as (gateway, _):
        for opener in (gateway.open_tcp_listener, gateway.open_udp_socket):
            with pytest.raises(OSError, match="is not an address of this host"):
                await opener(PORT, host)


@pytest.mark.parametrize("port", [-1, 65536])
async def test_bad_arguments_are_value_errors(autojump_clock: MockClock, port: int) -> None:
    async with open_network() as (gateway, _):
        for opener in (gateway.open_tcp_listener, gateway.open_udp_socket):
            with pytest.raises(ValueError, match="port"):
                await opener(port)
        with pytest.raises(ValueError, match="backlog"):
            await gateway.open_tcp_listener(PORT, backlog=0)


# UDP


@pytest.mark.parametrize("offloads", [OFFLOADS, Offloads()], ids=["offloads", "plain"])
async def test_datagrams_of_every_size_arrive_whole(autojump_clock: MockClock, offloads: Offloads) -> None:
    async with open_network(offloads=offloads, scribble=True) as (gateway, guest):
        near, far = await guest.open_udp_socket(5000), await gateway.open_udp_socket(6000)
        for size in (0, 1, 2, 1471, 1472, 1473, 9000, 65507):
            payload = bytes(range(256)) * (size // 256 + 1)
            await near.send_to(payload[:size], GATEWAY, 6000)
            assert await far.receive_from() == (payload[:size], (GUEST, 5000))
            await far.send_to(payload[:size], GUEST, 5000)
            assert await near.receive_from() == (payload[:size], (GATEWAY, 6000))


async def test_what_is_no_datagram_or_no_destination_is_refused(autojump_clock: MockClock) -> None:
    async with open_network() as (_, guest):
        socket = await guest.open_udp_socket(5000)
        with pytest.raises(OSError, match="65508 bytes do not fit"):
            await socket.send_to(bytes(65508), GATEWAY, 6000)
        for address, port in ((GATEWAY, 0), (GATEWAY, 65536), (bytes(16), 1)):
            with pytest.raises(ValueError, match="not where a datagram can go"):
                await socket.send_to(b"x", address, port)


async def test_a_reader_that_is_slow_loses_the_newest_and_each_is_counted(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest):
        near, far = await guest.open_udp_socket(5000), await gateway.open_udp_socket(6000)
        for number in range(UDP_QUEUE + 30):
            await near.send_to(b"%d" % number, GATEWAY, 6000)
        await wait_all_tasks_blocked()
        received = [(await far.receive_from())[0] for _ in range(UDP_QUEUE)]
        assert received == [b"%d" % number for number in range(UDP_QUEUE)]
        assert gateway.stack.drops[DropReason.UDP_QUEUE_FULL] == 30


async def test_a_port_without_a_socket_is_refused_by_icmp(autojump_clock: MockClock) -> None:
    async with open_network() as (_, guest):
        socket = await guest.open_udp_socket(5000)
        await socket.send_to(b"x", GATEWAY, 6000)
        await wait_all_tasks_blocked()
        assert [(e.kind, e.quoted_dst_port) for e in guest.errors] == [(IcmpErrorKind.PORT_UNREACHABLE, 6000)]


async def test_a_closed_socket_says_so_and_frees_its_port(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, _):
        socket = await gateway.open_udp_socket(6000)

        async def closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await socket.receive_from()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed)
            await wait_all_tasks_blocked()
            for _ in range(2):
                await socket.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await socket.send_to(b"x", GUEST, 1)
        await (await gateway.open_udp_socket(6000)).aclose()


async def test_the_gateway_answers_dns_to_the_library_as_well(autojump_clock: MockClock) -> None:
    import dns.message
    import dns.rdatatype

    async with open_network() as (gateway, guest):
        assert isinstance(gateway, Gateway)
        socket = await guest.open_udp_socket(5000)
        query = dns.message.make_query("gateway.tunstack.internal", dns.rdatatype.A)
        await socket.send_to(query.to_wire(), parse_address("10.0.2.3"), 53)
        answer = dns.message.from_wire((await socket.receive_from())[0])
        assert [str(item) for item in answer.answer[0]] == ["10.0.2.2"]
