"""The sums over connections are those of what was on the wire."""

from __future__ import annotations

import random

from tests.tcp.peer import ramp
from tests.tcp.world import Transfer, World
from tunstack.tcp.statistics import TcpStatistics

SIZE = 300_000


def lossy(rng: random.Random) -> list[float]:
    return [] if rng.random() < 0.05 else [0.01]


def test_they_add_up_over_connections_open_and_over() -> None:
    world = World(lossy, seed=3)
    sent = {world.a: 0, world.b: 0}

    def see(stack: object, wire: bytes) -> None:
        sent[stack] += 1  # type: ignore[index]

    world.observers.append(see)
    assert world.a.tcp_statistics() == TcpStatistics()
    for number in range(3):
        connection = world.connect(local_port=40000 + number)
        transfer = Transfer(world, connection, ramp(SIZE))
        world.run(60, lambda connection=connection: connection.receive_eof)  # type: ignore[misc]
        assert transfer.received == ramp(SIZE)
        if number == 1:
            world.run(200)
            assert not world.a.connections and not world.b.connections
    here, there = world.a.tcp_statistics(), world.b.tcp_statistics()
    assert here.connections == there.connections == 3
    assert here.bytes_out == 3 * SIZE + 3, "FINs count as well"
    assert (here.bytes_in, there.bytes_in) == (0, 3 * SIZE)
    assert here.segments_out == sent[world.a] and there.segments_out == sent[world.b]
    assert here.retransmits >= 0.03 * here.segments_out
    assert there.segments_in < here.segments_out
    before = world.a.tcp_statistics()
    world.run(200)
    after = world.a.tcp_statistics()
    assert not world.a.connections
    assert after.bytes_out == before.bytes_out and after.retransmits >= before.retransmits
    assert "3 connections" in str(after) and f"{after.retransmits} sent again" in str(after)


def test_time_outs_and_probes_are_counted() -> None:
    world = World(lambda rng: [0.01])
    connection = world.connect()
    Transfer(world, connection, b"")
    world.on_event = lambda event: None
    world.run(1, lambda: connection.established)
    world.run(1)
    world.fate = lambda rng: []
    connection.send(b"lost")
    world.run(5)
    statistics = world.a.tcp_statistics()
    assert statistics.probes == connection.sender.probes == 1
    assert statistics.timeouts == connection.sender.timeouts >= 3
    assert statistics.retransmits == connection.hot.retransmits == 1 + statistics.timeouts
    connection.abort()
    world.pump()
    assert not world.a.connections
    statistics.segments_out += 1  # the reset
    assert world.a.tcp_statistics() == statistics
