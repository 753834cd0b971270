"""The applications: every byte is compared, ends are told, and a thousand connections cross three routers."""

from __future__ import annotations

import itertools
import time

import pytest

from tunstack.link.shaping.impairments import LossWhere
from tunstack.packet import Packet
from tunstack.tcp.endpoint import CloseReason
from tunstack.testing.simulator import Client, Crowd, Digest, Host, Network, Server, Transfer, ramp
from tunstack.testing.simulator.applications import RampReader, RampWriter, WrongBytes


def pair(words: str = "delay 10ms") -> tuple[Network, Host, Host]:
    network = Network(seed=1)
    client, server = network.host("client"), network.host("server")
    network.link(client, server, words)
    return network, client, server


@pytest.mark.parametrize("size", [0, 1, 250, 251, 65_536, 65_537, 1_000_003])
def test_a_transfer_of_any_size(size: int) -> None:
    network, client, server = pair()
    transfer = Transfer(client, server, size)
    assert not transfer.done and transfer.goodput == 0
    assert network.run_until(lambda: transfer.done, 60)
    assert transfer.received == size and transfer.error is None
    assert transfer.ended is not None
    assert transfer.goodput == pytest.approx(8 * size / (transfer.ended - transfer.started))
    network.run(200)
    assert not client.stack.connections and not server.stack.connections


@pytest.mark.parametrize("change", [lambda data: b"!" + data[1:], lambda data: data[1:] + b"!"])
def test_wrong_bytes_are_an_error_where_they_happen(change: object) -> None:
    network, client, server = pair()
    readers: list[RampReader] = []

    def serve(connection: object) -> RampReader:
        readers.append(RampReader(connection))  # type: ignore[arg-type]
        return readers[-1]

    server.listen(80, serve)
    connection = client.connect(server, 80)
    network.run(1)
    connection.send(ramp(1000))
    network.run(1)
    assert readers[0].received == 1000
    connection.send(change(ramp(500, 1000)))  # type: ignore[operator]
    with pytest.raises(WrongBytes, match="from 1000 on"):
        network.run(1)


def test_a_stream_that_ends_too_soon_is_an_error() -> None:
    network, client, server = pair()
    transfer = Transfer(client, server, 1000)
    transfer.connection.owner = RampWriter(transfer.connection, 600)
    with pytest.raises(WrongBytes, match="after 600 of 1000 bytes"):
        network.run(1)


def test_a_transfer_that_is_refused_says_so() -> None:
    network, client, server = pair()
    transfer = Transfer(client, server, 1000)
    server.services.clear()
    network.run(1)
    assert transfer.error is CloseReason.REFUSED and not transfer.done


def test_requests_and_responses_take_a_round_trip_each() -> None:
    network, client, server = pair("delay 50ms")
    service = Server(server, 200, 3000)
    asking = Client(client, server, service, 5)
    assert network.run_until(lambda: asking.done, 60)
    assert asking.latencies == pytest.approx([0.2, 0.1, 0.1, 0.1, 0.1])
    assert service.served == 5 and asking.failed is None
    network.run(200)
    assert not client.stack.connections and not server.stack.connections


def test_a_client_that_gets_no_answer_says_why() -> None:
    network, client, server = pair()
    service = Server(server, 200, 3000)
    server.services.clear()
    asking = Client(client, server, service)
    assert network.run_until(lambda: asking.done, 60)
    assert asking.failed is CloseReason.REFUSED and not asking.latencies


def crowd(
    count: int, seed: int, *, words: str = "delay 5ms 1ms loss 1% rate 50mbit limit 200"
) -> tuple[Crowd, str, float]:
    """`count` connections from two clients over three routers: themselves, the digest, virtual seconds."""
    network = Network(seed)
    digest = Digest()
    network.observers.append(digest)
    routers = [network.router(f"r{number}") for number in range(3)]
    for first, second in itertools.pairwise(routers):
        network.link(first, second, words)
    clients = [network.host("client-1"), network.host("client-2")]
    for client in clients:
        network.link(client, routers[0], "delay 1ms")
    server = network.host("server")
    network.link(routers[2], server, "delay 1ms")
    many = Crowd(clients, server, count, interval=0.005, request=100, response=5000)
    assert network.run_until(lambda: len(many.clients) == count, 600)
    assert network.run_until(lambda: many.done, 600)
    return many, digest.hexdigest(), network.now


def test_a_crowd_crosses_a_lossy_network_and_its_trace_repeats() -> None:
    many, first, _ = crowd(60, 7)
    assert all(client.failed is None and len(client.latencies) == 1 for client in many.clients)
    assert min(client.latencies[0] for client in many.clients) >= 4 * (2 + 2 * 0.004) * 1e-3
    assert crowd(60, 7)[1] == first != crowd(60, 8)[1]


@pytest.mark.slow
def test_a_thousand_connections_over_three_routers_repeat_to_the_byte() -> None:
    """Says how much faster than the clock on the wall it is."""
    began = time.process_time()
    many, first, virtual = crowd(1000, 7)
    spent = time.process_time() - began
    print(f"1000 connections: {virtual:.1f} virtual s in {spent:.1f} s of CPU, ratio {virtual / spent:.1f}")
    assert all(client.failed is None for client in many.clients)
    again = crowd(1000, 7)
    assert again[1:] == (first, virtual)


def test_the_digest_sees_a_single_packet_less() -> None:
    digests = []
    for lost in (None, 5):
        network, client, server = pair()
        if lost is not None:
            seen: list[Packet] = []
            way = network.directions["client>server"]
            way.shape((LossWhere(lambda packet: seen.append(packet) or len(seen) == 5), *way.pipeline.stages))  # noqa: B023
        digest = Digest()
        network.observers.append(digest)
        transfer = Transfer(client, server, 20_000)
        network.run_until(lambda: transfer.done)  # noqa: B023
        digests.append(digest.hexdigest())
    assert digests[0] != digests[1]
