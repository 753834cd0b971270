"""Ending: half-close both ways, FIN with data and before data, TIME-WAIT, release, what the user is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.tcp.peer import MOD, Peer, close_wait, closing, established, fin_wait_2, last_ack, ramp, time_wait
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.send import MAX_TRIES
from tunstack.tcp.seq import lt
from tunstack.tcp.states import State

pytestmark = pytest.mark.usefixtures("isns")

MSL2 = 60.0


@pytest.mark.rfc("9293", "3.6 case 2")
def test_the_peer_closes_and_we_go_on_sending() -> None:
    peer = close_wait()
    assert peer.conn.receive_eof and peer.conn.writable
    for i in range(5):
        peer.write(ramp(1000, i * 1000))
        peer.expect("PA", seq=1 + i * 1000, ack=2, data=ramp(1000, i * 1000))
        peer.send("A", 2, 1001 + i * 1000)
    peer.shutdown()
    peer.expect("FA", seq=5001, ack=2)
    peer.send("A", 2, 5002)
    peer.expect_nothing()
    assert peer.conn.closed and peer.conn.error is None
    assert not peer.stack.connections, "the passive closer needs no TIME-WAIT"


@pytest.mark.rfc("9293", "3.6 case 1")
def test_we_close_and_the_peer_goes_on_sending() -> None:
    peer = fin_wait_2()
    for i in range(5):
        peer.send("A", 1 + i * 1000, 2, ramp(1000, i * 1000))
    peer.advance(0.5)
    assert peer.read() == ramp(5000)
    peer.take()
    peer.send("FA", 5001, 2, b"end")
    peer.expect("A", seq=2, ack=5005)
    assert peer.read() == b"end"
    assert peer.conn.receive_eof and peer.state is State.TIME_WAIT and peer.conn.error is None


@pytest.mark.rfc("9293", "3.6 case 3")
def test_both_close_at_once() -> None:
    peer = closing()
    peer.send("A", 2, 2)
    peer.expect_nothing()
    assert peer.state is State.TIME_WAIT


@pytest.mark.rfc("9293", "3.10.7.4 eighth check")
def test_fin_and_the_ack_of_ours_in_one_segment() -> None:
    peer = established()
    peer.shutdown()
    peer.expect("FA", seq=1)
    peer.send("FA", 1, 2)
    peer.expect("A", seq=2, ack=2)
    assert peer.state is State.TIME_WAIT


@pytest.mark.rfc("9293", "3.10.4")
def test_the_fin_follows_everything_queued_and_rides_on_the_last_segment() -> None:
    peer = established()
    peer.conn.send(ramp(3000))
    peer.conn.shutdown()
    peer.pump()
    peer.expect("A", seq=1, length=1460)
    peer.expect("A", seq=1461, length=1460)
    peer.expect("FPA", seq=2921, length=80)
    peer.expect_nothing()
    peer.send("A", 1, 3001)
    assert peer.state is State.FIN_WAIT_1, "all but the FIN is acknowledged"
    peer.send("A", 1, 3002)
    assert peer.conn.state is State.FIN_WAIT_2


@pytest.mark.rfc("9293", "3.10.4")
def test_the_fin_waits_until_the_windows_have_let_everything_out() -> None:
    peer = established()
    peer.conn.send(ramp(40_000))
    peer.conn.shutdown()
    peer.pump()
    flags: list[int] = []
    acked = 1
    while peer.inbox:
        for wire in peer.take():
            flags.append(wire.flags & 1)
            acked = wire.seq + len(wire.data)
        peer.send("A", 1, acked)
    assert flags == [0] * 27 + [1]
    assert peer.state is State.FIN_WAIT_1 and acked == 40_001


@pytest.mark.rfc("9293", "3.10.7.4 eighth check")
def test_a_fin_before_its_data_waits_for_it() -> None:
    peer = established()
    peer.send("FA", 1001, 1, b"tail")
    peer.expect("A", ack=1)
    assert peer.state is State.ESTABLISHED and not peer.conn.receive_eof
    peer.send("A", 501, 1, ramp(500, 500))
    peer.expect("A", ack=1)
    peer.send("A", 1, 1, ramp(500))
    peer.expect("A", ack=1006)
    assert peer.conn.state is State.CLOSE_WAIT
    assert not peer.conn.receive_eof, "not before everything is consumed (MUST-12)"
    assert peer.read() == ramp(1000) + b"tail"
    assert peer.conn.receive_eof


def test_a_bare_fin_before_its_data_waits_for_it() -> None:
    peer = established()
    peer.send("FA", 11, 1)
    peer.expect("A", ack=1)
    peer.send("A", 1, 1, b"0123456789")
    peer.expect("A", ack=12)
    assert peer.read() == b"0123456789" and peer.conn.receive_eof


@pytest.mark.rfc("9293", "MUST-12")
def test_the_user_can_tell_a_close_from_a_reset() -> None:
    peer = close_wait()
    assert peer.conn.receive_eof and peer.conn.error is None
    peer = established()
    peer.send("A", 1, 1, b"unread")
    peer.send("R", 7)
    assert peer.conn.error is CloseReason.RESET and not peer.conn.receive_eof
    assert peer.stack.receive_account.used == peer.stack.receive_pool.used == 0


@pytest.mark.rfc("9293", "MUST-12")
def test_data_before_an_orderly_end_stays_readable() -> None:
    peer = established()
    peer.conn.shutdown()
    peer.pump()
    peer.send("FA", 1, 2, b"last words")
    peer.advance(MSL2 + 1)
    assert peer.conn.closed and not peer.stack.connections
    assert not peer.conn.receive_eof
    assert peer.read() == b"last words"
    assert peer.conn.receive_eof and peer.conn.error is None
    assert peer.stack.receive_account.used == peer.stack.receive_pool.used == 0


@pytest.mark.rfc("9293", "3.8.1")
def test_a_lost_fin_is_sent_again() -> None:
    for start, seq, ack in ((established, 1, 1), (close_wait, 1, 2)):
        peer = start()
        peer.shutdown()
        peer.expect("FA", seq=seq, ack=ack)
        peer.until_output(3)
        peer.expect("FA", seq=seq, ack=ack)
        peer.send("A", ack, 2)
        peer.advance(30)
        peer.expect_nothing()


@pytest.mark.rfc("9293", "3.10.7.4 second check")
@pytest.mark.parametrize("start", [last_ack, closing])
def test_a_reset_after_both_streams_are_complete_is_an_orderly_end(start: Callable[..., Peer]) -> None:
    """The peer acknowledged our FIN, which was lost, and has forgotten us since."""
    peer = start()
    peer.send("R", 2)
    assert peer.conn.closed and peer.conn.error is None


@pytest.mark.rfc("9293", "3.10.7.4 second check")
def test_what_came_before_such_a_reset_stays_readable() -> None:
    peer = established()
    peer.send("FA", 1, 1, b"last words")
    peer.shutdown()
    peer.take()
    peer.send("R", 12)
    assert peer.conn.closed and peer.conn.error is None
    assert peer.read() == b"last words" and peer.conn.receive_eof
    assert peer.stack.receive_account.used == peer.stack.receive_pool.used == 0


@pytest.mark.rfc("9293", "MUST-12")
@pytest.mark.parametrize("acked", [1, 4])
def test_a_reset_while_data_is_unacknowledged_is_told(acked: int) -> None:
    peer = close_wait()
    peer.write(b"answer")
    peer.shutdown()
    peer.take()
    assert peer.state is State.LAST_ACK
    peer.send("A", 2, acked)
    peer.send("R", 2)
    assert peer.conn.error is CloseReason.RESET


# TIME-WAIT


@pytest.mark.rfc("9293", "MUST-13")
def test_time_wait_lasts_two_msl_and_a_fin_restarts_it() -> None:
    peer = time_wait()
    peer.advance(MSL2 - 1)
    assert peer.state is State.TIME_WAIT
    peer.send("FA", 1, 2)
    peer.expect("A", seq=2, ack=2)
    peer.advance(MSL2 - 1)
    assert peer.state is State.TIME_WAIT
    peer.advance(1.5)
    assert peer.conn.closed and peer.conn.error is None and not peer.stack.connections
    peer.expect_nothing()


@pytest.mark.rfc("9293", "MUST-13")
@pytest.mark.parametrize("seq", [-100_000, 0, 2, 3, 100_000])
def test_no_other_fin_restarts_time_wait(seq: int) -> None:
    """Only a retransmission of the peer's FIN, number 1, can be one; anybody could send the others."""
    peer = time_wait()
    peer.advance(MSL2 - 1)
    peer.send("FA", seq, 2)
    peer.advance(2)
    assert peer.conn.closed


@pytest.mark.rfc("1337", "3")
def test_a_reset_does_not_assassinate_time_wait() -> None:
    peer = time_wait()
    for seq in (2, 3, 1):
        peer.send("R", seq)
    peer.take()
    peer.advance(MSL2 - 1)
    assert peer.state is State.TIME_WAIT


@pytest.mark.rfc("9293", "MAY-2")
def test_a_syn_with_a_larger_number_opens_anew() -> None:
    peer = time_wait()
    old = peer.conn
    assert peer.stack_iss is not None
    last = (peer.stack_iss + 2) % MOD
    peer.iss = (peer.iss + 3) % MOD
    peer.send("S", 0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    assert peer.conn is not old and old.closed
    assert lt(last, peer.stack_iss), "the new ISN is above all numbers of the old connection"
    peer.send("A", 1, 1, b"again")
    assert peer.read() == b"again"


@pytest.mark.rfc("9293", "MAY-2 (1)")
def test_the_new_isn_is_above_all_that_was_sent_before() -> None:
    """A connection that sent faster than the ISN clock ticks (250 kB/s) must not be overtaken by itself."""
    peer = established()
    sent = 1
    while sent < 2_000_000:
        peer.write(ramp(60_000))
        sent += peer.payload(peer.take())
        peer.send("A", 1, sent)
        sent += peer.payload(peer.take())
        peer.send("A", 1, sent)
    while wires := peer.take():
        sent += peer.payload(wires)
        peer.send("A", 1, sent)
    peer.shutdown()
    peer.expect("FA", seq=sent)
    peer.send("FA", 1, sent + 1)
    peer.expect("A", ack=2)
    assert peer.state is State.TIME_WAIT and peer.stack_iss is not None
    last = (peer.stack_iss + sent + 1) % MOD
    peer.iss = (peer.iss + 100_000) % MOD
    peer.send("S", 0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    assert lt(last, peer.stack_iss)
    peer.send("A", 1, 1)
    assert peer.conn.established


@pytest.mark.rfc("9293", "MAY-2 (2)")
@pytest.mark.rfc("9293", "MAY-2")
@pytest.mark.parametrize("back", [1, 2, 1000])
def test_an_old_syn_does_not_open_anew(back: int) -> None:
    peer = time_wait()
    peer.send("S", 2 - back)
    peer.expect("A", seq=2, ack=2)
    assert peer.state is State.TIME_WAIT and len(peer.requests) == 1


@pytest.mark.rfc("9293", "SHLD-4")
@pytest.mark.rfc("6191", "2")
def test_a_syn_with_a_newer_timestamp_opens_anew_whatever_its_number() -> None:
    peer = time_wait(timestamps=True)
    peer.advance(1)
    peer.iss = (peer.iss - 5_000_000) % MOD
    peer.send("S", 0, mss=1460)
    peer.expect("SA", seq=0, ack=1)


@pytest.mark.rfc("6191", "2")
def test_a_syn_with_an_older_timestamp_does_not() -> None:
    peer = time_wait(timestamps=True)
    old = peer.stamp() - 10_000
    peer.send("S", 100_000, ts=(old, 0))
    assert peer.state is State.TIME_WAIT and len(peer.requests) == 1


def test_what_was_not_read_survives_a_new_incarnation() -> None:
    """Acknowledged bytes are delivered, whatever the peer does with the four-tuple afterwards."""
    peer = established()
    peer.conn.shutdown()
    peer.pump()
    peer.send("FA", 1, 2, b"acknowledged")
    assert peer.state is State.TIME_WAIT
    old = peer.conn
    peer.iss = (peer.iss + 100_000) % MOD
    peer.send("S", 0, mss=1460)
    assert b"".join(old.peek()) == b"acknowledged"
    assert old.error is None


def test_a_full_table_gives_up_time_wait_first() -> None:
    from tunstack.limits import Limits

    peer = time_wait(limits=Limits(connections=1))
    peer.send("S", 0, ports=(40001, 80))
    assert len(peer.requests) == 2 and len(peer.stack.connections) == 1
    assert peer.conn.error is None


# the user lets go


def test_release_closes_in_order_and_needs_no_reader() -> None:
    peer = established()
    peer.conn.release(peer.now)
    peer.pump()
    peer.expect("FA", seq=1)
    peer.send("A", 1, 2)
    peer.advance(MSL2 + 1)
    assert peer.conn.closed and not peer.stack.connections, "FIN-WAIT-2 without a user is bounded"


def answer_probes(peer: Peer, accepted: bool) -> int:
    """Answer each probe of a closed window, for an hour or until the end; it takes a byte if `accepted`.

    Returns the last acknowledgement.
    """
    next_byte = 1
    until = peer.now + 3600
    while peer.now < until and peer.state not in (State.CLOSED, State.FIN_WAIT_2):
        peer.until_output(100)
        for wire in peer.take():
            if accepted and not wire.flags & 4:
                next_byte = wire.seq + len(wire.data) + (wire.flags & 1)
        if not peer.conn.closed:
            peer.send("A", 1, next_byte, win=0)
    return next_byte


@pytest.mark.rfc("6429", "4")
def test_a_window_that_stays_closed_does_not_hold_what_was_released() -> None:
    """While a user waits, answered probes go on for ever; nobody could end what was released otherwise."""
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.write(b"nobody takes this")
    peer.conn.release(peer.now)
    start = peer.now
    answer_probes(peer, accepted=False)
    assert peer.conn.closed and not peer.stack.connections
    assert peer.now - start >= 100


@pytest.mark.rfc("6429", "4")
def test_what_was_released_may_go_through_a_closed_window_byte_by_byte() -> None:
    peer = established()
    peer.send("A", 1, 1, win=0)
    peer.write(ramp(10 * MAX_TRIES))
    peer.conn.release(peer.now)
    assert answer_probes(peer, accepted=True) == 10 * MAX_TRIES + 2, "everything, and the FIN"


def test_release_ends_a_half_close_that_nothing_else_ends() -> None:
    """The peer's reset was lost: FIN-WAIT-2 lasts as long as its user waits, and 2 MSL more."""
    peer = fin_wait_2()
    peer.advance(100_000)
    assert peer.state is State.FIN_WAIT_2
    peer.conn.release(peer.now)
    peer.pump()
    peer.advance(MSL2 - 1)
    assert peer.state is State.FIN_WAIT_2
    peer.advance(2)
    assert peer.conn.closed and not peer.stack.connections


@pytest.mark.rfc("9293", "SHLD-3")
def test_release_with_unread_data_resets() -> None:
    peer = established()
    peer.send("A", 1, 1, b"nobody reads this")
    peer.take()
    peer.conn.release(peer.now)
    peer.pump()
    peer.expect("RA", seq=1)
    assert peer.conn.closed and peer.stack.receive_account.used == 0


@pytest.mark.rfc("9293", "SHLD-3")
def test_data_after_release_resets() -> None:
    peer = established()
    peer.conn.release(peer.now)
    peer.pump()
    peer.expect("FA", seq=1)
    peer.send("A", 1, 2, b"nobody reads this")
    assert peer.expect("RA").seq in (1, 2)
    assert peer.conn.closed and not peer.stack.connections


def test_last_ack_gives_up_silently_after_a_while() -> None:
    peer = last_ack()
    peer.advance(1000)
    assert peer.conn.closed and not peer.stack.connections
    assert all(wire.flags & 1 or wire.flags & 4 for wire in peer.take())


@pytest.mark.rfc("9293", "MUST-30")
@pytest.mark.rfc("9293", "MUST-31")
@pytest.mark.parametrize("pointer", [0, 1, 3, 100, 65535])
def test_urgent_data_is_delivered_in_line(pointer: int) -> None:
    peer = established()
    peer.send("UPA", 1, 1, b"abc", urgent=pointer)
    peer.send("A", 4, 1, b"def")
    peer.send("UA", 7, 1, b"", urgent=pointer)
    assert peer.read() == b"abcdef"
    assert isinstance(peer, Peer) and peer.state is State.ESTABLISHED
