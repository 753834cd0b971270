"""How connections end: by FIN from either side or both, by reset, after the user has gone."""

from __future__ import annotations

import pytest

from tests.testing.behaviour.conftest import Dut
from tunstack.tcp.endpoint import CloseReason
from tunstack.tcp.states import State


def test_the_device_closes_its_half(dut: Dut) -> None:
    peer = dut.start.fin_wait_2()
    peer.send("A", 1, 2, b"still here")
    peer.expect("A", 2, 11, within=0.5)
    assert peer.read() == b"still here" and not peer.at_end
    peer.send("FA", 11, 2)
    peer.expect("A", 2, 12)
    assert peer.state is State.TIME_WAIT


def test_the_peer_closes_its_half(dut: Dut) -> None:
    peer = dut.start.close_wait()
    assert peer.at_end
    peer.write(b"still here")
    peer.expect("A", 1, 2, b"still here")
    peer.send("A", 2, 11)
    peer.shutdown()
    peer.expect("FA", 11, 2)
    peer.send("A", 2, 12)
    assert peer.state is State.CLOSED and peer.error is None


def test_a_fin_goes_behind_the_data(dut: Dut) -> None:
    peer = dut.start.established(window=3)
    peer.write(b"abcdefgh")
    peer.expect("A", 1, 1, b"abc", within=1)
    peer.shutdown()
    peer.send("A", 1, 4, win=1000)
    peer.expect("FA", 4, 1, b"defgh")


def test_a_fin_with_data(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("FA", 1, 1, b"last words")
    peer.expect("A", 1, 12)
    assert peer.read() == b"last words" and peer.at_end
    assert peer.state is State.CLOSE_WAIT


def test_a_fin_that_came_too_early_waits_for_the_gap(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("FA", 4, 1, b"def")
    peer.expect("A", 1, 1)
    assert peer.state is State.ESTABLISHED
    peer.send("A", 1, 1, b"abc")
    peer.expect("A", 1, 8)
    assert peer.state is State.CLOSE_WAIT and peer.read() == b"abcdef"


def test_a_fin_is_repeated_until_it_is_acknowledged(dut4: Dut) -> None:
    peer = dut4.start.fin_wait_1()
    for _ in range(3):
        peer.expect("FA", 1, 1, within=5)
    peer.send("A", 1, 2)
    peer.expect_nothing(during=0.1)
    assert peer.state is State.FIN_WAIT_2


def test_both_close_at_once(dut: Dut) -> None:
    peer = dut.start.closing()
    peer.send("A", 2, 2)
    assert peer.state is State.TIME_WAIT
    peer.expect_nothing()


def test_a_fin_that_acknowledges_a_fin(dut: Dut) -> None:
    peer = dut.start.fin_wait_1()
    peer.send("FA", 1, 2)
    peer.expect("A", 2, 2)
    assert peer.state is State.TIME_WAIT


def test_a_fin_again_in_close_wait_is_acknowledged_again(dut: Dut) -> None:
    peer = dut.start.close_wait()
    peer.send("FA", 1, 1)
    peer.expect("A", 1, 2)
    assert peer.state is State.CLOSE_WAIT


def test_the_last_ack(dut: Dut) -> None:
    peer = dut.start.last_ack()
    peer.send("A", 2, 1)
    assert peer.state is State.LAST_ACK, "that does not acknowledge the FIN"
    peer.send("A", 2, 2)
    assert peer.state is State.CLOSED
    peer.expect_nothing()


def test_time_wait_answers_a_repeated_fin(dut: Dut) -> None:
    peer = dut.start.time_wait()
    peer.send("FA", 1, 2)
    peer.expect("A", 2, 2)
    assert peer.state is State.TIME_WAIT


def test_a_reset_in_time_wait(dut: Dut) -> None:
    peer = dut.start.time_wait()
    peer.send("R", 2)
    peer.expect_nothing()
    assert peer.state is dut.differs("RST in TIME-WAIT")


def test_a_syn_behind_all_numbers_opens_anew_out_of_time_wait(dut: Dut) -> None:
    peer = dut.start.time_wait()
    peer.iss += 100_000
    peer.send("S", 0, mss=1460)
    peer.expect("SA", 0, 1)
    peer.send("A", 1, 1)
    assert peer.state is State.ESTABLISHED


def test_a_syn_among_the_old_numbers_is_no_new_connection(dut: Dut) -> None:
    peer = dut.start.time_wait()
    peer.send("S", 0, mss=1460)
    peer.expect("A", 2, 2)
    assert peer.state is State.TIME_WAIT


def test_data_for_a_user_who_has_gone_is_reset(dut: Dut) -> None:
    peer = dut.start.established()
    peer.close()
    peer.expect("FA", 1, 1)
    peer.send("A", 1, 2)
    peer.send("A", 1, 2, b"anybody?")
    peer.expect(dut.differs("RST for data after close"), 2)
    assert peer.state is State.CLOSED


def test_a_user_who_goes_without_reading_resets(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("A", 1, 1, b"unread")
    peer.advance(0.5)
    peer.take()
    peer.close()
    peer.expect("RA", 1, 7)
    assert peer.state is State.CLOSED


def test_the_user_resets(dut: Dut) -> None:
    peer = dut.start.established()
    peer.write(b"abc")
    peer.expect("A", 1, 1, b"abc")
    peer.abort()
    peer.expect("RA", 4, 1)
    assert peer.state is State.CLOSED


def test_the_exact_reset_ends_the_connection(dut: Dut) -> None:
    peer = dut.start.established()
    peer.send("R", 1)
    peer.expect_nothing()
    assert peer.state is State.CLOSED and peer.error is CloseReason.RESET


@pytest.mark.parametrize("offset", [2, 1000, 30_000])
def test_a_reset_elsewhere_in_the_window_is_challenged(dut: Dut, offset: int) -> None:
    peer = dut.start.established()
    peer.send("R", offset)
    peer.expect("A", 1, 1, b"")
    assert peer.state is State.ESTABLISHED


@pytest.mark.parametrize("offset", [0, -1000, 1_000_000, 2**31])
def test_a_reset_outside_the_window_is_nothing(dut: Dut, offset: int) -> None:
    peer = dut.start.established()
    peer.send("R", offset)
    peer.send("RA", offset, 1)
    peer.expect_nothing()
    assert peer.state is State.ESTABLISHED and peer.error is None


@pytest.mark.parametrize("state", [State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING])
def test_the_exact_reset_ends_a_closing_connection(dut: Dut, state: State) -> None:
    peer = dut.start.of(state)()
    peer.send("R", 2 if state is State.CLOSING else 1)
    peer.expect_nothing()
    assert peer.state is State.CLOSED


@pytest.mark.parametrize("seq", [0, 1, 1000, 2**31])
def test_a_syn_in_the_middle_is_challenged(dut: Dut, seq: int) -> None:
    peer = dut.start.established()
    peer.send("S", seq, mss=1460)
    peer.expect("A", 1, 1, b"")
    peer.expect_nothing()
    assert peer.state is State.ESTABLISHED
