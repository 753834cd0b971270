"""Requirements 9, assertions 1 to 4, 9 and 11: what loss, reordering and silence may cost at most.

The line has a one-way delay of 20 ms and no rate, so without loss a transfer takes as many round trips as
slow start has rounds: 10, 20, 40, … segments. A test says which copy of which segment is lost, or how late.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.link.shaping.delay import Constant, Delay, Uniform
from tunstack.link.shaping.impairments import LossWhere
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Memory, Stage
from tunstack.packet import Packet
from tunstack.tcp.endpoint import SYN_GIVE_UP
from tunstack.tcp.receiver import DELAYED_ACK
from tunstack.tcp.recovery import Recovery
from tunstack.tcp.send import MAX_TRIES
from tunstack.testing.packets import dissect
from tunstack.testing.simulator import Impairment, Network, Schedule, Transfer, What
from tunstack.testing.simulator.link import Direction

ONE_WAY = 0.02
RTT = 2 * ONE_WAY
MSS = 1448
"""Bytes of a full segment with timestamps at MTU 1500."""


def delay(seconds: float = ONE_WAY) -> Delay:
    return Delay(Constant(seconds), Memory(1 << 26))


class Line:
    """A transfer over a line; `lose(number, again)` says whether this copy of a data segment is lost."""

    def __init__(
        self,
        size: int,
        lose: Callable[[int, int], bool] = lambda number, again: False,
        *,
        forth: tuple[Stage, ...] | None = None,
        back: tuple[Stage, ...] | None = None,
    ) -> None:
        self.network = network = Network()
        client, server = network.host("client", "10.0.0.1"), network.host("server", "10.0.0.2")
        stages = (LossWhere(self._judge), *(forth or (delay(),)))
        network.link(client, server, stages, back or (delay(),))
        self._lose = lose
        self.copies: dict[int, int] = {}
        """How often each data segment was sent, by its number."""
        self.transfer = Transfer(client, server, size)
        self.sender = self.transfer.connection.sender
        self.cuts: list[float] = []
        """When episodes of recovery began."""
        self._within = False

    def _judge(self, packet: Packet) -> bool:
        if len(packet) <= 100:
            return False
        place = (int.from_bytes(packet.head[24:28], "big") - self.transfer.connection.iss - 1) & 0xFFFFFFFF
        number = place // MSS
        again = self.copies.get(number, 0)
        self.copies[number] = again + 1
        return self._lose(number, again)

    def run(self, seconds: float = 600.0) -> float:
        """How long it took."""
        assert self.network.run_until(self._look, seconds), "the transfer does not end"
        assert self.transfer.ended is not None and self.transfer.error is None
        return self.transfer.ended - self.transfer.started

    def _look(self) -> bool:
        within = self.sender.recovery is not Recovery.NONE
        if within and not self._within:
            self.cuts.append(self.network.now)
        self._within = within
        return self.transfer.done

    @property
    def repeated(self) -> int:
        """Retransmissions."""
        return sum(self.copies.values()) - len(self.copies)


FREE: dict[int, float] = {}


def free(segments: int) -> float:
    """How long so many segments take without loss."""
    if segments not in FREE:
        FREE[segments] = Line(segments * MSS).run()
    return FREE[segments]


def test_the_line_without_loss_takes_the_rounds_of_slow_start() -> None:
    """Segments after k rounds: 10 * (2 ** k - 1), so 70 take 3, the last of which is half a round trip."""
    assert free(70) == pytest.approx(RTT + 2 * RTT + ONE_WAY, abs=DELAYED_ACK)
    assert free(10) == pytest.approx(RTT + ONE_WAY)


# 1


@pytest.mark.parametrize("victim", [0, 9, 20, 30, 45, 60, 66])
def test_1_one_loss_costs_one_round_trip_and_one_retransmission(victim: int) -> None:
    """70 segments in rounds of 10, 20, 40: time <= free + RTT, one retransmission, no RTO, one cut.

    The time is that of a loss in the last round: an earlier one halves the rounds that follow.
    """
    line = Line(70 * MSS, lambda number, again: number == victim and not again)
    took = line.run()
    assert line.repeated == 1 and len(line.cuts) == 1 and not line.sender.timeouts
    if victim >= 30:
        assert took <= free(70) + 1.25 * RTT


@settings(max_examples=50)
@given(st.sets(st.integers(30, 66), min_size=1, max_size=20))
def test_1_k_losses_in_a_window_cost_k_retransmissions(lost: set[int]) -> None:
    """At most k + 1, one cut, no RTO, if three later segments arrive."""
    line = Line(70 * MSS, lambda number, again: number in lost and not again)
    line.run()
    assert len(lost) <= line.repeated <= len(lost) + 1
    assert len(line.cuts) == 1 and not line.sender.timeouts


# 2


@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("total", [4, 10, 30])
def test_2_a_lost_tail_is_found_by_the_probe(total: int, lost: int) -> None:
    """Found within 2 SRTT + the delay of an ACK (200 ms if one segment is out), and repaired without RTO."""
    line = Line(total * MSS, lambda number, again: number >= total - lost and not again)
    took = line.run()
    assert line.sender.probes >= 1 and not line.sender.timeouts
    assert line.repeated <= lost
    assert took <= free(total) + 2.5 * RTT + 0.2 + RTT * lost


@pytest.mark.parametrize("times", [1, 2, 3])
def test_2_a_lost_retransmission_needs_no_time_out(times: int) -> None:
    """Segment 40 of a long transfer is lost with its first `times` retransmissions: RACK finds each."""
    line = Line(1500 * MSS, lambda number, again: number == 40 and again <= times)
    line.run()
    assert line.copies[40] == times + 2 and line.repeated == times + 1
    assert not line.sender.timeouts and len(line.cuts) == 1


# 3


def test_3_reordering_within_a_quarter_of_the_rtt_costs_no_cut_once_it_is_known() -> None:
    """Each data segment is up to min_RTT / 4 late. In the second half nothing is cut, or it is taken back."""
    jitter = Delay(Uniform(ONE_WAY + RTT / 8, RTT / 8 * 0.99, random.Random(5)), Memory(1 << 26))
    line = Line(2000 * MSS, forth=(jitter,))
    took = line.run()
    assert line.sender.rack.reordering_seen and not line.sender.timeouts
    assert sum(when > took / 2 for when in line.cuts) <= line.sender.undone
    assert line.sender.congestion.ssthresh > 1 << 24, "slow start never ended"


@pytest.mark.parametrize("distance", [3, 10, 20])
def test_3_segments_that_are_3_to_20_places_late_keep_goodput(distance: int) -> None:
    """Every 50th packet comes after the `distance` ones behind it: goodput >= 80 % of that without.

    The line carries one packet in 100 microseconds, so that places are times.
    """
    count = 3000
    place = 1e-4
    bits = 8 * 1500 / place
    network = Network()
    times = []
    for late in (False, True):
        network = Network()
        client, server = network.host("client"), network.host("server")
        network.link(client, server, f"delay 20ms rate {bits / 1e6:.0f}mbit limit 10000", "delay 20ms")
        schedule = [
            Impairment("client>server", number, "delay", distance * place) for number in range(50, count, 50)
        ]
        Schedule(0, tuple(schedule) if late else ()).apply(network)
        transfer = Transfer(client, server, count * MSS)
        assert network.run_until(lambda: transfer.done, 60)  # noqa: B023
        times.append(network.now)
    assert times[1] <= times[0] / 0.8


# 4


def sent_at(way: Direction, fits: Callable[[Packet], bool]) -> list[float]:
    """Fills with the times at which packets that `fits` accepts are sent."""
    times: list[float] = []

    def observe(now: float, what: What, where: Direction, packet: Packet, reason: DropReason | None) -> None:
        if what is What.SENT and fits(packet):
            times.append(now)

    way.observers.append(observe)
    return times


def test_4_an_unanswered_syn_backs_off_from_one_second_to_sixty() -> None:
    """Sent after 0, 1, 3, 7, 15, 31, 63 s: gaps of 1, 2, 4, … and at most 60 s, until 180 s are over."""
    network = Network()
    client, server = network.host("client"), network.host("server")
    way = network.link(client, server, "loss 100%").forth
    times = sent_at(way, lambda packet: True)
    connection = client.connect(server, 80)
    assert network.run_until(lambda: connection.closed, 1000)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps == pytest.approx([min(60.0, 2.0**n) for n in range(len(gaps))]) and len(gaps) >= 6
    assert network.now == pytest.approx(SYN_GIVE_UP, abs=60)


def test_4_silence_doubles_the_time_out_up_to_sixty_seconds_until_it_is_given_up() -> None:
    """From the RTO (at least 200 ms) by twos to 60 s; given up with the 15th in a row (R2): after 462 s if
    the RTO is 200 ms, and no later than 15 min.
    """
    network = Network()
    client, server = network.host("client"), network.host("server")
    link = network.link(client, server, "delay 20ms")
    transfer = Transfer(client, server)
    network.run_until(lambda: transfer.received > 100_000)
    times = sent_at(link.forth, lambda packet: len(packet) > 100)
    link.cut()
    silent = network.now
    assert network.run_until(lambda: transfer.connection.closed, 1000)
    gaps = [b - a for a, b in itertools.pairwise(times) if b - a > 0.15]
    doubled = [b / a for a, b in itertools.pairwise(gaps)]
    # The first gaps are the probe's and what is left of the first RTO.
    assert doubled[2:] == pytest.approx(
        [2.0 if gap < 30 else min(60.0, 2 * gap) / gap for gap in gaps[2:-1]], rel=0.01
    )
    assert max(gaps) <= 60 and len(doubled) >= 6
    assert 0.2 * (2**8 - 1) + 60 * (MAX_TRIES - 8) <= network.now - silent <= 60 * MAX_TRIES


# 9


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_9_lost_acks_cost_little(loss: float) -> None:
    """30 % of the ACKs lost: goodput >= 80 %, and hardly anything is sent twice."""
    rng = random.Random(9)
    count = itertools.count()
    thin = LossWhere(lambda packet: next(count) > 3 and rng.random() < loss)
    line = Line(3000 * MSS, back=(thin, delay()))
    assert line.run() <= free(3000) / 0.8 + 0.25
    assert line.repeated <= 10


def test_9_stretch_acks_of_sixteen_segments_keep_slow_start_going() -> None:
    """One ACK in eight passes (each is for 2 segments) on a line with a rate: goodput >= 80 % of all of them.

    ABC (RFC 3465) with L = 2 doubles the window by half as much per such ACK at worst, so slow start lasts
    up to twice as many rounds, which are few beside the transfer.
    """
    times = []
    for one_in in (1, 8):
        count = itertools.count()
        network = Network()
        client, server = network.host("client"), network.host("server")
        thin = LossWhere(lambda packet: (number := next(count)) > 20 and number % one_in != 0)  # noqa: B023
        network.link(client, server, "delay 20ms rate 20mbit limit 100", (thin, delay()))
        transfer = Transfer(client, server, 6_000_000)
        assert network.run_until(lambda: transfer.done, 60)  # noqa: B023
        assert not transfer.connection.sender.timeouts
        times.append(network.now)
    assert times[1] <= times[0] / 0.8


# 11

SHAPES = st.builds(
    ShapeSpec,
    delay=st.sampled_from([0.0, 0.001, 0.02, 0.1]),
    jitter=st.sampled_from([0.0, 0.0, 0.001, 0.05]),
    loss=st.floats(0, 0.15),
    duplicate=st.floats(0, 0.3),
    corrupt=st.floats(0, 0.1),
)


@settings(max_examples=60)
@given(
    SHAPES,
    SHAPES,
    st.integers(0, 2**32),
    st.integers(0, 120_000),
    st.sampled_from(
        [("10.0.0.1", "10.0.0.2", 576), ("10.0.0.1", "10.0.0.2", 9000), ("fd00::1", "fd00::2", 1280)]
    ),
)
def test_11_any_line_that_lets_something_through_conserves_bytes(
    forth: ShapeSpec, back: ShapeSpec, seed: int, size: int, ends: tuple[str, str, int]
) -> None:
    """What arrives is what was sent, in order, once; both ends forget the connection; no packet is above
    the MTU; and when new data is sent the pipe is within cwnd, limited transmit and a probe, and the flight
    within the window that the peer has offered.
    """
    network = Network(seed)
    *addresses, mtu = ends
    client, server = (network.host(name, one, mtu=mtu) for name, one in zip("ab", addresses, strict=True))
    link = network.link(client, server, forth, back, mtu=mtu)
    transfer = Transfer(client, server, size)
    connection = transfer.connection
    hot, sender = connection.hot, connection.sender
    nxt = hot.snd_nxt

    def look() -> bool:
        nonlocal nxt
        grown, nxt = hot.snd_nxt != nxt, hot.snd_nxt
        if connection.established:
            assert sender.flight <= hot.snd_max_wnd + 1
            if grown and sender.recovery is Recovery.NONE:
                probe = hot.mss if sender.probe.end is not None else 0
                assert sender.pipe <= max(hot.cwnd + sender.inflation, hot.mss) + probe + 1
        return transfer.done

    assert network.run_until(look, 3600), f"{forth}; {back}; seed {seed}"
    assert transfer.received == size and transfer.error is None
    assert link.forth.drops[DropReason.PACKET_TOO_BIG] == link.back.drops[DropReason.PACKET_TOO_BIG] == 0
    network.run(300)
    assert not client.stack.connections and not server.stack.connections
    assert client.stack.send_pool.used == server.stack.receive_account.used == 0


def test_the_judge_sees_segments_by_their_numbers() -> None:
    """What the tests above rest on: segment n of a transfer begins at byte n * MSS, and is sent once."""
    line = Line(10 * MSS)
    seen = []
    line.network.directions["client>server"].observers.append(
        lambda now, what, way, packet, reason: (
            seen.append(dissect(packet.tobytes()).tcp.seq)
            if what is What.SENT and len(packet) > 100
            else None
        )
    )
    line.run()
    first = line.transfer.connection.iss + 1
    assert [(number - first) % 2**32 for number in seen] == [n * MSS for n in range(10)]
    assert line.copies == dict.fromkeys(range(10), 1)
