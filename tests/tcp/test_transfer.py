"""Two stacks over a hostile wire in virtual time: what was sent arrives, in order, once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tcp.peer import ramp
from tests.tcp.world import Fate, Transfer, World, perfect
from tunstack.limits import Limits
from tunstack.tcp.connection import Connection
from tunstack.tcp.states import State

FAMILIES = st.sampled_from([4, 6])
both_families = pytest.mark.parametrize("family", [4, 6])


def run(world: World, data: bytes, seconds: float = 3600.0) -> tuple[Transfer, Connection]:
    connection = world.connect()
    transfer = Transfer(world, connection, data)
    world.run(seconds, lambda: transfer.eof and connection.state in (State.TIME_WAIT, State.CLOSED))
    return transfer, connection


@st.composite
def fates(draw: st.DrawFn) -> Fate:
    """A wire that loses, doubles and reorders, each with its own probability."""
    loss = draw(st.floats(0, 0.2))
    duplicate = draw(st.floats(0, 0.2))
    jitter = draw(st.sampled_from([0.0, 0.001, 0.02]))
    delay = draw(st.sampled_from([0.0001, 0.01, 0.1]))

    def fate(rng: random.Random) -> list[float]:
        if rng.random() < loss:
            return []
        copies = 2 if rng.random() < duplicate else 1
        return [delay + rng.random() * jitter for _ in range(copies)]

    return fate


@settings(max_examples=40, deadline=None)
@given(
    fates(),
    st.integers(0, 2**32),
    st.integers(0, 100_000),
    st.sampled_from([(4, 576), (4, 1500), (4, 9000), (4, 65520), (6, 1280), (6, 1500), (6, 65520)]),
)
def test_delivered_is_sent(fate: Fate, seed: int, size: int, link: tuple[int, int]) -> None:
    family, mtu = link
    world = World(fate, seed=seed, mtu=mtu, family=family)
    data = ramp(size)
    transfer, connection = run(world, data)
    assert transfer.received == data
    assert transfer.eof
    assert connection.error is None
    world.run(200)
    assert not world.a.connections and not world.b.connections
    assert world.a.send_pool.used == world.b.receive_account.used == world.b.receive_pool.used == 0


@settings(max_examples=25, deadline=None)
@given(FAMILIES, st.integers(0, 2**32), st.integers(1, 200_000))
def test_flight_stays_within_the_windows(family: int, seed: int, size: int) -> None:
    """When something new was sent, pipe <= cwnd (plus limited transmit and a probe), flight <= snd_wnd."""
    world = World(
        lambda rng: [] if rng.random() < 0.05 else [0.01 + rng.random() * 0.005], seed=seed, family=family
    )
    connection = world.connect()
    transfer = Transfer(world, connection, ramp(size))
    until = world.now + 600
    before = connection.hot.snd_nxt
    while world.step(until) and not transfer.eof:
        hot = connection.hot
        grown, before = hot.snd_nxt != before, hot.snd_nxt
        sender = connection.sender
        probe = hot.mss if sender.probe.end is not None else 0
        allowed = max(hot.cwnd + sender.inflation, hot.mss) + probe
        assert sender.flight <= hot.snd_max_wnd + 1 or not connection.established
        # A cut of cwnd may leave more in flight than it allows; then nothing new may follow.
        if grown and connection.established and sender.recovery.name == "NONE":
            assert sender.pipe <= allowed + 1
    assert transfer.received == ramp(size)


@both_families
def test_a_perfect_wire_needs_no_retransmission(family: int) -> None:
    world = World(perfect(0.02), family=family)
    transfer, connection = run(world, ramp(3_000_000))
    assert transfer.received == ramp(3_000_000)
    assert connection.hot.retransmits == 0
    assert world.a.drops.total == world.b.drops.total == 0


@both_families
@pytest.mark.parametrize("lost", [1, 2, 3, 10])
def test_a_lost_segment_costs_one_retransmission_and_no_timeout(lost: int, family: int) -> None:
    """RFC 5681 3.2: a single loss with enough behind it is repaired by fast retransmit."""
    count = 0

    def fate(rng: random.Random) -> list[float]:
        nonlocal count
        count += 1
        return [] if count == 40 + lost else [0.02]

    world = World(fate, family=family)
    timeouts: list[float] = []
    connection = world.connect()
    transfer = Transfer(world, connection, ramp(400_000))
    until = world.now + 60
    while not transfer.eof and world.step(until):
        if connection.sender.rtt.backoff:
            timeouts.append(world.now)
    assert transfer.received == ramp(400_000)
    assert connection.hot.retransmits <= 1
    assert not timeouts


@both_families
def test_a_reader_that_stops_closes_the_window_and_loses_nothing(family: int) -> None:
    limits = Limits(receive_buffer=64 * 1024)
    world = World(perfect(0.001), limits=limits, family=family)
    connection = world.connect()
    data = ramp(1_000_000)
    transfer = Transfer(world, connection, data)
    reading = False

    def on_event(event: Connection) -> None:
        if event is connection or reading:
            transfer.on_event(event)

    world.on_event = on_event
    world.run(300)
    peer = world.accepted[0]
    assert 64 * 1024 - 1448 <= peer.readable <= 64 * 1024
    assert world.b.receive_account.used <= 64 * 1024
    assert connection.error is None, "probes that are answered keep a connection alive (MUST-37)"
    reading = True
    transfer.on_event(peer)
    world.run(120, lambda: transfer.eof)
    assert transfer.received == data


@both_families
def test_a_peer_that_falls_silent_is_given_up(family: int) -> None:
    """RFC 9293 MUST-20..23: after R2, not before 100 s."""
    world = World(perfect(0.001), family=family)
    connection = world.connect()
    transfer = Transfer(world, connection, b"")
    world.on_event = lambda event: None
    world.run(1, lambda: connection.established)
    del transfer
    connection.send(b"into the void")
    world.fate = lambda rng: []
    start = world.now
    world.run(1000, lambda: connection.closed)
    assert connection.error is not None
    assert 100 <= world.now - start <= 1000


@pytest.mark.rfc("9293", "MUST-20")
@pytest.mark.parametrize(
    ("seed", "jitter", "delay"), [(3, 0.0, 0.1), (5, 0.0, 0.1), (6, 0.0, 0.1), (7, 0.02, 0.01)]
)
def test_heavy_loss_is_slow_but_nobody_is_given_up(seed: int, jitter: float, delay: float) -> None:
    """20 % loss both ways: a lost ACK must not teach the estimator a whole time-out as a round trip."""

    def fate(rng: random.Random) -> list[float]:
        return [] if rng.random() < 0.2 else [delay + rng.random() * jitter]

    world = World(fate, seed=seed, mtu=576)
    transfer, connection = run(world, ramp(60_000))
    assert transfer.received == ramp(60_000) and transfer.eof
    assert connection.error is None
