"""Requirements of RFC 9293 that no other file comes across: options of the user, keep-alives, opens."""

from __future__ import annotations

import pytest

from tests.tcp.peer import (
    PEER,
    PEER_PORT,
    STACK,
    STACK_PORT,
    Peer,
    established,
    fin_wait_2,
    ramp,
    syn_received,
    syn_sent,
)
from tunstack.errors import LocalError
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.endpoint import KEEP_ALIVE_INTERVAL, KEEP_ALIVE_PROBES
from tunstack.tcp.states import State

pytestmark = pytest.mark.usefixtures("isns")

HOURS = 3600.0


# Nagle


@pytest.mark.rfc("9293", "SHLD-7")
def test_nagle_holds_a_small_segment_until_all_is_acknowledged() -> None:
    peer = established()
    peer.conn.nodelay = False
    peer.write(b"first")
    peer.expect("A", seq=1, data=b"first")
    for i in range(10):
        peer.write(b"%d" % i)
    peer.expect_nothing()
    peer.send("A", 1, 6)
    peer.expect("A", seq=6, data=b"0123456789")
    peer.write(ramp(1460 + 10))
    peer.expect("A", seq=16, length=1460)
    peer.expect_nothing()
    peer.send("A", 1, 1476)
    peer.expect("A", seq=1476, length=10)


@pytest.mark.rfc("9293", "MUST-17")
def test_without_nagle_small_segments_leave_at_once() -> None:
    peer = established()
    peer.conn.nodelay = False
    peer.write(b"a")
    peer.write(b"b")
    peer.expect("A", data=b"a")
    peer.expect_nothing()
    peer.conn.nodelay = True
    peer.pump()
    peer.expect("A", data=b"b")
    peer.write(b"c")
    peer.expect("A", data=b"c")
    assert peer.conn.nodelay


@pytest.mark.rfc("9293", "SHLD-7")
def test_nagle_does_not_hold_a_fin_back() -> None:
    peer = established()
    peer.conn.nodelay = False
    peer.write(b"a")
    peer.write(b"b")
    peer.expect("A", data=b"a")
    peer.shutdown()
    peer.expect("FA", data=b"b")


@pytest.mark.rfc("9293", "SHLD-27")
def test_writes_of_one_moment_become_full_segments_with_one_push() -> None:
    peer = established()
    for i in range(30):
        peer.conn.send(ramp(100, i * 100))
    peer.pump()
    wires = peer.take()
    assert [(len(wire.data), wire.flags & 8) for wire in wires] == [(1460, 0), (1460, 0), (80, 8)]
    assert b"".join(wire.data for wire in wires) == ramp(3000)


@pytest.mark.rfc("9293", "SHLD-27")
def test_what_the_window_cuts_off_is_not_pushed() -> None:
    peer = established()
    peer.write(ramp(20_000))
    wires = peer.take()
    assert [(len(wire.data), wire.flags & 8) for wire in wires] == [(1460, 0)] * 10


# R2


@pytest.mark.rfc("9293", "MUST-21")
@pytest.mark.parametrize("timeout", [5.0, 30.0, 600.0])
def test_the_user_sets_how_long_data_is_repeated(timeout: float) -> None:
    peer = established()
    peer.conn.user_timeout = timeout
    assert peer.conn.user_timeout == timeout
    peer.write(b"lost")
    start = peer.now
    while not peer.conn.closed:
        assert peer.now - start < 2 * timeout + 2, (
            "the next time-out after it ends it, however few there were"
        )
        peer.take()
        peer.until_output(100)
    assert peer.conn.error is CloseReason.TIMEOUT
    assert peer.now - start >= timeout
    peer.conn.user_timeout = None
    with pytest.raises(LocalError):
        peer.conn.user_timeout = 0.0


@pytest.mark.rfc("9293", "MUST-21")
@pytest.mark.parametrize("timeout", [10.0, 400.0])
def test_the_user_sets_how_long_a_syn_is_repeated(timeout: float) -> None:
    peer = syn_sent()
    peer.conn.user_timeout = timeout
    start = peer.now
    peer.advance(timeout - 1)
    assert peer.state is State.SYN_SENT
    peer.advance(70)
    assert peer.conn.error is CloseReason.TIMEOUT and peer.now > start


@pytest.mark.rfc("9293", "SHLD-17")
def test_data_behind_a_window_that_shrank_does_not_end_the_connection() -> None:
    """The peer takes its whole offer back, and goes on answering."""
    peer = established()
    peer.write(ramp(10_000))
    peer.take()
    peer.send("A", 1, 1, win=0)
    for _ in range(120):
        peer.until_output(100)
        peer.take()
        peer.send("A", 1, 1, win=0)
    assert peer.state is State.ESTABLISHED
    peer.send("A", 1, 1)
    stream = bytearray(10_000)
    for _ in range(30):
        for wire in peer.take():
            stream[wire.seq - 1 : wire.seq - 1 + len(wire.data)] = wire.data
        peer.advance(1)
    assert stream == ramp(10_000)


# keep-alives


@pytest.mark.rfc("9293", "MUST-24")
@pytest.mark.rfc("9293", "MUST-25")
def test_keep_alives_are_off_until_asked_for_and_off_again() -> None:
    peer = established()
    assert peer.stack.next_timeout() is None
    peer.conn.keep_alive()
    peer.pump()
    assert peer.stack.next_timeout() is not None
    peer.conn.keep_alive(None)
    peer.pump()
    assert peer.stack.next_timeout() is None
    peer.advance(100 * HOURS)
    peer.expect_nothing()
    assert peer.state is State.ESTABLISHED


@pytest.mark.rfc("9293", "MUST-27")
@pytest.mark.rfc("9293", "MUST-28")
@pytest.mark.rfc("9293", "SHLD-12")
@pytest.mark.parametrize("interval", [None, 30.0, 4 * HOURS])
def test_a_keep_alive_is_an_old_number_without_data_after_the_interval(interval: float | None) -> None:
    peer = established()
    peer.send("A", 1, 1)
    if interval is None:
        assert KEEP_ALIVE_INTERVAL >= 2 * HOURS
        peer.conn.keep_alive()
    else:
        peer.conn.keep_alive(interval)
    peer.pump()
    for _ in range(5):
        assert peer.until_output(5 * HOURS) == pytest.approx(interval or KEEP_ALIVE_INTERVAL)
        peer.expect("A", seq=0, ack=1, length=0)
        peer.expect_nothing()
        peer.send("A", 1, 1)
    with pytest.raises(LocalError):
        peer.conn.keep_alive(0.0)


@pytest.mark.rfc("9293", "MUST-26")
def test_keep_alives_wait_while_something_is_heard_or_outstanding() -> None:
    peer = established()
    peer.conn.keep_alive(100.0)
    peer.pump()
    seq = 1
    for _ in range(10):
        peer.advance(90)
        peer.send("A", seq, 1, b"x")
        seq += 1
        peer.advance(0.5)
        peer.expect("A", seq=1, ack=seq)
    assert peer.until_output(200) == pytest.approx(99.5)
    peer.expect("A", seq=0, ack=seq, length=0)
    peer.send("A", seq, 1)
    peer.write(b"data")
    peer.expect("A", seq=1, data=b"data")
    for _ in range(6):
        peer.until_output(100)
        peer.expect("A", seq=1, data=b"data")  # a retransmission; no keep-alive among them
    peer.send("A", seq, 5)
    assert peer.until_output(200) == pytest.approx(100)
    peer.expect("A", seq=4, ack=seq, length=0)


@pytest.mark.rfc("9293", "MUST-29")
def test_only_many_keep_alives_without_an_answer_end_a_connection() -> None:
    peer = established()
    peer.conn.keep_alive(60.0)
    peer.pump()
    for _ in range(KEEP_ALIVE_PROBES - 1):
        peer.until_output(100)
        peer.expect("A", seq=0, ack=1, length=0)
    peer.send("A", 1, 1)  # all but the last were lost
    peer.expect_nothing()
    for _ in range(KEEP_ALIVE_PROBES):
        peer.until_output(100)
        peer.expect("A", seq=0, ack=1, length=0)
        assert peer.state is State.ESTABLISHED
    peer.until_output(100)
    peer.expect("RA", seq=1)
    assert peer.conn.error is CloseReason.TIMEOUT and not peer.stack.connections
    assert KEEP_ALIVE_PROBES > 1


def test_keep_alives_find_a_peer_that_vanished_half_closed() -> None:
    peer = fin_wait_2()
    peer.conn.keep_alive(60.0)
    peer.pump()
    peer.advance(1000)
    assert peer.conn.error is CloseReason.TIMEOUT


def test_a_keep_alive_is_answered() -> None:
    for probe in (b"", b"\0"):
        peer = established()
        peer.send("A", 0, 1, probe)
        peer.expect("A", seq=1, ack=1, length=0)
        assert not peer.conn.readable


# opens


@pytest.mark.rfc("9293", "MUST-41")
def test_a_passive_open_does_not_disturb_other_connections() -> None:
    peer = established()
    first = peer.conn
    peer.write(ramp(5000))
    peer.take()
    before = (first.state, first.hot.snd_nxt, first.hot.rcv_nxt, first.unacked)
    for port in (1, 2, 3):
        peer.stack_iss = None
        peer.send("S", 0, mss=1460, ports=(port, STACK_PORT))
        peer.send("A", 1, 1, ports=(port, STACK_PORT))
    assert (first.state, first.hot.snd_nxt, first.hot.rcv_nxt, first.unacked) == before
    assert len(peer.stack.connections) == 4


@pytest.mark.rfc("9293", "MUST-42")
@pytest.mark.parametrize("start", [syn_sent, syn_received])
def test_requests_come_to_a_port_that_is_being_opened(start: object) -> None:
    assert callable(start)
    peer = start()
    peer.send("S", 0, mss=1460, ports=(PEER_PORT + 1, STACK_PORT))
    assert peer.requests[-1].src_port == PEER_PORT + 1
    peer.expect("SA", ports=(STACK_PORT, PEER_PORT + 1))
    assert len(peer.stack.connections) == 2


@pytest.mark.rfc("9293", "MUST-43")
@pytest.mark.rfc("9293", "MUST-45")
@pytest.mark.parametrize("local", [STACK, bytes([192, 0, 2, 7])])
def test_a_connection_keeps_the_local_address_that_it_was_given(local: bytes) -> None:
    peer = Peer()
    connection = peer.stack.connect(local, STACK_PORT, PEER, PEER_PORT, peer.now)
    for _ in range(3):
        for packet in peer.stack.poll_transmit(peer.now):
            assert packet.tobytes()[12:20] == local + PEER
        peer.now += 5
        peer.stack.handle_timeout(peer.now)
    assert connection.local == local


@pytest.mark.rfc("9293", "MUST-46")
@pytest.mark.parametrize(
    "remote", ["255.255.255.255", "224.0.0.1", "239.255.255.255", "10.0.0.255", "0.0.0.0", "127.0.0.1"]
)
def test_an_open_to_many_or_to_nobody_is_refused(remote: str) -> None:
    peer = Peer()
    with pytest.raises(LocalError):
        peer.stack.connect(STACK, STACK_PORT, bytes(map(int, remote.split("."))), 80, peer.now)
    assert not peer.stack.connections and not peer.stack.poll_transmit(peer.now)


@pytest.mark.rfc("7413", "2")
@pytest.mark.parametrize("cookie", [b"", b"12345678"])
def test_fast_open_is_not_offered_and_its_data_not_taken(cookie: bytes) -> None:
    """The data comes again behind the handshake; before it nothing proves the source."""
    peer = Peer()
    peer.send("S", 0, None, b"early", mss=1460, options=bytes([34, 2 + len(cookie)]) + cookie)
    peer.expect("SA", seq=0, ack=1)  # `Peer` refuses any option that it does not know
    assert not peer.conn.readable
    peer.send("A", 1, 1, b"early")
    assert peer.read() == b"early"


# what leaves


@pytest.mark.rfc("9293", "MUST-65")
@pytest.mark.rfc("9293", "MUST-68")
@pytest.mark.rfc("9293", "MUST-69")
@pytest.mark.rfc("1191", "3")
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("active", [False, True])
def test_options_and_flags_of_everything_that_leaves(active: bool, timestamps: bool) -> None:
    """Walks every option list byte by byte, in another way than `Peer` does for all other tests."""
    peer = established(active=active, timestamps=timestamps, shift=7)
    peer.write(ramp(4000))
    peer.send("A", 1, 4001, b"data")
    peer.send("A", 9, 4001, b"out of order")
    peer.advance(1)
    peer.write(b"lost")
    peer.advance(3)
    peer.send("A", 1_000_000, 4005)
    peer.shutdown()
    peer.abort()
    assert len(peer.sent_by_stack) > 8
    for wire in peer.sent_by_stack:
        assert wire.raw[6] & 0x40 and wire.raw[6:8] == b"\x40\0", "DF, and no fragment"
        options = wire.raw[40 : 20 + (wire.raw[32] >> 4) * 4]
        assert len(options) % 4 == 0
        kinds = []
        while options and options[0] != 0:
            kinds.append(options[0])
            if options[0] == 1:
                options = options[1:]
                continue
            length = {2: 4, 3: 3, 4: 2, 8: 10}.get(options[0], options[1])
            assert options[1] == length <= len(options)
            options = options[length:]
        assert not any(options)
        assert (2 in kinds) is bool(wire.flags & 2)
        assert not {3, 4} & set(kinds) or wire.flags & 2


@pytest.mark.rfc("9293", "MUST-50")
@pytest.mark.parametrize(
    "options",
    [
        b"\x01" * 4,  # NOP
        b"\x94\x04\0\0",  # router alert
        b"\x44\x08\x05\0\0\0\0\0",  # timestamp
        b"\x07\x07\x04\0\0\0\0\0",  # record route
        b"\x88\x04\0\1",  # stream id
        b"\x1e\x04\1\2",  # experiment
    ],
    ids=lambda options: options.hex(),
)
def test_ip_options_that_mean_nothing_to_tcp_are_ignored(options: bytes) -> None:
    peer = established()
    packet = bytearray(peer.build("A", 1, 1, b"data"))
    length = 20 + len(options)
    packet[20:20] = options
    packet[0] = 0x40 | length // 4
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    total = sum(int.from_bytes(packet[i : i + 2], "big") for i in range(0, length, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[10:12] = (total ^ 0xFFFF).to_bytes(2, "big")
    peer.send_raw(bytes(packet))
    assert peer.read() == b"data"


@pytest.mark.rfc("9293", "SHLD-2")
def test_a_reset_may_carry_data() -> None:
    peer = established()
    peer.send("RA", 1, 1, b"because of this")
    assert peer.conn.error is CloseReason.RESET and not peer.conn.readable
    peer.expect_nothing()
    peer = syn_sent()
    peer.send("RA", 0, 1, b"nobody here")
    assert peer.conn.error is CloseReason.REFUSED


@pytest.mark.rfc("6298", "2.1")
@pytest.mark.rfc("6298", "5.1")
def test_the_timer_starts_with_the_first_segment_and_is_one_second_before_any_sample() -> None:
    peer = Peer()
    assert peer.stack.next_timeout() is None
    peer.connect()
    peer.expect("S")
    assert peer.until_output(5) == pytest.approx(1.0)
    peer = established()
    assert peer.stack.next_timeout() is None
    peer.write(ramp(3000))
    deadline = peer.stack.next_timeout()
    assert deadline is not None
    peer.advance(0.05)
    peer.write(ramp(3000))
    assert peer.stack.next_timeout() == deadline, "it runs already"
