"""How connections are opened, refused and given up."""

from __future__ import annotations

import pytest

from tests.testing.behaviour.conftest import Dut
from tunstack.tcp.endpoint import CloseReason
from tunstack.tcp.states import State
from tunstack.testing.checkers import ANY, between, payload, tcp
from tunstack.testing.packets import SACK_PERMITTED, TcpOption


def test_options_that_are_offered_are_agreed_upon(dut: Dut) -> None:
    peer = dut.peer(timestamps=True, sack=True)
    peer.send("S", mss=1460, shift=2, ts=(77, 0))
    answer = peer.expect("SA", 0, 1, b"", mss=dut.mss, shift=between(0, 14), sack_permitted=True)
    assert answer.stamps is not None and answer.stamps[1] == 77
    peer.send("A", 1, 1)
    peer.skip(tcp(seq=1, ack=1), payload(b""))  # the whole window, which that of a SYN cannot tell
    peer.write(b"hello")
    peer.expect("A", 1, 1, b"hello", stamps=(ANY, between(78, 2**32)))
    assert peer.state is State.ESTABLISHED


def test_options_that_are_not_offered_are_not_agreed_upon(dut: Dut) -> None:
    peer = dut.peer()
    peer.send("S", mss=1460)
    answer = peer.expect("SA", 0, 1, b"", mss=dut.mss, shift=False, stamps=False, sack_permitted=False)
    assert answer.window >= 536
    peer.send("A", 1, 1)
    peer.write(b"hello")
    peer.expect("A", 1, 1, b"hello", no_options=True)


def test_the_syn_of_an_active_open_offers_the_options(dut: Dut) -> None:
    peer = dut.peer()
    peer.connect()
    peer.expect("S", 0, data=b"", mss=dut.mss, shift=between(0, 14), sack_permitted=True, stamps=(ANY, 0))
    peer.send("SA", 0, 1, mss=1460, ts=(99, peer.last_stamp), options=(SACK_PERMITTED,))
    peer.expect("A", 1, 1, b"", stamps=(ANY, 99))
    assert peer.state is State.ESTABLISHED and peer.error is None


def test_an_unknown_option_is_passed_over(dut: Dut) -> None:
    peer = dut.peer()
    peer.send("S", options=(TcpOption(200, b"what"), TcpOption(253, b"exp!")), mss=1000)
    peer.expect("SA", 0, 1)
    peer.send("A", 1, 1, b"hello", options=(TcpOption(201, b""),))
    peer.expect("A", 1, 6, within=0.5)
    assert peer.read() == b"hello"


def test_syn_retransmission(dut4: Dut) -> None:
    peer = dut4.start.syn_sent()
    for interval in dut4.differs("SYN retransmission"):
        assert peer.until_output(3 * interval) == pytest.approx(interval, rel=0.15)
        peer.expect("S", 0)


def test_syn_ack_retransmission(dut4: Dut) -> None:
    peer = dut4.start.syn_received()
    for interval in (1, 2):
        assert peer.until_output(3 * interval) == pytest.approx(interval, rel=0.15)
        peer.expect("SA", 0, 1)


def test_nobody_listens(dut: Dut) -> None:
    peer = dut.peer(listen=False)
    peer.send("S", mss=1460)
    peer.expect("RA", 0, 1, b"", window=0, no_options=True)


def test_a_segment_to_nobody_is_reset_in_its_terms(dut: Dut) -> None:
    peer = dut.peer(listen=False)
    peer.send("A", 1, 12345, b"data")
    peer.expect("R", 12345, data=b"", window=0)
    peer.send("F", 7, data=b"abc")
    peer.expect("RA", 0, 11, b"")
    peer.send("R", 7)
    peer.send("RA", 7, 12345)
    peer.expect_nothing()


def test_a_refused_open_is_an_error(dut: Dut) -> None:
    peer = dut.start.syn_sent()
    peer.send("RA", 0, 1)
    assert peer.state is State.CLOSED and peer.error is CloseReason.REFUSED
    peer.expect_nothing()


@pytest.mark.parametrize(("flags", "ack"), [("R", None), ("RA", 0), ("RA", 2)])
def test_a_reset_that_does_not_acknowledge_the_syn_changes_nothing(
    dut: Dut, flags: str, ack: int | None
) -> None:
    peer = dut.start.syn_sent()
    peer.send(flags, 0, ack)
    if ack is not None and dut.differs("SYN again after a wrong ACK"):
        peer.expect("S", 0)
    peer.expect_nothing()
    assert peer.state is State.SYN_SENT and peer.error is None


@pytest.mark.parametrize("ack", [0, 2, 1000])
def test_a_syn_ack_with_a_wrong_number_is_reset(dut: Dut, ack: int) -> None:
    peer = dut.start.syn_sent()
    peer.send("SA", 0, ack, mss=1460)
    peer.expect("R", ack, data=b"")
    assert peer.state is State.SYN_SENT


def test_simultaneous_open(dut: Dut) -> None:
    peer = dut.start.syn_sent()
    peer.send("S", 0, mss=1460)
    peer.expect("SA", 0, 1)
    assert peer.state is State.SYN_RECEIVED
    peer.send("SA", 0, 1, mss=1460)
    assert peer.state is State.ESTABLISHED
    peer.take()
    peer.send("A", 1, 1, b"data")
    peer.expect("A", 1, 5, within=0.5)


def test_a_repeated_syn_is_answered_again(dut: Dut) -> None:
    peer = dut.start.syn_received()
    peer.send("S", 0, mss=1460)
    peer.expect("SA", 0, 1)


def test_a_reset_ends_an_open_without_a_word(dut: Dut) -> None:
    peer = dut.start.syn_received()
    peer.send("R", 1)
    peer.expect_nothing()
    assert peer.state is State.CLOSED
    peer.send("A", 1, 1)
    peer.expect("R", 1)


@pytest.mark.parametrize("ack", [0, 2])
def test_a_wrong_acknowledgment_of_the_syn_ack_is_reset(dut: Dut, ack: int) -> None:
    peer = dut.start.syn_received()
    peer.send("A", 1, ack)
    peer.expect("R", ack)


def test_the_last_ack_of_the_handshake_may_carry_data(dut: Dut) -> None:
    peer = dut.start.syn_received()
    peer.send("PA", 1, 1, b"early")
    peer.expect("A", 1, 6, within=0.5)
    assert peer.read() == b"early"


def test_data_behind_a_lost_ack_of_the_handshake_opens_too(dut: Dut) -> None:
    peer = dut.start.syn_received()
    peer.send("A", 4, 1, b"later")
    peer.expect("A", 1, 1)
    peer.send("A", 1, 1, b"abc")
    peer.expect("A", 1, 9, within=0.5)
    assert peer.read() == b"abclater"
