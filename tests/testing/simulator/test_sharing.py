"""Requirements 9, assertions 5 to 8 and 10: sharing, queues, idleness, windows, a satellite.

A bottleneck of rate C with a round-trip time R without queue has a bandwidth-delay product BDP = C * R / 8
bytes. All flows are measured after they have converged. The long ones are run by
`make slow PYTEST_ARGS=tests/testing/simulator/test_sharing.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.link.shaping.codel import CoDel
from tunstack.link.shaping.delay import Constant, Delay
from tunstack.link.shaping.rate import Rate, Steady
from tunstack.link.shaping.stage import Memory
from tunstack.tcp.congestion import initial_window
from tunstack.tcp.recovery import Recovery
from tunstack.testing.simulator import Client, Network, Server, Transfer
from tunstack.testing.simulator.applications import RampWriter

PAYLOAD, MTU = 1448, 1500
both = pytest.mark.parametrize("congestion", ["newreno", "cubic"])
WIRE = PAYLOAD / MTU
"""The share of the rate that is payload."""


def jain(rates: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1 / n if one has everything."""
    return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates))


def test_jain() -> None:
    assert jain([2, 2, 2]) == pytest.approx(1) and jain([1, 0, 0, 0]) == pytest.approx(0.25)


def share(network: Network, transfers: list[Transfer], *, until: float, measured: float) -> list[float]:
    """Bits per second of each over the last `measured` seconds until `until`."""
    network.run(until - measured - network.now)
    before = [transfer.received for transfer in transfers]
    network.run(measured)
    return [8 * (transfer.received - had) / measured for transfer, had in zip(transfers, before, strict=True)]


def flows(congestion: str, count: int, rate: float, rtt: float, queue: float, seconds: float) -> list[float]:
    """`count` flows with equal ways over one bottleneck with a queue of `queue` BDP; the last 30 s."""
    network = Network(seed=1)
    client, server = network.host("client", congestion=congestion), network.host("server")
    limit = max(MTU, int(queue * rate * rtt / 8))
    delay = f"delay {rtt * 500}ms"
    network.link(client, server, f"{delay} rate {rate / 1e6}mbit limit {limit}b", delay)
    transfers: list[Transfer] = []
    for number in range(count):
        network.at(0.1 * number, lambda: transfers.append(Transfer(client, server)))
    network.run(0.1 * count)
    assert len(transfers) == count
    return share(network, transfers, until=seconds, measured=30.0)


both_but_one_slow = pytest.mark.parametrize(
    "congestion", [pytest.param("newreno", marks=pytest.mark.slow), "cubic"]
)


# 5


@both_but_one_slow
def test_5_two_equal_flows_share_fairly(congestion: str) -> None:
    """Jain >= 0.95 from 30 s on, at 4 Mbit/s with 60 ms and a queue of 1 BDP (20 packets)."""
    rates = flows(congestion, 2, 4e6, 0.06, 1.0, 60)
    assert jain(rates) >= 0.95, rates
    assert sum(rates) >= 0.95 * 4e6 * WIRE


@pytest.mark.slow
@both
def test_5_sixteen_flows_share_fairly(congestion: str) -> None:
    """Jain >= 0.9 at 20 Mbit/s with 80 ms (8 packets each) and a queue of 1 BDP."""
    rates = flows(congestion, 16, 20e6, 0.08, 1.0, 60)
    assert jain(rates) >= 0.9, rates


@pytest.mark.slow
@pytest.mark.parametrize(("congestion", "most"), [("newreno", 4.5), ("cubic", 2.5)])
def test_5_a_flow_with_twice_the_rtt_gets_its_part(congestion: str, most: float) -> None:
    """40 and 80 ms over 10 Mbit/s: the ratio of rates is at most 2.5 (CUBIC), 4.5 (Reno, about R ** 2)."""
    network = Network(seed=1)
    left, right = network.router("left"), network.router("right")
    network.link(left, right, "delay 10ms rate 10mbit limit 75000b", "delay 10ms")
    transfers = []
    for name, far in (("near", 10), ("far", 30)):
        client, server = network.host(f"{name}-client", congestion=congestion), network.host(f"{name}-server")
        network.link(client, left, f"delay {far}ms")
        network.link(right, server)
        transfers.append(Transfer(client, server))
    near, far = share(network, transfers, until=90, measured=60.0)
    assert 1 / most <= near / far <= most, (near, far)


@pytest.mark.parametrize(
    ("congestion", "queue", "least"),
    [
        ("newreno", 1.0, 0.99),
        pytest.param("newreno", 0.1, 0.75, marks=pytest.mark.slow),
        pytest.param("cubic", 0.43, 0.98, marks=pytest.mark.slow),
        pytest.param("cubic", 0.1, 0.85, marks=pytest.mark.slow),
    ],
)
def test_one_flow_fills_the_bottleneck(congestion: str, queue: float, least: float) -> None:
    """Reno all of it if Q >= BDP, CUBIC if Q >= (1 - beta) / beta = 0.43 BDP; with less 75 and 85 %.

    4 Mbit/s with 60 ms are 20 packets, and a queue of 0.1 BDP two.
    """
    (rate,) = flows(congestion, 1, 4e6, 0.06, queue, 60)
    assert rate >= least * 4e6 * WIRE, f"{rate / 4e6 / WIRE:.3f} of the rate"


# 6


def overshoot(congestion: str, *, hystart: bool = True) -> int:
    """Packets that slow start loses at 20 Mbit/s with 100 ms and a queue of 1 BDP."""
    network = Network(seed=1)
    client, server = network.host("client", congestion=congestion), network.host("server")
    way = network.link(client, server, "delay 50ms rate 20mbit limit 250000b", "delay 50ms").forth
    transfer = Transfer(client, server)
    network.run_until(lambda: transfer.connection.established)
    sender = transfer.connection.sender
    if not hystart:
        slow_start = sender.congestion._hystart
        slow_start._compare = lambda: None
    network.run_until(lambda: sender.recovery is not Recovery.NONE, 20)
    network.run_until(lambda: sender.recovery is Recovery.NONE, 20)
    assert not sender.timeouts
    return way.drops.total


@both
def test_6_slow_start_loses_at_most_a_window(congestion: str) -> None:
    """The window is BDP + Q = 333 packets."""
    assert overshoot(congestion) <= 2 * 250_000 / MTU


@both_but_one_slow
@pytest.mark.parametrize("seconds", [20])
def test_6_with_marks_nothing_is_lost_after_convergence(congestion: str, seconds: float) -> None:
    """CoDel and ECN at 4 Mbit/s with 60 ms: no packet is dropped after 5 s, the standing queue is short, and
    the link is used: a flow that is marked yields as one that loses does.
    """
    network = Network(seed=1)
    client, server = network.host("client", congestion=congestion), network.host("server")
    queue = CoDel()
    memory = Memory(1 << 26)
    way = network.link(
        client,
        server,
        (Rate(Steady(4e6), queue, memory), Delay(Constant(0.03), memory)),
        (Delay(Constant(0.03), memory),),
    ).forth
    transfers = [Transfer(client, server) for _ in range(2)]
    network.run(5)
    dropped, marked = way.drops.total, queue.marked
    waits: list[int] = []
    for tick in range(int(10 * (seconds - 5))):
        network.clock.at(5 + tick / 10, lambda now: waits.append(queue.size))
    rates = share(network, transfers, until=seconds, measured=seconds - 5)
    assert way.drops.total == dropped
    assert queue.marked > marked
    assert sum(rates) >= 0.8 * 4e6 * WIRE
    assert sorted(waits)[len(waits) // 2] * 8 / 4e6 <= 0.02, "half of the time less than 20 ms wait"


# 7


@both
def test_7_after_idleness_the_window_begins_anew(congestion: str) -> None:
    """RTO is 300 ms here: after 5 s of silence at most IW = 10 segments leave before the first ACK comes."""
    network = Network(seed=1)
    client, server = network.host("client", congestion=congestion), network.host("server")
    way = network.link(client, server, "delay 50ms").forth
    service = Server(server, 1 << 40, 1)  # which never answers
    asking = Client(client, server, service)
    connection = asking.connection
    writer = RampWriter(connection, 500_000, finish=False)
    connection.owner = writer
    network.run(5)
    assert connection.hot.cwnd > 3 * initial_window(PAYLOAD) and not connection.unacked
    sent = way.packets
    network.run(5)
    assert way.packets == sent, "silence"
    writer.size *= 2
    network.at(network.now, lambda: writer.on_progress(network.now))
    network.run(0.09)
    assert 2 <= way.packets - sent <= initial_window(PAYLOAD) / PAYLOAD + 1
    network.run(5)
    assert writer.sent == 1_000_000 and not connection.unacked and not connection.sender.timeouts


@both
def test_7_an_application_limited_flow_keeps_its_window(congestion: str) -> None:
    """One segment per round trip for 200 of them: cwnd stays at what it was (RFC 7661), at most IW + 2."""
    network = Network(seed=1)
    client, server = network.host("client", congestion=congestion), network.host("server")
    network.link(client, server, "delay 10ms")
    asking = Client(client, server, Server(server, 1000, 100), 200)
    network.run_until(lambda: len(asking.latencies) == 199, 60)
    assert asking.connection.hot.cwnd <= initial_window(PAYLOAD) + 2 * PAYLOAD


# 8


@pytest.mark.parametrize("window", [64 * 1024, 256 * 1024])
def test_8_without_loss_the_receive_window_is_the_speed(window: int) -> None:
    """B = rwnd / RTT within 5 %."""
    network = Network()
    client = network.host("client")
    server = network.host("server", limits=Limits(receive_buffer=window))
    network.link(client, server, "delay 50ms")
    transfer = Transfer(client, server)
    (rate,) = share(network, [transfer], until=8, measured=5.0)
    assert rate == pytest.approx(8 * window / 0.1, rel=0.05)


def test_slow_start_doubles_the_initial_window_every_round() -> None:
    """Bytes sent after k round trips: IW * (2 ** k - 1); 1 MB takes ceil(log2(1 + 691 / 10)) = 7 of them.

    The receiver has them half a round trip later; the handshake comes before.
    """
    network = Network()
    client, server = network.host("client"), network.host("server")
    network.link(client, server, "delay 500ms")
    transfer = Transfer(client, server, 1_000_000)
    for rounds in range(1, 7):
        network.run(rounds + 0.9 - network.now)
        expected = initial_window(PAYLOAD) * (2**rounds - 1)
        assert transfer.received == pytest.approx(expected, abs=2 * PAYLOAD)
    assert network.run_until(lambda: transfer.done, 60)
    rounds = math.ceil(math.log2(1 + 1_000_000 / PAYLOAD / 10))
    assert network.now == pytest.approx(1 + rounds - 0.5, abs=0.2)


# 10


@pytest.mark.slow
@both
def test_10_a_satellite_takes_at_most_twice_the_ideal_time(congestion: str) -> None:
    """300 ms each way, 250 Mbit/s down and 3 Mbit/s up, 100 MB, queues of 1 BDP, windows of 64 MiB.

    The ideal: a handshake, the rounds of slow start until the BDP of 18.75 MB is reached, log2(BDP / IW), in
    which a BDP is sent, the rest at the rate, and the last half round trip.
    """
    rate, rtt, size = 250e6, 0.6, 100_000_000
    roomy = Limits(receive_buffer=64 << 20, send_buffer=64 << 20)
    network = Network(seed=1)
    client = network.host("client", congestion=congestion, limits=roomy)
    server = network.host("server", limits=roomy)
    bdp = rate * rtt / 8
    network.link(
        client, server, f"delay 300ms rate 250mbit limit {int(bdp)}b", "delay 300ms rate 3mbit limit 225000b"
    )
    transfer = Transfer(client, server, size)
    rounds = math.log2(bdp / initial_window(PAYLOAD))
    ideal = rtt + rounds * rtt + (size - bdp) * 8 / (rate * WIRE) + rtt / 2
    assert network.run_until(lambda: transfer.done, 10 * ideal)
    assert transfer.ended is not None
    print(f"{congestion}: {transfer.ended:.1f} s, ideal {ideal:.1f} s")
    assert transfer.ended <= 2 * ideal
    assert network.directions["client>server"].drops[DropReason.SHAPING_MEMORY] == 0


def test_a_fast_retransmission_over_a_full_queue_is_not_followed_by_a_time_out() -> None:
    """Assertion 1 where the queue makes 200 ms of 100: a loss is repaired without RTO, time after time."""
    network = Network(seed=1)
    client, server = network.host("client", congestion="newreno"), network.host("server")
    network.link(client, server, "delay 50ms rate 3mbit limit 37500b", "delay 50ms")
    transfer = Transfer(client, server)
    network.run(20)
    assert transfer.connection.sender.timeouts == 0
