"""The simulator under trio: streams, listeners and UDP between simulated hosts, in virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tunstack.testing.simulator import Host, Network, ramp
from tunstack.testing.simulator.driver import running


def pair(words: str = "delay 100ms") -> tuple[Network, Host, Host]:
    network = Network(seed=1)
    client, server = network.host("client", "10.0.0.1"), network.host("server", "10.0.0.2")
    network.link(client, server, words)
    return network, client, server


async def test_streams_carry_bytes_both_ways_and_time_jumps(autojump_clock: trio.testing.MockClock) -> None:
    network, client, server = pair("delay 1s loss 1%")
    async with running(network) as driver:
        listener = await driver.sockets(server).open_tcp_listener(80)
        began = trio.current_time()
        stream = await driver.sockets(client).open_tcp_stream("10.0.0.2", 80)
        assert trio.current_time() - began == pytest.approx(2.0)
        peer = await listener.accept()
        got = bytearray()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(ramp(300_000))
                await stream.send_eof()

            nursery.start_soon(send)
            while data := await peer.receive_some():
                got += data
        assert got == ramp(300_000)
        await peer.send_all(b"thanks")
        assert await stream.receive_some() == b"thanks"
        assert network.now == trio.current_time() > 8
        for one in (stream, peer, listener):
            await one.aclose()


async def test_datagrams_and_refusals(autojump_clock: trio.testing.MockClock) -> None:
    network, client, server = pair()
    async with running(network) as driver:
        here, there = driver.sockets(client), driver.sockets(server)
        assert driver.sockets(client) is here
        asked, asking = await there.open_udp_socket(53), await here.open_udp_socket(0)
        await asking.send_to(b"question", server.address, 53)
        payload, (address, port) = await asked.receive_from()
        assert (payload, address) == (b"question", client.address)
        assert trio.current_time() == pytest.approx(0.1)
        await asked.send_to(b"answer", address, port)
        assert (await asking.receive_from())[0] == b"answer"
        with pytest.raises(ConnectionRefusedError):
            await here.open_tcp_stream("10.0.0.2", 81)
        for socket in (asked, asking):
            await socket.aclose()


async def test_an_idle_network_lets_time_pass_and_a_task_may_change_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, client, server = pair()
    async with running(network) as driver:
        listener = await driver.sockets(server).open_tcp_listener(80)
        stream = await driver.sockets(client).open_tcp_stream("10.0.0.2", 80)
        peer = await listener.accept()
        await trio.sleep(1000)
        network.directions["client>server"].shape("delay 3s")
        began = trio.current_time()
        await stream.send_all(b"slow")
        assert await peer.receive_some() == b"slow"
        assert trio.current_time() - began == pytest.approx(3.0)
        network.directions["client>server"].shape("loss 100%")
        driver.wake()
        connection = client.connect(server, 80)
        await trio.sleep(100)
        assert not connection.closed
        await trio.sleep(100)
        assert connection.closed
        for one in (stream, peer, listener):
            await one.aclose()


async def test_the_end_of_the_block_breaks_what_is_open(autojump_clock: trio.testing.MockClock) -> None:
    network, client, server = pair()
    async with running(network) as driver:
        listener = await driver.sockets(server).open_tcp_listener(80)
        stream = await driver.sockets(client).open_tcp_stream("10.0.0.2", 80)
        sockets = driver.sockets(client)
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    with pytest.raises(trio.ClosedResourceError):
        await sockets.open_udp_socket(0)


async def test_an_error_in_the_block_comes_out_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    network, _, _ = pair()
    with pytest.raises(KeyError, match="mine"):
        async with running(network):
            raise KeyError("mine")


async def test_a_clock_that_is_ahead_of_trio_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(ValueError, match="the network is at 5"):
        async with running(Network(start=5.0)):
            raise AssertionError("not reached")
