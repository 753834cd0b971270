"""What is sent, how much of it, and what is sent again."""

from __future__ import annotations

import itertools

import pytest

from tests.testing.behaviour.conftest import Dut
from tunstack.tcp.states import State
from tunstack.testing.checkers import ANY
from tunstack.testing.peer import Peer, ramp

RTT = 0.01
"""Seconds; what the path is said to take."""


def acked(peer: Peer, size: int = 1000, *, win: int | None = None) -> int:
    """Let the device measure the path; its next number. `win`: the window from then on."""
    peer.write(ramp(size))
    peer.advance(RTT)
    peer.take()
    peer.send("A", 1, 1 + size, win=win)
    peer.expect_nothing()
    return 1 + size


@pytest.mark.parametrize("mss", [536, 1000, 1460])
def test_the_peers_mss_is_honoured(dut: Dut, mss: int) -> None:
    peer = dut.start.established(mss=mss)
    peer.write(ramp(4 * mss))
    sizes = [len(wire.data) for wire in peer.take()]
    assert max(sizes) == min(mss, dut.mss)
    assert sum(sizes) <= 4 * mss


def test_without_an_mss_option_segments_are_small(dut: Dut) -> None:
    peer = dut.start.established(mss=None)
    peer.write(ramp(4000))
    wanted = 536 if dut.family == 4 else 1220
    assert max(len(wire.data) for wire in peer.take()) == wanted


def test_options_count_against_the_mss(dut: Dut) -> None:
    peer = dut.start.established(mss=1000, timestamps=True)
    peer.write(ramp(4000))
    assert max(len(wire.data) for wire in peer.take()) == 1000 - 12


def test_the_initial_window(dut: Dut) -> None:
    peer = dut.start.established(mss=1000)
    peer.write(ramp(30_000))
    assert peer.payload(peer.take()) == 10_000


def test_the_peers_window_is_honoured(dut: Dut) -> None:
    peer = dut.start.established(window=2500)
    peer.write(ramp(9000))
    assert 2500 - dut.mss < peer.payload(peer.take()) <= 2500


def test_the_window_is_scaled(dut: Dut) -> None:
    peer = dut.start.established(shift=3, mss=500, window=600)
    peer.write(ramp(9000))
    assert 4800 - 500 < peer.payload(peer.take()) <= 4800


def test_a_closed_window_is_probed(dut4: Dut) -> None:
    peer = dut4.start.established()
    number = acked(peer, win=0)
    peer.write(b"waiting")
    peer.expect_nothing()
    seq, data = dut4.differs("zero window probe")
    for _ in range(3):
        peer.expect("A", number + seq, 1, data, within=3)
        peer.send("A", 1, number, win=0)
    peer.send("A", 1, number, win=1000)
    peer.wait(1)
    stream = bytearray(7)
    for wire in peer.take():
        stream[wire.seq - number : wire.seq - number + len(wire.data)] = wire.data
    assert stream == b"waiting"


def test_probes_back_off(dut4: Dut) -> None:
    peer = dut4.start.established()
    number = acked(peer, win=0)
    peer.write(b"waiting")
    times = []
    for _ in range(4):
        peer.until_output(5)
        times.append(peer.take()[0].time)
        peer.send("A", 1, number, win=0)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[1] > 1.5 * gaps[0] and gaps[2] > 1.5 * gaps[1]
    assert peer.state is State.ESTABLISHED


def test_a_window_that_opens_lets_data_go(dut: Dut) -> None:
    peer = dut.start.established(window=1000)
    peer.write(ramp(3000))
    assert peer.payload(peer.take()) == 1000
    peer.send("A", 1, 1001)
    found = peer.take()
    assert found[0].seq == 1001 and peer.payload(found) == 1000


def test_a_little_window_is_not_filled_at_once(dut4: Dut) -> None:
    peer = dut4.start.established()
    number = acked(peer, win=100)
    peer.write(ramp(5000))
    peer.expect_nothing(during=0.05)
    found = peer.expect("A", number, 1, within=2)
    assert len(found.data) == 100, "the override (SHLD-30 of RFC 9293)"


def test_retransmission_backs_off(dut4: Dut) -> None:
    peer = dut4.start.established()
    acked(peer)
    peer.write(ramp(500))
    first = peer.expect("A", 1001)
    times = [first.time]
    for _ in range(4):
        times.append(peer.expect("A", 1001, 1, ramp(500), within=5).time)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert 0.2 <= gaps[0] < 1
    for one, next_one in itertools.pairwise(gaps):
        assert next_one == pytest.approx(2 * one, rel=0.25)


def test_three_duplicate_acks_repeat_the_segment(dut: Dut) -> None:
    peer = dut.start.established(mss=1000)
    acked(peer)
    peer.write(ramp(8000))
    assert len(peer.take()) == 8
    for _ in range(2):
        peer.send("A", 1, 1001)
    assert not [wire for wire in peer.take() if wire.seq <= 1001]
    peer.send("A", 1, 1001)
    peer.expect("A", 1001, 1, ramp(1000))
    peer.send("A", 1, 9001)
    peer.expect_nothing()


def test_sack_repeats_the_hole_only(dut: Dut) -> None:
    peer = dut.start.established(mss=1000, sack=True)
    acked(peer)
    peer.write(ramp(8000))
    assert len(peer.take()) == 8
    peer.advance(RTT)
    for edge in (4001, 5001, 6001, 7001):
        peer.send("A", 1, 2001, sack=[(3001, edge)])
    again = [wire for wire in peer.take() if wire.seq < 8001]  # the last one may be probed
    assert [(wire.seq, len(wire.data)) for wire in again] == [(2001, 1000)]
    peer.send("A", 1, 9001)
    peer.expect_nothing()


def test_the_tail_is_probed_before_the_timer(dut4: Dut) -> None:
    peer = dut4.start.established(mss=1000, sack=True)
    acked(peer)
    peer.write(ramp(3000))
    assert len(peer.take()) == 3
    probe = peer.expect("A", 3001, 1, within=1)
    assert len(probe.data) == 1000, "RFC 8985 7.3: the last segment"
    peer.expect("A", 1001, 1, within=3)


def test_an_ack_of_the_probe_by_sack_repeats_the_rest(dut4: Dut) -> None:
    peer = dut4.start.established(mss=1000, sack=True)
    acked(peer)
    peer.write(ramp(3000))
    peer.take()
    peer.expect("A", 3001, 1, within=1)
    peer.send("A", 1, 2001, sack=[(3001, 4001)])
    peer.expect("A", 2001, 1, within=1)


def test_sack_beyond_what_was_sent_is_nothing(dut: Dut) -> None:
    peer = dut.start.established(mss=1000, sack=True)
    acked(peer)
    peer.write(ramp(3000))
    peer.take()
    for _ in range(4):
        peer.send("A", 1, 1001, sack=[(900_001, 901_001)])
    peer.send("A", 1, 4001)
    assert peer.write(b"on") == 2
    peer.expect("A", ANY, 1)
    assert peer.state is State.ESTABLISHED


def test_an_idle_peer_is_probed(dut4: Dut) -> None:
    peer = dut4.start.established()
    number = acked(peer)
    peer.keep_alive(1)
    assert peer.until_output(5) == pytest.approx(1, abs=0.4)
    peer.expect("A", number - 1, 1, b"")
    peer.send("A", 1, number)
    peer.expect_nothing()
    assert peer.state is State.ESTABLISHED


def test_a_probe_for_the_device_is_answered(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("A", 0, 1)
    peer.expect("A", 1, 1, b"")
    peer.send("A", 0, 1, b"x")
    peer.expect("A", 1, 1, b"")
