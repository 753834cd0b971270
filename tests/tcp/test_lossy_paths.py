"""Whole transfers over paths that lose, delay, double and reorder: bounds, and where they come from.

The wire has a delay and no rate, so that without loss a transfer takes as many round trips as slow start
does; what loss and reordering add is measured against that.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tcp.peer import ramp
from tests.tcp.world import Transfer, World
from tunstack.stack import Stack
from tunstack.tcp import header
from tunstack.tcp.connection import Connection
from tunstack.tcp.header import Segment
from tunstack.tcp.listener import TcpRequest
from tunstack.tcp.recovery import Recovery
from tunstack.tcp.rtt import MIN_RTT_MEMORY
from tunstack.tcp.states import State

ONE_WAY = 0.02
RTT = 2 * ONE_WAY


class Path:
    """A wire that asks `judge` about each data segment and `judge_ack` about all else.

    A judge gets the segment, how many bytes of the stream lie before it, and how often these bytes were sent
    before; it returns the delays of the copies that arrive.
    """

    def __init__(self, *, seed: int = 0, **world: object) -> None:
        self.world = World(self._fate, seed=seed, **world)  # type: ignore[arg-type]
        self.world.observers.append(self._see)
        self.judge: Callable[[int, int], list[float]] = lambda position, again: [ONE_WAY]
        self.judge_ack: Callable[[], list[float]] = lambda: [ONE_WAY]
        self.copies: dict[int, int] = {}
        self.repeated = 0
        self.acks = 0
        self.top = 0
        self._last: tuple[Stack, Segment] | None = None
        self.cuts: list[float] = []
        self._within = False

    def _see(self, stack: Stack, wire: bytes) -> None:
        self._last = stack, header.parse(memoryview(wire)[20:])

    def _fate(self, rng: random.Random) -> list[float]:
        assert self._last is not None
        stack, segment = self._last
        if stack is self.world.b:
            self.acks += 1
            return self.judge_ack()
        if not segment.payload:
            return [ONE_WAY]
        position = (segment.seq - self.connection.iss - 1) & 0xFFFFFFFF
        again = self.copies.get(position, 0)
        self.copies[position] = again + 1
        self.repeated += position < self.top
        self.top = max(self.top, position + len(segment.payload))
        return self.judge(position, again)

    def without_sack(self) -> None:
        """The far end does not permit SACK."""

        def accept(stack: Stack, request: TcpRequest) -> None:
            request.sack_permitted = False
            stack.accept(request, self.world.now)

        self.world.on_request = accept

    def run(self, size: int, seconds: float = 600.0, check: bool = True) -> float:
        """Transfer `size` bytes; how many seconds passed until the last of them arrived."""
        world = self.world
        self.connection = connection = world.connect()
        transfer = Transfer(world, connection, ramp(size))
        sender = connection.sender
        start = world.now
        until = start + seconds
        while not transfer.eof and world.step(until):
            if check:
                consistent(connection)
            within = sender.recovery is not Recovery.NONE
            if within and not self._within:
                self.cuts.append(world.now)
            self._within = within
        assert transfer.received == ramp(size)
        self.arrived = world.now
        world.run(10, lambda: connection.state in (State.TIME_WAIT, State.CLOSED))
        assert connection.error is None
        return self.arrived - start


def consistent(connection: Connection) -> None:
    """The sums of the scoreboard are those of its records, and nothing is counted twice."""
    sender = connection.sender
    records = sender.records
    lost = sacked = flying = 0
    for record in records:
        assert not (record.lost and record.sacked)
        if record.lost:
            lost += record.size
        elif record.sacked:
            sacked += record.size
        else:
            flying += record.size
    assert (lost, sacked) == (records.lost_bytes, records.sacked_bytes)
    assert flying + lost + sacked == sender.flight or connection.state in (State.SYN_SENT, State.CLOSED)
    if records and connection.hot.snd_wnd:
        assert connection.hot.rto_deadline <= connection.hot.rto_at < float("inf")


FREE: dict[int, float] = {}


def free(size: int) -> float:
    """How long `size` bytes take without any loss."""
    if size not in FREE:
        FREE[size] = Path().run(size)
    return FREE[size]


MSS = 1448


@pytest.mark.rfc("8985", "6")
@pytest.mark.parametrize("victim", [0, 5, 9, 12, 20, 29, 40, 60])
def test_one_loss_costs_one_round_trip_and_one_retransmission(victim: int) -> None:
    """Requirements 9.1. The 70 segments go in three rounds of 10, 20, 40; any but the last three is lost."""
    size = 70 * MSS
    path = Path()
    path.judge = lambda position, again: [] if position == victim * MSS and not again else [ONE_WAY]
    took = path.run(size)
    assert path.repeated == 1
    assert len(path.cuts) == 1
    assert not path.connection.sender.timeouts
    if victim >= 30:
        # Everything is out when the loss is found: the repair takes a round trip.
        assert took <= free(size) + 1.25 * RTT


@settings(max_examples=60)
@given(st.sets(st.integers(30, 66), min_size=1, max_size=20), st.integers(0, 100))
def test_k_losses_in_a_window_cost_k_retransmissions_and_no_time_out(lost: set[int], seed: int) -> None:
    """Requirements 9.1: at most k + 1, one cut, no RTO as long as three later segments arrive."""
    path = Path(seed=seed)
    path.judge = lambda position, again: [] if position // MSS in lost and not again else [ONE_WAY]
    path.run(70 * MSS)
    assert len(lost) <= path.repeated <= len(lost) + 1
    assert len(path.cuts) == 1
    assert not path.connection.sender.timeouts
    assert path.connection.sender.episode.kind is Recovery.NONE


@pytest.mark.rfc("8985", "7")
@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("total", [4, 10, 30])
def test_a_lost_tail_needs_no_time_out(total: int, lost: int) -> None:
    """Requirements 9.2: found within 2 SRTT + the delayed ACK, by the probe."""
    size = total * MSS
    path = Path()
    path.judge = lambda position, again: [] if position >= (total - lost) * MSS and not again else [ONE_WAY]
    took = path.run(size)
    sender = path.connection.sender
    assert sender.probes >= 1
    assert not sender.timeouts
    assert path.repeated <= lost
    # 2 SRTT (plus the ACK delay of a lone segment), the repair, and one more for each that PRR holds back.
    assert took <= free(size) + 2.5 * RTT + 0.2 + RTT * lost


@pytest.mark.rfc("8985", "4.4")
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_retransmission_that_is_lost_needs_no_time_out(times: int) -> None:
    """Requirements 9.2, second half: segment 40 is lost with its first `times` retransmissions."""
    size = 4000 * MSS
    path = Path()
    path.judge = lambda position, again: [] if position == 40 * MSS and again <= times else [ONE_WAY]
    path.run(size)
    assert path.copies[40 * MSS] == times + 2
    assert path.repeated == times + 1
    assert not path.connection.sender.timeouts
    assert len(path.cuts) == 1


@pytest.mark.rfc("8985", "6.2")
def test_reordering_within_a_quarter_of_the_rtt_costs_no_cut_once_it_is_known() -> None:
    """Requirements 9.3: any data segment is up to min_RTT/4 late. After 200 segments nothing is cut any more,
    or the cut is taken back.
    """
    path = Path(seed=3)
    rng = random.Random(5)
    path.judge = lambda position, again: [ONE_WAY + rng.random() * RTT / 4 * 0.99]
    path.run(2000 * MSS)
    sender = path.connection.sender
    assert sender.rack.reordering_seen
    known = [when for when in path.cuts if when > path.arrived - 0.5 * (path.arrived - 1000)]
    assert len(known) <= sender.undone
    assert sender.congestion.ssthresh > 1 << 24, "slow start never ended"


@pytest.mark.rfc("8985", "6.2 step 1")
def test_the_smallest_round_trip_is_forgotten_when_the_path_has_become_longer() -> None:
    """2 ms, then 80 ms: a segment that is 15 ms late is within a quarter of the RTT once that is known."""
    size = 30 * MSS
    path = Path()
    path.judge = lambda position, again: [0.001]
    path.judge_ack = lambda: [0.001]
    path.connection = connection = path.world.connect()
    transfer = Transfer(path.world, connection, b"")
    transfer.feed = lambda: None  # type: ignore[method-assign]
    path.world.run(1, lambda: connection.established)

    def burst() -> int:
        before = connection.hot.retransmits
        late = iter(range(size))
        path.judge = lambda position, again: [0.04 + 0.015 * (next(late) == 5)]
        assert connection.send(bytes(size)) == size
        assert path.world.run(10, lambda: not connection.unacked)
        return connection.hot.retransmits - before

    connection.send(bytes(100))
    path.world.run(1)
    assert connection.sender.rtt.min_rtt == pytest.approx(0.002)
    path.judge_ack = lambda: [0.04]
    burst()
    assert connection.sender.rtt.min_rtt == pytest.approx(0.002), "one slow round is no new path"
    path.world.run(MIN_RTT_MEMORY)
    burst()
    assert connection.sender.rtt.min_rtt == pytest.approx(0.08)
    assert burst() == 0


@pytest.mark.rfc("8985", "6.2")
@pytest.mark.parametrize("distance", [3, 10, 20])
def test_swapped_segments_keep_goodput(distance: int) -> None:
    """Requirements 9.3: every 50th segment is late by `distance` places; goodput >= 80 %."""
    size = 3000 * MSS
    path = Path()
    count = 0

    def judge(position: int, again: int) -> list[float]:
        nonlocal count
        count += 1
        place = ONE_WAY + count % 1000 * 1e-5
        return [place + distance * 1e-4] if count % 50 == 0 else [place]

    path.judge = judge
    assert path.run(size, check=False) <= free(size) / 0.8 + 0.02


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_lost_acks_cost_little(loss: float) -> None:
    """Requirements 9.9: 30 % of the ACKs lost, goodput at least 80 %."""
    size = 3000 * MSS
    path = Path()
    rng = random.Random(9)
    path.judge_ack = lambda: [] if path.acks > 3 and rng.random() < loss else [ONE_WAY]
    took = path.run(size, check=False)
    assert took <= free(size) / 0.8 + 0.25
    assert path.repeated <= 10


@pytest.mark.parametrize("loss", [0.01, 0.03])
def test_random_loss_causes_no_storm_of_time_outs(loss: float) -> None:
    rng = random.Random(11)
    path = Path()
    dropped = 0

    def judge(position: int, again: int) -> list[float]:
        nonlocal dropped
        if rng.random() < loss:
            dropped += 1
            return []
        return [ONE_WAY]

    path.judge = judge
    path.run(3000 * MSS)
    timeouts = path.connection.sender.timeouts
    assert dropped > 10
    assert timeouts <= 1 + dropped // 20
    assert path.repeated <= 1.1 * dropped + 5


@settings(max_examples=60)
@given(
    st.floats(0, 0.25),
    st.floats(0, 0.3),
    st.sampled_from([0.0, 0.001, 0.02, 0.1]),
    st.integers(0, 120_000),
    st.integers(0, 2**32),
    st.sampled_from([576, 1500, 9000, 65520]),
    st.booleans(),
)
def test_any_path_that_lets_something_through_conserves_bytes(
    loss: float, double: float, jitter: float, size: int, seed: int, mtu: int, sack: bool
) -> None:
    """Requirements 9.11: what arrives is what was sent, and at every instant the sums agree.

    With 25 % of loss both ways a segment or its ACK fails in 44 % of the tries; 15 in a row, after which a
    connection is given up, are one in 200,000, and a transfer has a few dozen occasions for that.
    """
    path = Path(seed=seed, mtu=mtu)
    if not sack:
        path.without_sack()
    rng = random.Random(seed)

    def fate(*_: int) -> list[float]:
        if rng.random() < loss:
            return []
        return [ONE_WAY + rng.random() * jitter for _ in range(2 if rng.random() < double else 1)]

    path.judge = path.judge_ack = fate
    path.run(size, 3600.0)
    path.world.run(200)
    assert not path.world.a.connections and not path.world.b.connections
    assert path.world.a.send_pool.used == path.world.b.receive_account.used == 0
