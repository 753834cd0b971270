"""Time-outs (RFC 6298), loss recovery (RFC 5681, 6582, 3042) and the congestion window."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.tcp.peer import MOD, Peer, Wire, established, ramp, syn_received, syn_sent
from tunstack.packet import Packet
from tunstack.tcp.congestion.base import AckBatch
from tunstack.tcp.congestion.newreno import NewReno, initial_window
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.rtt import RttEstimator
from tunstack.tcp.send import MAX_TRIES
from tunstack.tcp.states import State

pytestmark = pytest.mark.usefixtures("isns")

MSS = 1460


def feed(peer: Peer, limit: int = 1 << 30) -> None:
    """Keep the send queue full."""
    if room := min(limit, peer.conn.send_room()):
        peer.conn.send(ramp(room))


def grown(cwnd_segments: int, **options: Any) -> tuple[Peer, int]:
    """A peer with at least `cwnd_segments` in flight and the number of the first of them; cwnd exact."""
    peer = established(**options)
    una = 1
    feed(peer)
    peer.pump()
    peer.advance(0.1)
    flight = peer.payload(peer.take())
    while flight < cwnd_segments * MSS:
        una += flight
        peer.send("A", 1, una)
        feed(peer)
        peer.pump()
        flight = peer.payload(peer.take())
        peer.advance(0.1)
    peer.take()
    return peer, una


# RFC 6298


@pytest.mark.rfc("6298", "2")
@pytest.mark.rfc("9293", "MUST-18")
def test_the_estimator_follows_the_formulas() -> None:
    rtt = RttEstimator()
    assert rtt.current == 1.0
    rtt.sample(0.8, 0.0)
    assert (rtt.srtt, rtt.rttvar) == (0.8, 0.4)
    assert rtt.current == pytest.approx(0.8 + 4 * 0.4)
    srtt, rttvar = 0.8, 0.4
    for sample in (1.0, 0.5, 0.5, 3.0, 0.7):
        rttvar = 0.75 * rttvar + 0.25 * abs(srtt - sample)
        srtt = 0.875 * srtt + 0.125 * sample
        rtt.sample(sample, 0.0)
        assert [rtt.srtt, rtt.rttvar] == pytest.approx([srtt, rttvar])
        assert rtt.current == pytest.approx(srtt + 4 * rttvar)
    for _ in range(200):
        rtt.sample(0.001, 0.0)
    assert rtt.current == pytest.approx(0.001 + 0.2), "the variance counts as 200 ms at least"
    for _ in range(200):
        rtt.sample(0.5, 0.0)
    assert rtt.current == pytest.approx(0.5 + 0.2), "above the RTT as well"
    for _ in range(20):
        rtt.timed_out()
    assert rtt.current == 60.0, "the upper bound (2.5: at least 60 s)"


@pytest.mark.rfc("9293", "SHLD-11")
@pytest.mark.rfc("6298", "2.5")
@pytest.mark.rfc("6298", "5.6")
@pytest.mark.rfc("6298", "5.4")
@pytest.mark.rfc("6298", "5.5")
@pytest.mark.rfc("9293", "MUST-20")
def test_time_outs_double_up_to_a_minute_and_end_after_r2() -> None:
    peer = established()
    peer.write(b"lost")
    peer.take()
    start = peer.now
    gaps = []
    while not peer.conn.closed:
        gaps.append(peer.until_output(100))
        wire = peer.take()[0]
        if wire.flags & 4:
            break
        assert (wire.seq, wire.data) == (1, b"lost")
    assert len(gaps) == MAX_TRIES + 1
    assert 100 <= peer.now - start <= 1000
    assert peer.conn.error is CloseReason.TIMEOUT
    for before, after in itertools.pairwise(gaps[:-1]):
        assert after == pytest.approx(min(60, 2 * before))


@pytest.mark.rfc("6298", "5.3")
def test_an_ack_of_new_data_restarts_the_timer() -> None:
    peer = established()
    peer.advance(0.1)
    peer.write(ramp(2 * MSS))
    peer.take()
    peer.advance(0.15)
    peer.send("A", 1, 1 + MSS)
    rto = peer.conn.sender.rtt.current
    assert peer.until_output(10) == pytest.approx(rto, abs=0.002)
    peer.expect("A", seq=1 + MSS)


@pytest.mark.rfc("6298", "5.3")
def test_the_timer_restarts_with_the_rto_that_its_ack_has_measured() -> None:
    peer = established()
    for acked in (1, 2):
        for _ in (1, 2):
            peer.write(ramp(MSS))
            peer.take()
        before = peer.conn.sender.rtt.current
        peer.advance(0.19)
        peer.send("A", 1, 1 + acked * MSS)
    rto = peer.conn.sender.rtt.current
    assert rto > before + 0.1
    assert peer.until_output(10) == pytest.approx(rto, abs=0.002)


@pytest.mark.rfc("6298", "5.2")
def test_with_nothing_outstanding_no_timer_runs() -> None:
    peer = established()
    peer.write(ramp(MSS))
    peer.take()
    peer.send("A", 1, 1 + MSS)
    assert peer.stack.next_timeout() is None


@pytest.mark.rfc("6298", "3 Karn")
def test_a_retransmitted_segment_gives_no_sample() -> None:
    peer = established()
    peer.write(b"x")
    peer.take()
    before = peer.conn.sender.rtt.srtt
    peer.until_output(5)
    peer.take()
    peer.advance(0.0001)
    peer.send("A", 1, 2)
    assert peer.conn.sender.rtt.srtt == before


@pytest.mark.rfc("6298", "3 Karn")
@pytest.mark.rfc("9293", "MUST-18")
@pytest.mark.parametrize("timestamps", [False, True])
def test_a_path_that_became_slow_is_learned_in_spite_of_karns_rule(timestamps: bool) -> None:
    """RFC 6298 section 5: the backed-off RTO stays until a new sample. Otherwise no segment could ever be
    measured once the RTT exceeds the RTO, and each would be sent twice for ever.
    """
    peer = established(timestamps=timestamps)
    for i in range(10):  # a fast path first
        peer.write(b"x")
        peer.take()
        peer.advance(0.001)
        peer.send("A", 1, 2 + i)
    assert peer.conn.sender.rtt.current < 0.3
    copies = []
    for i in range(10, 30):
        peer.write(b"y")
        first = peer.stamp(), peer.inbox[-1].stamps
        peer.advance(1.0)
        copies.append(len(peer.take()))
        echo = first[1][0] if first[1] else 0
        peer.send("A", 1, 2 + i, ts=(peer.stamp(), echo) if timestamps else None)
    assert copies[0] > 1
    assert copies[-10:] == [1] * 10
    assert peer.conn.sender.rtt.srtt == pytest.approx(1.0, rel=0.5)


@pytest.mark.rfc("7323", "4.1 RTTM")
def test_timestamps_measure_retransmissions_too() -> None:
    peer = established(timestamps=True)
    peer.write(b"x")
    peer.take()
    peer.until_output(5)
    again = peer.take()[0]
    assert again.stamps is not None
    peer.advance(0.3)
    peer.send("A", 1, 2, ts=(peer.stamp(), again.stamps[0]))
    srtt = peer.conn.sender.rtt.srtt
    assert srtt is not None and 0.02 < srtt < 0.31


def test_an_echo_that_was_never_sent_is_no_sample() -> None:
    """A peer that echoes nonsense must not push the RTO anywhere but within its bounds."""
    for echo in (0, 1, 2**31, MOD - 1):
        peer = established(timestamps=True)
        peer.write(b"x")
        peer.take()
        peer.until_output(5)
        peer.take()
        peer.advance(0.01)
        peer.send("A", 1, 2, ts=(peer.stamp(), echo))
        assert 0.2 <= peer.conn.sender.rtt.current <= 60
        srtt = peer.conn.sender.rtt.srtt
        assert srtt is None or 0 <= srtt < 2


@pytest.mark.rfc("6298", "5.7")
@pytest.mark.parametrize("active", [True, False])
def test_after_a_lost_syn_data_starts_with_three_seconds(active: bool) -> None:
    peer = syn_sent() if active else syn_received()
    peer.advance(1.5)
    peer.take()
    if active:
        peer.send("SA", 0, 1, mss=1460)
    else:
        peer.send("A", 1, 1)
    peer.take()
    peer.write(b"x")
    peer.expect("A", seq=1, data=b"x")
    assert peer.until_output(10) == pytest.approx(3.0, abs=0.01)


@pytest.mark.rfc("6298", "2.2")
def test_the_handshake_gives_the_first_sample() -> None:
    peer = syn_received()
    peer.advance(0.4)
    peer.send("A", 1, 1)
    peer.write(b"x")
    peer.take()
    assert peer.until_output(10) == pytest.approx(0.4 + 4 * 0.2, abs=0.01)


# the congestion window


@pytest.mark.rfc("6928", "2")
@pytest.mark.parametrize(
    ("mss", "window"), [(48, 480), (536, 5360), (1460, 14600), (2190, 14600), (8960, 17920), (65480, 130960)]
)
def test_the_initial_window(mss: int, window: int) -> None:
    assert initial_window(mss) == window


@pytest.mark.rfc("6928", "2")
@pytest.mark.rfc("9293", "MUST-19")
def test_the_first_flight_is_the_initial_window() -> None:
    peer = established()
    peer.write(ramp(60_000))
    assert peer.payload(peer.take()) == 14600


@pytest.mark.rfc("6928", "2")
def test_after_a_syn_lost_twice_the_first_flight_is_one_segment() -> None:
    peer = syn_sent()
    peer.conn.send(ramp(30_000))
    peer.advance(4)
    assert len(peer.take()) == 2
    peer.send("SA", 0, 1, mss=1460)
    assert peer.payload(peer.take()) == MSS


@pytest.mark.rfc("5681", "3.1")
def test_slow_start_grows_by_what_is_acknowledged() -> None:
    peer = established()
    feed(peer)
    peer.pump()
    flight = peer.payload(peer.take())
    una = 1
    for _ in range(10):
        una += MSS
        peer.send("A", 1, una)
        feed(peer)
        peer.pump()
        new = peer.payload(peer.take())
        assert new == 2 * MSS
        flight += new - MSS
    assert flight == 20 * MSS
    peer.send("A", 1, una + 10 * MSS)
    feed(peer)
    peer.pump()
    assert peer.payload(peer.take()) == 20 * MSS, "a stretched ACK counts as what it acknowledges"


@pytest.mark.rfc("5681", "3.1")
def test_avoidance_grows_by_one_segment_in_a_round_trip() -> None:
    control = NewReno(MSS)
    control.ssthresh = control.cwnd = 20 * MSS
    for round_trip in range(1, 30):
        window = control.cwnd
        for _ in range(window // MSS):
            control.on_acks(AckBatch(MSS, 1, 0.1, True, window), 0.0)
        assert control.cwnd - 20 * MSS in (round_trip * MSS, (round_trip - 1) * MSS)
    assert control.cwnd >= 48 * MSS


@pytest.mark.rfc("5681", "3.2")
@pytest.mark.parametrize("segments", [10, 20, 40])
def test_the_third_duplicate_repeats_the_lost_segment_at_once(segments: int) -> None:
    peer, una = grown(segments)
    for i in range(3):
        assert not [w for w in peer.take() if w.seq == una], f"after {i} duplicates"
        peer.send("A", 1, una)
    again = [wire for wire in peer.take() if wire.seq == una]
    assert len(again) == 1 and len(again[0].data) == MSS


@pytest.mark.rfc("5681", "3.1 ssthresh")
@pytest.mark.rfc("5681", "3.2 step 2")
def test_ssthresh_is_half_of_the_flight() -> None:
    peer, una = grown(20)
    flight = peer.conn.sender.flight
    for _ in range(3):
        peer.send("A", 1, una)
    peer.take()
    assert peer.conn.sender.congestion.ssthresh in range(flight // 2 - MSS, flight // 2 + 2 * MSS)
    peer.send("A", 1, una + flight + 2 * MSS)
    assert peer.conn.hot.cwnd <= flight // 2 + 2 * MSS


@pytest.mark.rfc("3042", "2")
def test_two_duplicates_release_one_new_segment_each() -> None:
    peer, una = grown(10)
    feed(peer)
    edge = una + peer.conn.sender.flight
    for i in range(2):
        peer.send("A", 1, una)
        peer.expect("A", seq=edge + i * MSS, length=MSS)
        peer.expect_nothing()


@pytest.mark.rfc("5681", "2 duplicate acknowledgment")
def test_what_is_no_duplicate() -> None:
    """Data, another window, or nothing outstanding: none of these counts."""
    peer, una = grown(10)
    for i in range(5):
        peer.send("A", 1 + i, una, b"d")
    for i in range(5):
        peer.send("A", 6, una, win=60_000 - i)
    assert not [wire for wire in peer.take() if wire.seq == una]
    peer = established()
    for _ in range(10):
        peer.send("A", 1, 1)
    feed(peer)
    peer.pump()
    assert peer.payload(peer.take()) == 14600
    assert peer.conn.sender.congestion.ssthresh > 1 << 20


@pytest.mark.rfc("5681", "4.3")
@pytest.mark.rfc("6582", "3.2")
def test_several_losses_in_one_window_cost_one_cut_and_one_round_trip_each() -> None:
    peer, una = grown(20)
    flight = peer.conn.sender.flight
    feed(peer)
    top = una + flight
    lost = [una, una + 5 * MSS, una + 9 * MSS, una + 14 * MSS]
    have = {n for n in range(una, top, MSS) if n not in lost}
    repeated = []
    ssthresh = []

    def next_ack() -> int:
        n = una
        while n in have:
            n += MSS
        return n

    duplicates = len(have)
    for _ in range(duplicates):
        peer.send("A", 1, una)
    for _ in range(200):
        wires = peer.take()
        if not wires and next_ack() >= top:
            break
        for wire in wires:
            if wire.seq < top:
                repeated.append(wire.seq)
            have.add(wire.seq)
            peer.advance(0.001)
            peer.send("A", 1, next_ack())
            ssthresh.append(peer.conn.sender.congestion.ssthresh)
        peer.advance(0.01)
    assert repeated == lost, "each once, in order, and nothing else"
    assert len(set(ssthresh)) == 1
    assert not peer.conn.sender.rtt.backoff


@pytest.mark.rfc("6582", "3.2 step 1")
def test_duplicates_at_the_end_of_an_episode_start_no_new_one() -> None:
    """Segments that were repeated for nothing cause duplicates of the last ACK of the episode."""
    peer, una = grown(20)
    flight = peer.conn.sender.flight
    peer.until_output(5)  # RTO
    peer.take()
    top = una + flight
    peer.send("A", 1, top)  # everything had arrived: the time-out was spurious
    ssthresh = peer.conn.sender.congestion.ssthresh
    feed(peer)
    peer.pump()
    peer.take()
    for _ in range(5):
        peer.send("A", 1, top)
    assert peer.conn.sender.congestion.ssthresh == ssthresh
    assert not [wire for wire in peer.take() if wire.seq == top]


def test_fast_retransmit_works_after_two_gigabytes() -> None:
    """`recover` must not fall 2**31 behind, where sequence comparison turns around."""
    peer = established(shift=10, window=65535)
    hot = peer.conn.hot
    una = 1
    while una < 2**31 + (1 << 28):
        # The bulk is counted, not carried: what was acknowledged leaves no trace but the numbers.
        feed(peer)
        for packet in peer.stack.poll_transmit(peer.now):
            assert len(packet)
        una = (hot.snd_nxt - (peer.stack_iss or 0)) % MOD
        peer.stack.receive(packet_of(peer, una), peer.now)
        peer.stack.poll_events()
        peer.now += 0.001
        if una < 2**31 - (1 << 20):
            una = jump(peer, 2**30)
    feed(peer)
    peer.pump()
    peer.take()
    una = (hot.snd_una - (peer.stack_iss or 0)) % MOD
    for _ in range(3):
        peer.send("A", 1, una)
    assert [wire for wire in peer.take() if wire.seq == una]


def packet_of(peer: Peer, ack: int) -> Packet:
    return Packet(memoryview(bytearray(peer.build("A", 1, ack))))


def jump(peer: Peer, count: int) -> int:
    """Move an idle connection `count` bytes ahead, as if they had been sent and acknowledged."""
    sender = peer.conn.sender
    hot = peer.conn.hot
    assert hot.snd_una == hot.snd_nxt and not len(sender.records)
    sender.chain.clear()
    hot.snd_nxt = (hot.snd_nxt + count) % MOD
    sender.acknowledge(hot.snd_nxt, peer.now)
    sender.finish_batch(peer.now)
    hot.snd_wl2 = hot.snd_una
    return (hot.snd_nxt - (peer.stack_iss or 0)) % MOD


@pytest.mark.rfc("5681", "3.1 loss window")
def test_a_time_out_restarts_from_one_segment() -> None:
    peer, una = grown(20)
    flight = peer.conn.sender.flight
    peer.until_output(5)
    wires = peer.take()
    assert [(wire.seq, len(wire.data)) for wire in wires] == [(una, MSS)]
    assert peer.conn.sender.congestion.ssthresh == max(flight // 2, 2 * MSS)
    for _ in range(15):  # what was in flight behind the loss still causes duplicates
        peer.send("A", 1, una)
    assert peer.payload(peer.take()) == 0, "duplicates do not inflate the loss window"
    peer.advance(0.05)
    peer.send("A", 1, una + MSS)
    assert [wire.seq for wire in peer.take()] == [una + MSS, una + 2 * MSS]


@pytest.mark.rfc("5681", "3.1")
def test_a_repeated_time_out_does_not_halve_ssthresh_again() -> None:
    peer, _ = grown(20)
    peer.until_output(5)
    ssthresh = peer.conn.sender.congestion.ssthresh
    peer.take()
    peer.until_output(20)
    assert peer.conn.sender.congestion.ssthresh == ssthresh


@pytest.mark.rfc("5681", "4.1")
def test_an_idle_connection_restarts_from_the_initial_window() -> None:
    peer, una = grown(40)
    flight = peer.conn.sender.flight
    queue = peer.conn.unacked
    while peer.conn.unacked:
        peer.send("A", 1, una + flight)
        flight += peer.payload(peer.take())
    assert queue
    assert peer.conn.hot.cwnd > 20 * MSS
    peer.advance(10)
    feed(peer)
    peer.pump()
    assert peer.payload(peer.take()) <= 14600


@pytest.mark.rfc("7661", "4.1")
def test_a_flow_that_does_not_use_its_window_does_not_grow_it() -> None:
    peer = established()
    acked = 1
    for _ in range(100):
        peer.write(ramp(MSS))
        acked += MSS
        peer.advance(0.01)
        peer.send("A", 1, acked)
        peer.take()
    assert peer.conn.hot.cwnd == 14600


@pytest.mark.rfc("5681", "3.1")
def test_acks_of_single_bytes_do_not_grow_the_window_by_segments() -> None:
    """ACK division (RFC 3465): growth is by bytes."""
    peer = established()
    feed(peer)
    peer.pump()
    peer.take()
    before = peer.conn.hot.cwnd
    for i in range(1, 500):
        peer.send("A", 1, 1 + i)
    assert peer.conn.hot.cwnd <= before + 500


def test_a_reader_of_the_wire_sees_no_more_than_cwnd_and_no_gap() -> None:
    """Everything that leaves is contiguous, and the flight is never above cwnd plus limited transmit."""
    peer = established()
    top = 1
    una = 1
    for _ in range(60):
        feed(peer)
        peer.pump()
        wires: list[Wire] = peer.take()
        for wire in wires:
            assert wire.seq == top
            top += len(wire.data)
        assert top - una <= peer.conn.hot.cwnd
        una += min(3 * MSS, top - una)
        peer.advance(0.01)
        peer.send("A", 1, una)
    assert peer.state is State.ESTABLISHED
    assert peer.conn.hot.retransmits == 0
