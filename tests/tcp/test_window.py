"""Flow control: delayed ACKs, silly windows on both sides, closed windows and their probes, shrinking."""

from __future__ import annotations

import itertools

import pytest

from tests.tcp.peer import Peer, Wire, close_wait, established, fin_wait_1, ramp
from tunstack.limits import Limits
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.send import MAX_TRIES
from tunstack.tcp.states import State

pytestmark = pytest.mark.usefixtures("isns")


def lay(stream: bytearray, wires: list[Wire]) -> None:
    """Put the payload of each segment where it belongs in `stream`, which begins with number 1."""
    for wire in wires:
        stream[wire.seq - 1 : wire.seq - 1 + len(wire.data)] = wire.data


# when an ACK is sent


@pytest.mark.rfc("9293", "SHLD-18")
@pytest.mark.rfc("9293", "MUST-40")
def test_a_small_segment_is_acknowledged_within_half_a_second() -> None:
    peer = established()
    peer.send("A", 1, 1, b"x")
    peer.expect_nothing()
    assert peer.until_output(1) < 0.5
    peer.expect("A", seq=1, ack=2, length=0)
    peer.advance(10)
    peer.expect_nothing()


@pytest.mark.rfc("9293", "SHLD-19")
def test_every_second_full_segment_is_acknowledged() -> None:
    peer = established()
    peer.send("A", 1, 1, ramp(1460))
    peer.send("A", 1461, 1, ramp(1460, 1460))
    peer.take()  # only now the stack knows how large the peer's segments are
    for i in range(2, 20, 2):
        peer.send("A", 1 + i * 1460, 1, ramp(1460))
        peer.expect_nothing()
        peer.send("A", 1 + (i + 1) * 1460, 1, ramp(1460))
        peer.expect("A", ack=1 + (i + 2) * 1460)
        peer.expect_nothing()


@pytest.mark.rfc("9293", "MUST-58")
@pytest.mark.rfc("9293", "MUST-59")
def test_a_batch_is_acknowledged_once() -> None:
    peer = established()
    for i in range(16):
        peer.hold("A", 1 + i * 1460, 1, ramp(1460))
    peer.release()
    peer.expect("A", ack=1 + 16 * 1460)
    peer.expect_nothing()


@pytest.mark.rfc("9293", "SHLD-19")
@pytest.mark.parametrize("segments", [2, 3, 44])
def test_a_super_segment_of_n_counts_as_n(segments: int) -> None:
    peer = established()
    peer.send("A", 1, 1, ramp(1460 * segments), gso=1460)
    peer.expect("A", ack=1 + 1460 * segments)
    peer.expect_nothing()


def test_data_carries_the_acknowledgement() -> None:
    peer = established()
    peer.hold("A", 1, 1, b"question")
    peer.conn.send(b"answer")
    peer.release()
    peer.expect("PA", seq=1, ack=9, data=b"answer")
    peer.advance(0.6)
    assert all(wire.data for wire in peer.take()), "only a retransmission may follow, no second ACK"


@pytest.mark.rfc("5681", "4.2")
def test_out_of_order_data_is_acknowledged_at_once_and_each() -> None:
    peer = established()
    peer.send("A", 1, 1, ramp(1000))
    peer.advance(1)
    peer.take()
    for i in range(2, 6):
        peer.send("A", 1 + i * 1000, 1, ramp(1000, i * 1000))
        peer.expect("A", ack=1001)
        peer.expect_nothing()
    for i in range(6, 10):
        peer.hold("A", 1 + i * 1000, 1, ramp(1000, i * 1000))
    peer.release()
    assert [wire.ack for wire in peer.take()] == [1001] * 4
    peer.send("A", 1001, 1, ramp(1000, 1000))
    peer.expect("A", ack=10001)
    peer.expect_nothing()
    assert peer.read() == ramp(10000)


@pytest.mark.rfc("5681", "4.2")
def test_filling_part_of_a_gap_is_acknowledged_at_once() -> None:
    peer = established()
    peer.send("A", 3001, 1, ramp(100, 3000))
    peer.take()
    peer.send("A", 1, 1, ramp(100))
    peer.expect("A", ack=101)


def test_a_train_with_a_hole_before_it_owes_a_duplicate_for_each_segment() -> None:
    peer = established()
    peer.send("A", 1461, 1, ramp(1460 * 5, 1460), gso=1460)
    assert [wire.ack for wire in peer.take()] == [1] * 5


# SWS avoidance, receiver


@pytest.mark.rfc("9293", "SHLD-14")
@pytest.mark.rfc("9293", "MUST-39")
@pytest.mark.parametrize("buffer", [4000, 20_000, 65_535])
def test_the_right_edge_moves_by_a_segment_or_half_the_buffer(buffer: int) -> None:
    peer = established(limits=Limits(receive_buffer=buffer))
    edge = peer.sent_by_stack[-1].window + 1
    assert edge == min(buffer, 65535) + 1
    seq = 1
    least = min(1460, buffer // 2)
    for size in [1460, 1460, 700] * 40:
        room = edge - seq
        size = min(size, room)
        if size:
            peer.send("A", seq, 1, bytes(size))
            seq += size
        peer.read(97)
        peer.advance(0.1)
        for wire in peer.take():
            new = wire.ack + wire.window
            assert new >= edge, "the window never shrinks (SHLD-14)"
            assert new == edge or new - edge >= least
            edge = new
    assert peer.conn.readable <= buffer


@pytest.mark.rfc("9293", "MUST-39")
def test_a_reader_who_takes_single_bytes_does_not_open_the_window_by_bytes() -> None:
    peer = established(limits=Limits(receive_buffer=4000))
    peer.send("A", 1, 1, bytes(4000), gso=1460)
    assert peer.take()[-1].window == 0
    updates = []
    for _ in range(4000):
        peer.read(1)
        updates += [wire.window for wire in peer.take()]
    assert len(updates) <= 3 and updates[0] >= 4000 // 3


def test_a_closed_window_reopens_without_being_asked() -> None:
    peer = established(limits=Limits(receive_buffer=10_000))
    peer.send("A", 1, 1, bytes(10_000), gso=1460)
    assert peer.expect("A", ack=10_001).window == 0
    peer.read()
    assert peer.expect("A", seq=1, ack=10_001).window == 10_000


@pytest.mark.rfc("9293", "MUST-66")
@pytest.mark.rfc("9293", "3.10.7.4 zero window")
def test_with_a_closed_window_acks_urgent_and_resets_still_count() -> None:
    peer = established(limits=Limits(receive_buffer=4000))
    peer.write(b"0123456789")
    peer.take()
    peer.send("A", 1, 1, bytes(4000), gso=1460)
    assert peer.expect("A", ack=4001).window == 0
    peer.send("A", 4001, 6, b"probe")
    assert peer.conn.unacked == 5 and peer.conn.readable == 4000
    assert peer.expect("A", ack=4001).window == 0
    peer.send("UA", 4001, 11, b"", urgent=1)
    assert peer.conn.unacked == 0
    peer.send("R", 4001)
    assert peer.conn.error is CloseReason.RESET


@pytest.mark.rfc("9293", "MUST-37")
def test_every_probe_of_our_closed_window_is_answered() -> None:
    peer = established(limits=Limits(receive_buffer=4000))
    peer.send("A", 1, 1, bytes(4000), gso=1460)
    peer.expect("A", ack=4001)
    for i in range(20):
        peer.advance(0.2 * (1 + i))
        # One new byte, or none with an old number, as stacks differ.
        peer.send("A", *((4001, 1, b"p") if i % 2 else (4000, 1, b"")))
        assert peer.expect("A", seq=1, ack=4001).window == 0
    assert peer.conn.readable == 4000


# SWS avoidance, sender


@pytest.mark.rfc("9293", "MUST-38")
def test_a_small_offer_is_not_filled_by_a_small_segment() -> None:
    peer = established()
    peer.write(ramp(30_000))
    sent = peer.payload(peer.take())
    peer.send("A", 1, 1 + sent, win=500)
    peer.expect_nothing()
    peer.send("A", 1, 1 + sent, win=1459)
    peer.expect_nothing()
    peer.send("A", 1, 1 + sent, win=1460)
    peer.expect("A", seq=1 + sent, length=1460)
    peer.expect_nothing()


@pytest.mark.rfc("9293", "MUST-38")
def test_half_of_the_largest_window_is_worth_a_segment() -> None:
    peer = established(window=1000)
    peer.write(ramp(5000))
    peer.expect("A", length=1000)
    peer.send("A", 1, 1001, win=499)
    peer.expect_nothing()
    peer.send("A", 1, 1001, win=500)
    peer.expect("A", seq=1001, length=500)


@pytest.mark.rfc("9293", "3.8.6.2.1 override")
def test_a_window_that_stays_small_is_used_after_a_while() -> None:
    peer = established()
    peer.write(ramp(20_000))
    sent = peer.payload(peer.take())
    peer.send("A", 1, 1 + sent, win=100)
    peer.expect_nothing()
    assert 0.1 <= peer.until_output(3) <= 3
    peer.expect("A", seq=1 + sent, length=100)


@pytest.mark.rfc("9293", "MUST-60")
@pytest.mark.rfc("9293", "MUST-61")
def test_the_last_segment_of_what_is_queued_is_pushed_at_once() -> None:
    peer = established()
    peer.write(ramp(4000))
    flags = [wire.flags & 8 for wire in peer.take()]
    assert flags == [0, 0, 8]
    peer.write(b"x")
    peer.expect("PA", data=b"x")


def test_the_window_is_never_overrun() -> None:
    peer = established(window=10_000)
    peer.write(ramp(60_000))
    seen = peer.payload(peer.take())
    assert 10_000 - 1460 < seen <= 10_000
    acked = 0
    while seen < 60_000:
        acked = min(seen, acked + 1460)
        peer.send("A", 1, 1 + acked)
        for wire in peer.take():
            assert wire.seq - 1 + len(wire.data) <= acked + 10_000
            seen = wire.seq - 1 + len(wire.data)


# the peer's window is closed


@pytest.mark.rfc("9293", "MUST-35")
@pytest.mark.rfc("9293", "MUST-36")
@pytest.mark.rfc("9293", "SHLD-29")
@pytest.mark.rfc("9293", "SHLD-30")
def test_a_closed_window_is_probed_at_growing_intervals_up_to_a_minute() -> None:
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.write(ramp(5000))
    peer.expect_nothing()
    gaps = []
    for _ in range(14):
        gaps.append(peer.until_output(100))
        wire = peer.take()[0]
        assert wire.seq == 1 and len(wire.data) <= 1
        peer.send("A", 1, 1, win=0)
        peer.expect_nothing()
    assert 0.2 <= gaps[0] <= 3
    for before, after in itertools.pairwise(gaps):
        assert after == pytest.approx(min(60, 2 * before), rel=0.05)
    assert gaps[-1] == pytest.approx(60)


@pytest.mark.rfc("9293", "MUST-37")
def test_an_hour_of_closed_window_is_survived_and_then_nothing_is_missing() -> None:
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.write(ramp(5000))
    end = peer.now + 3600
    while peer.now < end:
        peer.until_output(100)
        peer.take()
        peer.send("A", 1, 1, win=0)
    assert peer.conn.error is None
    peer.send("A", 1, 1)
    stream = bytearray(5000)
    lay(stream, peer.take())
    assert bytes(stream) == ramp(5000)


def test_a_closed_window_whose_probes_nobody_answers_is_given_up() -> None:
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.write(b"data")
    start = peer.now
    peer.advance(1000)
    assert peer.conn.error is CloseReason.TIMEOUT
    *probes, last = peer.take()
    assert len(probes) == MAX_TRIES and last.flags & 4
    assert last.time - start >= 100


@pytest.mark.rfc("9293", "MUST-37")
def test_a_closed_window_is_kept_if_one_probe_in_many_is_answered() -> None:
    """Probes and their answers get lost as everything else: what counts is tries, not time."""
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.write(b"data")
    for _ in range(3):
        for _ in range(MAX_TRIES):
            peer.until_output(100)
            peer.expect("A", seq=1, data=b"d")
        peer.send("A", 1, 1, win=0)
    peer.send("A", 1, 1, win=1000)
    assert b"".join(wire.data for wire in peer.take()) == b"data"


@pytest.mark.rfc("9293", "MUST-35")
def test_a_probe_that_was_accepted_is_followed_by_the_next_byte() -> None:
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.write(ramp(100))
    peer.until_output(3)
    peer.expect("A", seq=1, data=ramp(1))
    peer.send("A", 1, 2, win=0)
    peer.until_output(10)
    peer.expect("A", seq=2, data=ramp(1, 1))
    peer.send("A", 1, 3, win=1000)
    peer.expect("A", seq=3, data=ramp(98, 2))


def test_a_window_that_opens_after_a_refused_probe_gets_the_byte_again() -> None:
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.write(ramp(3000))
    peer.until_output(3)
    peer.take()
    peer.send("A", 1, 1, win=0)
    peer.send("A", 1, 1, win=65535)
    stream = bytearray(3000)
    lay(stream, peer.take())
    assert bytes(stream) == ramp(3000)


def test_a_window_that_closes_over_data_in_flight_is_probed_too() -> None:
    peer = established()
    peer.write(ramp(5000))
    peer.take()
    peer.send("A", 1, 1461, win=0)
    peer.expect_nothing()
    for _ in range(6):
        peer.until_output(100)
        assert all(wire.seq == 1461 for wire in peer.take())
        peer.send("A", 1, 1461, win=0)
    peer.send("A", 1, 1461, win=65535)
    stream = bytearray(5000)
    lay(stream, peer.take())
    for _ in range(5):
        peer.advance(1)
        lay(stream, peer.take())
    assert bytes(stream[1460:]) == ramp(3540, 1460)


def test_a_fin_reaches_a_peer_whose_window_is_closed() -> None:
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.shutdown()
    peer.advance(3)
    assert peer.state is State.FIN_WAIT_1
    assert any(wire.flags & 1 for wire in peer.take())
    peer.send("A", 1, 2, win=0)
    assert peer.conn.state is State.FIN_WAIT_2


@pytest.mark.rfc("9293", "SHLD-15")
@pytest.mark.rfc("9293", "SHLD-16")
@pytest.mark.rfc("9293", "MUST-34")
@pytest.mark.parametrize("window", [1, 100, 1460, 5000])
def test_a_window_that_shrinks_is_survived(window: int) -> None:
    """RFC 9293 3.8.6: no new data beyond the edge, what is inside is repeated, nothing is lost."""
    peer = established()
    peer.write(ramp(60_000))
    flight = peer.payload(peer.take())
    assert flight > 10_000
    peer.send("A", 1, 1461, win=window)
    fresh = [wire for wire in peer.take() if wire.seq > flight]
    assert not fresh, "the right edge lies behind what was sent"
    stream = bytearray(60_000)
    got = 1460
    stream[:got] = ramp(got)
    for _ in range(400):
        peer.advance(1.0)
        for wire in peer.take():
            offset = wire.seq - 1
            end = min(offset + len(wire.data), 1460 + window if got < 1460 + window else 60_000)
            if offset <= got < end:
                stream[got:end] = wire.data[got - offset : end - offset]
                got = end
        if got == 60_000:
            break
        peer.send("A", 1, 1 + got, win=max(0, 1460 + window - got) if got < 1460 + window else 65535)
    assert bytes(stream) == ramp(60_000)
    assert peer.conn.error is None


@pytest.mark.rfc("9293", "3.10.7.4 fifth check")
def test_an_old_segment_does_not_change_the_window() -> None:
    """RFC 9293 3.10.7.4: SND.WL1 and SND.WL2 keep old segments from doing that."""
    peer = established()
    peer.send("A", 1, 1, b"abc", win=5000)
    peer.send("A", 4, 1, b"", win=6000)
    peer.take()
    peer.send("A", 1, 1, b"abcd", win=100)
    assert peer.conn.hot.snd_wnd == 6000


@pytest.mark.rfc("9293", "3.10.7.4 fifth check")
def test_a_retransmission_that_acknowledges_more_tells_the_window() -> None:
    """It is older by its number and newer by its acknowledgement, without which the window means nothing."""
    peer = established()
    peer.send("A", 101, 1, b"the first 100 bytes are lost", win=5000)
    peer.take()
    peer.write(ramp(10_000))
    assert peer.payload(peer.take()) == 4380, "whole segments within 5000 bytes"
    peer.send("A", 1, 4381, ramp(100), win=620)
    assert peer.conn.hot.snd_wnd == 620
    assert peer.payload(peer.take()) == 0, "nothing is worth sending into 620 bytes"


def test_the_window_closes_at_the_limit_of_all_connections_together() -> None:
    limits = Limits(receive_memory=100_000, receive_buffer=80_000)
    peer = Peer(limits=limits)
    for port in range(1, 6):
        peer.stack_iss = None
        peer.send("S", 0, mss=1460, ports=(port, 80))
        peer.send("A", 1, 1, ports=(port, 80))
    for i in range(60):
        for port in range(1, 6):
            peer.send("A", 1 + i * 1400, 1, bytes(1400), ports=(port, 80))
    assert peer.stack.receive_account.used <= 100_000
    assert peer.stack.receive_account.used > 50_000


@pytest.mark.parametrize("start", [established, close_wait, fin_wait_1])
def test_nothing_is_sent_while_there_is_nothing_to_say(start: object) -> None:
    assert callable(start)
    peer = start()
    peer.take()
    if peer.state is not State.FIN_WAIT_1:
        peer.advance(100_000)
        peer.expect_nothing()
