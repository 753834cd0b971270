"""What is done with segments that arrive: acknowledgments, windows, gaps, copies, timestamps."""

from __future__ import annotations

import pytest

from tests.testing.behaviour.conftest import Dut
from tunstack.tcp.states import State
from tunstack.testing.checkers import ANY
from tunstack.testing.peer import Peer, ramp

DELAYED_ACK = 0.5
"""Seconds; MUST-58 of RFC 9293."""


def test_a_delayed_ack_comes_in_time(dut: Dut) -> None:
    peer = dut.start.established()
    for n in range(4):
        peer.send("PA", 1 + 100 * n, 1, ramp(100, 100 * n))
        peer.expect("A", 1, 101 + 100 * n, b"", within=DELAYED_ACK)


def test_two_full_segments_are_acknowledged_at_once(dut: Dut) -> None:
    peer = dut.start.established()
    for n in range(0, 40, 2):
        peer.send("A", 1 + 1000 * n, 1, ramp(1000))
        peer.send("A", 1001 + 1000 * n, 1, ramp(1000))
        assert peer.read()
        ack = peer.take()[-1].ack
        assert ack >= 1001 + 1000 * n, "MUST-59: an ACK for at least every second full-sized segment"


def test_acks_ride_on_data(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("PA", 1, 1, b"question")
    peer.write(b"answer")
    found = peer.take()
    assert found[-1].data == b"answer" and found[-1].ack == 9


def test_a_gap_is_told_at_once(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("A", 101, 1, ramp(100, 100))
    peer.expect("A", 1, 1, b"")
    peer.send("A", 201, 1, ramp(100, 200))
    peer.expect("A", 1, 1, b"")
    peer.send("A", 1, 1, ramp(100))
    peer.expect("A", 1, 301, b"")
    assert peer.read() == ramp(300)


def test_sack_blocks(dut: Dut) -> None:
    peer = dut.start.established(sack=True)
    peer.send("A", 101, 1, ramp(100, 100))
    peer.expect("A", 1, 1, sack=((101, 201),))
    peer.send("A", 301, 1, ramp(100, 300))
    peer.expect("A", 1, 1, sack=((301, 401), (101, 201)))
    peer.send("A", 201, 1, ramp(50, 200))
    peer.expect("A", 1, 1, sack=((101, 251), (301, 401)))
    peer.send("A", 251, 1, ramp(50, 250))
    peer.expect("A", 1, 1, sack=((101, 401),))
    peer.send("A", 1, 1, ramp(100))
    peer.expect("A", 1, 401, sack=())
    assert peer.read() == ramp(400)


def test_no_sack_blocks_unless_permitted(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("A", 101, 1, ramp(100, 100))
    peer.expect("A", 1, 1, no_options=True)


def test_a_copy_is_told_by_dsack(dut: Dut) -> None:
    peer = dut.start.established(sack=True)
    peer.send("PA", 1, 1, ramp(100))
    peer.expect("A", 1, 101, within=DELAYED_ACK)
    peer.send("A", 1, 1, ramp(100))
    peer.expect("A", 1, 101, b"", sack=((1, 101),))
    assert peer.read() == ramp(100)


def test_a_copy_beyond_the_gap_is_told_by_dsack(dut: Dut) -> None:
    peer = dut.start.established(sack=True)
    peer.send("A", 101, 1, ramp(100, 100))
    peer.expect("A", 1, 1, sack=((101, 201),))
    peer.send("A", 101, 1, ramp(100, 100))
    peer.expect("A", 1, 1, sack=((101, 201), (101, 201)))


def test_an_old_segment_is_acknowledged_again(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("PA", 1, 1, ramp(100))
    peer.expect("A", 1, 101, within=DELAYED_ACK)
    peer.send("PA", 1, 1, ramp(100))
    peer.expect("A", 1, 101, b"")
    peer.send("PA", 51, 1, ramp(100, 50))
    peer.expect("A", 1, 151, b"", within=DELAYED_ACK)
    assert peer.read() == ramp(150)


def test_data_beyond_the_window_is_not_taken(dut: Dut) -> None:
    peer = dut.start.established()
    window = peer.sent_by_stack[-1].window
    peer.send("A", 1 + window + 1000, 1, b"far out")
    peer.expect("A", 1, 1, b"")
    peer.send("PA", 1, 1, b"here")
    peer.expect("A", 1, 5, within=DELAYED_ACK)
    assert peer.read() == b"here"


def fill(peer: Peer) -> int:
    """Send until the device's window is closed; the next number."""
    seq = 1
    window = peer.sent_by_stack[-1].window
    while window:
        size = min(1000, window)
        peer.send("A", seq, 1, ramp(size, seq - 1))
        seq += size
        peer.wait(DELAYED_ACK)
        last = peer.take()[-1]
        window = last.ack + last.window - seq
        assert seq < 8_000_000
    return seq


def test_a_closed_window_and_its_probe(dut: Dut) -> None:
    peer = dut.start.established()
    seq = fill(peer)
    for _ in range(2):
        peer.send("A", seq, 1, b"x")
        peer.expect("A", 1, seq, b"", window=0)
        peer.advance(0.6)
    peer.send("A", seq - 1, 1)
    peer.expect("A", 1, seq, b"", window=0)


def test_the_window_opens_when_the_user_reads(dut: Dut) -> None:
    peer = dut.start.established()
    seq = fill(peer)
    read = peer.read(10)
    peer.expect_nothing()
    read += peer.read()
    opened = peer.expect("A", 1, seq, b"")
    assert opened.window >= 1460
    assert read == ramp(seq - 1)
    peer.send("PA", seq, 1, b"more")
    peer.expect("A", 1, seq + 4, within=DELAYED_ACK)


def test_a_blind_ack_is_challenged(dut: Dut) -> None:
    peer = dut.start.established()
    peer.write(ramp(1000))
    peer.take()
    peer.send("A", 1, 1001)
    peer.send("A", 1, 1 - 2**30)
    peer.expect("A", 1001, 1, b"")


def test_an_old_ack_is_nothing(dut: Dut) -> None:
    peer = dut.start.established()
    for n in range(3):
        peer.write(ramp(100))
        peer.expect("A", 1 + 100 * n, 1)
        peer.send("A", 1, 101 + 100 * n)
    peer.send("A", 1, 101)
    peer.expect_nothing()
    assert peer.state is State.ESTABLISHED


def test_an_ack_of_what_was_not_sent(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("A", 1, 1000, b"data")
    peer.expect("A", 1, 1, b"")
    peer.expect_nothing()
    assert peer.read() == b""


def test_a_segment_without_ack_is_nothing(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("P", 1, data=b"data")
    peer.expect_nothing()
    assert peer.read() == b""


@pytest.mark.parametrize("bit", [40, 100, 13 * 8 + 4, 20 * 8 + 3])
def test_a_wrong_checksum_is_no_segment(dut: Dut, bit: int) -> None:
    peer = dut.start.established()
    peer.send("PA", 1, 1, b"data", flip=bit)
    peer.expect_nothing()
    peer.send("PA", 1, 1, b"data")
    peer.expect("A", 1, 5, within=DELAYED_ACK)


def test_timestamps_echo_the_segment_that_advanced_the_window(dut: Dut) -> None:
    peer = dut.start.established(timestamps=True)
    peer.send("PA", 1, 1, b"abc", ts=(peer.stamp() + 10, peer.last_stamp))
    first = peer.expect("A", 1, 4, within=DELAYED_ACK)
    assert first.stamps is not None
    newest = first.stamps[1]
    peer.send("A", 10, 1, b"later", ts=(newest + 10, peer.last_stamp))
    peer.expect("A", 1, 4, stamps=(ANY, newest))
    peer.send("A", 4, 1, b"defghi", ts=(newest + 5, peer.last_stamp))
    peer.expect("A", 1, 15, stamps=(ANY, newest + 5))


def test_an_old_timestamp_is_an_old_segment(dut: Dut) -> None:
    peer = dut.start.established(timestamps=True)
    peer.send("PA", 1, 1, b"abc")
    peer.expect("A", 1, 4, within=DELAYED_ACK)
    peer.send("PA", 4, 1, b"old", ts=(peer.stamp() - 5000, peer.last_stamp))
    peer.expect("A", 1, 4, b"")
    peer.send("PA", 4, 1, b"new")
    peer.expect("A", 1, 7, within=DELAYED_ACK)
    assert peer.read() == b"abcnew"


def test_a_segment_without_the_timestamp_that_was_agreed_upon(dut: Dut) -> None:
    peer = dut.start.established(timestamps=True)
    peer.send("PA", 1, 1, b"bare", ts=None)
    peer.advance(DELAYED_ACK)
    assert (peer.read() == b"bare") is dut.differs("segments without the timestamp")


def test_urgent_data(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("PAU", 1, 1, b"abc", urgent=3)
    peer.expect("A", 1, 4, within=DELAYED_ACK)
    peer.send("PA", 4, 1, b"def")
    peer.expect("A", 1, 7, within=DELAYED_ACK)
    found = peer.read()
    assert found + peer.read() == dut.differs("urgent data")


def test_data_after_a_fin_is_not_taken(dut: Dut) -> None:
    peer = dut.start.close_wait()
    peer.send("PA", 2, 1, b"more")
    peer.advance(DELAYED_ACK)
    assert peer.read() == b"" and peer.at_end
    assert all(wire.ack == 2 for wire in peer.take())


def test_pieces_that_overlap(dut: Dut) -> None:
    peer = dut.start.established()
    for start, size in ((50, 100), (120, 100), (30, 30), (219, 80), (0, 40)):
        peer.send("PA", 1 + start, 1, ramp(size, start))
    peer.wait(DELAYED_ACK)
    assert peer.take()[-1].ack == 300
    assert peer.read() == ramp(299)
