"""The table of states, and every state against segments at and just beyond the edges of the window."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.tcp.peer import RCV_NXT, SND_NXT, STARTERS, Peer, established
from tunstack.errors import LocalError
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.seq import diff
from tunstack.tcp.states import TRANSITIONS, Event, State, transition

pytestmark = pytest.mark.usefixtures("isns")

WITH_NUMBERS = [state for state in STARTERS if state is not State.SYN_SENT]
SYNCHRONIZED = [state for state in WITH_NUMBERS if state is not State.SYN_RECEIVED]
TAKES_DATA = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
FIN_CAME = (State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK, State.TIME_WAIT)

# RFC 9293 3.3.2, figure 5, and the texts of 3.10: written down independently of the implementation.
FIGURE = {
    ("closed", "passive open", "listen"),
    ("closed", "active open", "syn-sent"),
    ("listen", "SYN", "syn-received"),
    ("syn-sent", "SYN", "syn-received"),
    ("syn-sent", "SYN-ACK", "established"),
    ("syn-received", "ACK of SYN", "established"),
    ("syn-received", "close", "fin-wait-1"),
    ("established", "close", "fin-wait-1"),
    ("established", "FIN", "close-wait"),
    ("fin-wait-1", "ACK of FIN", "fin-wait-2"),
    ("fin-wait-1", "FIN", "closing"),
    ("fin-wait-2", "FIN", "time-wait"),
    ("close-wait", "close", "last-ack"),
    ("closing", "ACK of FIN", "time-wait"),
    ("last-ack", "ACK of FIN", "closed"),
    ("time-wait", "timeout", "closed"),
}
EVENTS = {
    "passive open": Event.PASSIVE_OPEN,
    "active open": Event.ACTIVE_OPEN,
    "SYN": Event.SYN,
    "SYN-ACK": Event.SYN_ACK,
    "ACK of SYN": Event.ACK_OF_SYN,
    "FIN": Event.FIN,
    "close": Event.CLOSE,
    "ACK of FIN": Event.ACK_OF_FIN,
    "timeout": Event.TIME_WAIT_OVER,
}


@pytest.mark.rfc("9293", "3.3.2 figure 5")
def test_the_figure_is_in_the_table() -> None:
    for state, event, after in FIGURE:
        assert transition(State(state), EVENTS[event]) is State(after)


@pytest.mark.rfc("9293", "3.3.2")
def test_what_the_table_has_beyond_the_figure_only_ends_or_takes_a_fin_early() -> None:
    beyond = {
        (s, e, a)
        for (s, e), a in TRANSITIONS.items()
        if (s.value, e, a.value) not in {(state, EVENTS[event], after) for state, event, after in FIGURE}
    }
    for state, event, after in beyond:
        if (state, event) == (State.SYN_RECEIVED, Event.FIN):  # 3.10.7.4, eighth check
            assert after is State.CLOSE_WAIT
        else:
            assert event in (Event.RESET, Event.ABORT) and after is State.CLOSED


def test_every_pair_is_in_the_table_or_raises() -> None:
    for state, event in itertools.product(State, Event):
        if (state, event) in TRANSITIONS:
            assert transition(state, event) in State
        else:
            with pytest.raises(LocalError):
                transition(state, event)


def test_every_state_is_reached_and_left() -> None:
    assert set(TRANSITIONS.values()) == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)


def edge(peer: Peer) -> int:
    """Bytes from the stack's `rcv_nxt` to the right edge of the window that it advertised."""
    last = [wire for wire in peer.sent_by_stack if wire.flags & 16][-1]
    return last.window  # no window scaling in the starters


def test_the_edge_is_the_advertised_one() -> None:
    peer = established()
    assert edge(peer) == diff(peer.conn.hot.rcv_adv, peer.conn.hot.rcv_nxt)


def snapshot(peer: Peer) -> tuple[object, ...]:
    return peer.state, peer.conn.readable, peer.conn.hot.rcv_nxt, peer.conn.hot.snd_una


OUTSIDE: dict[str, Callable[[int], tuple[int, bytes]]] = {
    "before the left edge": lambda window: (-1, b""),
    "data that ends before it": lambda window: (-5, b"12345"),
    "behind the right edge": lambda window: (window + 1, b""),
    "data at the right edge": lambda window: (window, b"x"),
    "far right": lambda window: (window + 2**30, b"x"),
    "far left": lambda window: (-(2**30), b"x"),
}


@pytest.mark.rfc("9293", "3.10.7.4 first check")
@pytest.mark.rfc("5961", "erratum 4845")
@pytest.mark.parametrize("where", OUTSIDE)
@pytest.mark.parametrize("state", WITH_NUMBERS)
def test_outside_the_window_an_ack_and_nothing_else(state: State, where: str) -> None:
    peer = STARTERS[state]()
    offset, data = OUTSIDE[where](edge(peer))
    before = snapshot(peer)
    peer.send("A", RCV_NXT[state] + offset, SND_NXT[state], data)
    if state is not State.TIME_WAIT:
        # A keep-alive's ACK may be a valid one (3.10.7.4 takes valid ACKs of such segments).
        assert peer.state in (
            before[0],
            *({State.FIN_WAIT_2, State.CLOSED, State.TIME_WAIT} if offset == -1 else ()),
        )
    assert peer.conn.readable == before[1] and peer.conn.hot.rcv_nxt == before[2]
    if peer.state is not State.CLOSED:
        peer.expect("A", seq=SND_NXT[state], ack=RCV_NXT[state], length=0)
    peer.expect_nothing()


def test_an_ack_from_the_right_edge_itself_counts() -> None:
    """A peer whose data fills our window and is on the way (or lost) acknowledges from there.

    RFC 9293 would drop it, and with it the only acknowledgements that such a peer can send.
    """
    peer = established()
    peer.write(b"data")
    peer.take()
    peer.send("A", 1 + edge(peer), 5)
    assert peer.conn.unacked == 0 and not peer.conn.readable


@pytest.mark.rfc("5961", "3.2 case 1")
@pytest.mark.parametrize("offset", [-1, -1000, 65535, 65536, 2**31])
@pytest.mark.parametrize("state", WITH_NUMBERS)
def test_a_reset_outside_the_window_is_nothing(state: State, offset: int) -> None:
    peer = STARTERS[state]()
    before = snapshot(peer)
    peer.send("R", RCV_NXT[state] + offset)
    peer.send("RA", RCV_NXT[state] + offset, SND_NXT[state])
    assert snapshot(peer) == before
    peer.expect_nothing()


@pytest.mark.rfc("5961", "3.2 case 2")
@pytest.mark.parametrize("flags", ["R", "RA"])
@pytest.mark.parametrize("state", WITH_NUMBERS)
def test_a_reset_at_rcv_nxt_ends_it_except_in_time_wait(state: State, flags: str) -> None:
    peer = STARTERS[state]()
    peer.send(flags, RCV_NXT[state], SND_NXT[state])
    peer.expect_nothing()
    if state is State.TIME_WAIT:
        assert peer.state is State.TIME_WAIT
        return
    assert peer.conn.closed
    finished = state in (State.CLOSING, State.LAST_ACK)
    assert peer.conn.error is (None if finished else CloseReason.RESET), "3.10.7.4, second check"
    assert not peer.stack.connections


@pytest.mark.rfc("5961", "3.2 case 3")
@pytest.mark.parametrize("offset", [1, 1000, "last"])
@pytest.mark.parametrize("state", SYNCHRONIZED)
def test_a_reset_elsewhere_in_the_window_is_challenged(state: State, offset: int | str) -> None:
    peer = STARTERS[state]()
    before = snapshot(peer)
    peer.send("R", RCV_NXT[state] + (edge(peer) - 1 if offset == "last" else int(offset)))
    assert snapshot(peer) == before
    if state is not State.TIME_WAIT:  # RFC 1337: nothing at all is an answer too
        peer.expect("A", seq=SND_NXT[state], ack=RCV_NXT[state])
    peer.expect_nothing()


@pytest.mark.rfc("5961", "4.2")
@pytest.mark.parametrize("offset", [0, 1, 1000, -1, -1000, 65535, 2**31])
@pytest.mark.parametrize("flags", ["S", "SA"])
@pytest.mark.parametrize("state", [state for state in SYNCHRONIZED if state is not State.TIME_WAIT])
def test_a_syn_is_challenged_wherever_it_lies(state: State, flags: str, offset: int) -> None:
    peer = STARTERS[state]()
    before = snapshot(peer)
    peer.send(flags, RCV_NXT[state] + offset, SND_NXT[state])
    assert snapshot(peer) == before
    peer.expect("A", seq=SND_NXT[state], ack=RCV_NXT[state])
    peer.expect_nothing()


@pytest.mark.rfc("9293", "3.10.7.4 fifth check")
@pytest.mark.parametrize("flags", ["", "F", "P", "U"])
@pytest.mark.parametrize("state", WITH_NUMBERS)
def test_without_ack_a_segment_is_dropped(state: State, flags: str) -> None:
    peer = STARTERS[state]()
    before = snapshot(peer)
    peer.send(flags, RCV_NXT[state], data=b"data")
    assert snapshot(peer) == before
    peer.expect_nothing()
    assert peer.drops() == {"tcp-bad-flags": 1}


@pytest.mark.rfc("5961", "5.2")
@pytest.mark.parametrize("ack", [1, 2, 1000, 2**31 - 10])
@pytest.mark.parametrize("state", SYNCHRONIZED)
def test_an_ack_of_what_was_never_sent_is_challenged(state: State, ack: int) -> None:
    peer = STARTERS[state]()
    before = snapshot(peer)
    peer.send("A", RCV_NXT[state], SND_NXT[state] + ack, b"data")
    assert snapshot(peer) == before
    peer.expect("A", seq=SND_NXT[state], ack=RCV_NXT[state])
    peer.expect_nothing()


@pytest.mark.rfc("5961", "5.2")
@pytest.mark.rfc("5961", "7")
def test_keep_alives_of_a_peer_that_has_lost_step_are_not_answered_each() -> None:
    """Two ends that both think so of each other would answer each other's answers for ever."""
    peer = established()
    for _ in range(5):
        peer.send("A", 0, 1000)
    peer.expect("A", seq=1, ack=1)
    peer.expect_nothing()
    for _ in range(3):
        peer.send("A", 0, 1)
        peer.expect("A", seq=1, ack=1)


@pytest.mark.rfc("5961", "5.2")
def test_an_ack_below_the_largest_window_is_challenged_others_are_taken() -> None:
    for below, taken in ((1, True), (65535, True), (65536, False), (2**30, False)):
        peer = established()
        peer.send("A", 1, 1 - below, b"data")
        assert (peer.read() == b"data") is taken, below


@pytest.mark.rfc("9293", "3.10.7.4 seventh check")
@pytest.mark.parametrize("state", TAKES_DATA)
def test_data_at_both_edges_of_the_window_is_taken(state: State) -> None:
    peer = STARTERS[state]()
    window = edge(peer)
    peer.send("A", window, 1, b"Z")  # the last byte that fits
    peer.expect("A", ack=1)
    assert not peer.conn.readable
    step = 60000
    peer.send("A", 1, 1, bytes(step))
    peer.send("A", 1 + step, 1, bytes(window - 1 - step))
    assert peer.conn.readable == window
    data = peer.read()
    assert len(data) == window and data[-1:] == b"Z"


@pytest.mark.rfc("9293", "3.10.7.4 trimming")
@pytest.mark.parametrize("state", TAKES_DATA)
def test_data_across_the_edges_is_trimmed(state: State) -> None:
    peer = STARTERS[state]()
    peer.send("A", 1, 1, b"abcd")
    peer.send("A", 1, 1, b"abcdefgh")
    peer.send("A", -3, 1, b"XXXXabcdefghij")
    assert peer.read() == b"abcdefghij"
    peer = STARTERS[state]()
    window = edge(peer)
    peer.send("A", window - 1, 1, b"12345678")
    peer.send("A", 1, 1, bytes(60000))
    peer.send("A", 60001, 1, bytes(window - 2 - 60000))
    assert peer.conn.readable == window


@pytest.mark.rfc("9293", "3.10.7.4 seventh check")
@pytest.mark.parametrize("state", FIN_CAME)
def test_data_behind_the_fin_is_never_delivered(state: State) -> None:
    peer = STARTERS[state]()
    before = snapshot(peer)
    peer.send("A", 2, 1, b"more")
    assert peer.conn.readable == 0 and peer.conn.hot.rcv_nxt == before[2]
    peer.send("FA", 2, 1, b"more")
    assert peer.conn.readable == 0 and peer.conn.hot.rcv_nxt == before[2]
    assert peer.state is state


@pytest.mark.rfc("9293", "3.10.7.4 eighth check")
@pytest.mark.parametrize("state", FIN_CAME)
def test_a_repeated_fin_is_acknowledged_again(state: State) -> None:
    peer = STARTERS[state]()
    ack = 1 if state is State.CLOSE_WAIT else 2 if state is State.TIME_WAIT else 1
    for _ in range(3):
        peer.send("FA", 1, ack)
        peer.expect("A", seq=SND_NXT[state], ack=2)
        peer.expect_nothing()
    assert peer.state is state


@pytest.mark.rfc("9293", "3.10.7.4 eighth check")
@pytest.mark.parametrize("state", [State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2])
def test_a_fin_waits_for_what_comes_before_it(state: State) -> None:
    peer = STARTERS[state]()
    ack = SND_NXT[state] if state is State.FIN_WAIT_2 else 1
    peer.send("FA", 6, ack, b"67890")
    assert not peer.conn.receive_eof and peer.state is state
    assert all(wire.ack == 1 for wire in peer.take())
    peer.send("A", 1, ack, b"12")
    assert peer.conn.hot.rcv_nxt == (peer.iss + 3) % 2**32 and peer.state is state
    peer.take()
    peer.send("A", 3, ack, b"345")
    peer.expect("A", ack=12)
    assert peer.read() == b"1234567890" and peer.conn.receive_eof


@pytest.mark.rfc("9293", "3.10.5")
@pytest.mark.parametrize("state", STARTERS)
def test_abort_ends_any_state_with_one_reset_where_the_peer_knows_us(state: State) -> None:
    """RFC 9293 3.10.5: SYN-SENT, CLOSING, LAST-ACK and TIME-WAIT need none."""
    peer = STARTERS[state]()
    peer.abort()
    assert peer.conn.closed and not peer.stack.connections
    wires = peer.take()
    assert all(wire.flags & 4 for wire in wires)
    if state in (State.SYN_RECEIVED, State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSE_WAIT):
        assert [(wire.seq, wire.ack) for wire in wires] == [(SND_NXT[state], RCV_NXT[state])]
    peer.advance(500)
    peer.expect_nothing()


@pytest.mark.parametrize("state", STARTERS)
def test_silence_ends_every_state_but_the_open_ones(state: State) -> None:
    """With a peer that is gone no state holds memory for ever; idle ones need no timer (MUST-24)."""
    peer = STARTERS[state]()
    peer.advance(4000)
    idle = (State.ESTABLISHED, State.FIN_WAIT_2, State.CLOSE_WAIT)
    assert peer.conn.closed is (state not in idle)
    if state in idle:
        assert peer.stack.next_timeout() is None
    else:
        assert not peer.stack.connections


@pytest.mark.rfc("5961", "7")
def test_challenge_acks_are_limited_for_a_connection() -> None:
    peer = established()
    for i in range(1000):
        peer.send("S", 5 + i)
    assert len(peer.take()) == 1
    assert peer.drops()["challenge-ack-limit"] == 999
    peer.advance(1)
    peer.send("R", 2)
    peer.expect("A", ack=1)


@pytest.mark.rfc("5961", "7")
def test_challenge_acks_are_limited_for_the_stack_by_a_number_that_nobody_knows() -> None:
    counts = set()
    peer = Peer(accept=True)
    for port in range(1, 401):
        peer.stack_iss = None
        peer.send("S", 0, ports=(port, 80))
        peer.send("A", 1, 1, ports=(port, 80))
    peer.take()
    for _ in range(4):
        peer.advance(1.0 - peer.now % 1.0 + 0.01)
        for port in range(1, 401):
            peer.hold("R", 2, ports=(port, 80))
        peer.release()
        answered = len(peer.take())
        assert 50 <= answered <= 150
        counts.add(answered)
    assert len(counts) > 1
