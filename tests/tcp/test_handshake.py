"""Opening: active, passive by request, simultaneous; what the SYNs negotiate; initial sequence numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.tcp.peer import (
    MOD,
    PEER,
    PEER_PORT,
    STACK,
    STACK_PORT,
    Peer,
    established,
    ramp,
    syn_received,
    syn_sent,
)
from tests.tcp.world import World, perfect
from tunstack.errors import LocalError
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.limits import Limits
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.isn import SequenceSource
from tunstack.tcp.states import State

pytestmark = pytest.mark.usefixtures("isns")


def gaps_until_closed(peer: Peer, flags: str, **fields: Any) -> list[float]:
    """Times between the segments, all alike, that a connection sends until it gives up."""
    gaps = []
    while not peer.conn.closed:
        before = peer.now
        deadline = peer.stack.next_timeout()
        assert deadline is not None
        peer.advance(deadline - peer.now)
        if peer.inbox:
            peer.expect(flags, **fields)
            gaps.append(peer.now - before)
    return gaps


# active


@pytest.mark.rfc("9293", "SHLD-5")
@pytest.mark.rfc("9293", "3.5 figure 6")
@pytest.mark.parametrize("active", [False, True])
def test_the_last_number_is_as_good_as_any(active: bool) -> None:
    peer = established(active=active, isns=(2**32 - 1, 2**32 - 1))
    peer.send("A", 1, 1, b"question")
    assert peer.read() == b"question"
    peer.write(b"answer")
    peer.expect("PA", seq=1, ack=9, data=b"answer")


@pytest.mark.rfc("9293", "3.5 figure 6")
def test_active_open() -> None:
    peer = Peer()
    peer.connect()
    syn = peer.expect("S", seq=0, mss=1460, length=0)
    assert syn.shift is not None and syn.stamps is not None and syn.stamps[1] == 0
    assert not peer.conn.established
    peer.send("SA", seq=0, ack=1, mss=1460)
    peer.expect("A", seq=1, ack=1, length=0)
    peer.expect_nothing()
    assert peer.conn.established and peer.state is State.ESTABLISHED


def test_data_queued_before_the_handshake_leaves_after_it() -> None:
    peer = Peer()
    peer.connect()
    peer.conn.send(b"early")
    peer.conn.shutdown()
    peer.pump()
    peer.expect("S", seq=0)
    peer.expect_nothing()
    peer.send("SA", seq=0, ack=1, mss=1460)
    peer.expect("FPA", seq=1, ack=1, data=b"early")
    assert peer.state is State.FIN_WAIT_1


@pytest.mark.rfc("9293", "3.10.7.3")
@pytest.mark.parametrize("ack", [0, 2, 1000, -1])
def test_a_wrong_ack_in_syn_sent_is_reset(ack: int) -> None:
    peer = syn_sent()
    peer.send("SA", seq=0, ack=ack, mss=1460)
    peer.expect("R", seq=ack)
    peer.expect_nothing()
    assert peer.state is State.SYN_SENT
    peer.send("SA", seq=0, ack=1)
    peer.expect("A", seq=1, ack=1)
    assert peer.conn.state is State.ESTABLISHED


@pytest.mark.rfc("9293", "3.10.7.3")
def test_reset_in_syn_sent_counts_only_with_a_right_ack() -> None:
    peer = syn_sent()
    for flags, ack in (("R", None), ("RA", 0), ("RA", 2)):
        peer.send(flags, seq=0, ack=ack)
        assert peer.state is State.SYN_SENT, flags
    peer.expect_nothing()
    peer.send("RA", seq=0, ack=1)
    peer.expect_nothing()
    assert peer.conn.closed and peer.conn.error is CloseReason.REFUSED
    assert not peer.stack.connections


@pytest.mark.parametrize("flags", ["A", "FA", "F", "", "U"])
def test_other_segments_in_syn_sent_change_nothing(flags: str) -> None:
    peer = syn_sent()
    peer.send(flags, seq=0, ack=1 if "A" in flags else None, data=b"x")
    peer.expect_nothing()
    assert peer.state is State.SYN_SENT


def test_data_and_fin_on_the_syn_ack_are_taken() -> None:
    """RFC 9293 3.10.7.3: data with the SYN is processed in ESTABLISHED."""
    peer = syn_sent()
    peer.send("SFA", seq=0, ack=1, data=b"hello", mss=1460)
    peer.expect("A", seq=1, ack=7)
    assert peer.read() == b"hello"
    assert peer.conn.receive_eof and peer.state is State.CLOSE_WAIT


@pytest.mark.rfc("9293", "MUST-10")
@pytest.mark.rfc("9293", "3.5 figure 8")
def test_simultaneous_open_as_in_the_figure() -> None:
    peer = syn_sent()
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    peer.expect_nothing()
    assert peer.state is State.SYN_RECEIVED
    peer.send("SA", seq=0, ack=1)
    assert peer.conn.state is State.ESTABLISHED
    assert all("S" not in str(wire).split("]")[0] for wire in peer.take()), "no further SYN"


@pytest.mark.rfc("9293", "MUST-10")
def test_simultaneous_open_completed_by_an_ack() -> None:
    peer = syn_sent()
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    peer.send("A", seq=1, ack=1, data=b"x")
    assert peer.state is State.ESTABLISHED and peer.read() == b"x"


@pytest.mark.rfc("9293", "MUST-10")
def test_two_stacks_that_open_at_the_same_time() -> None:
    world = World(perfect(0.01))
    here = world.a.connect(parse("10.0.0.1"), 1000, parse("10.0.0.2"), 2000, world.now)
    there = world.b.connect(parse("10.0.0.2"), 2000, parse("10.0.0.1"), 1000, world.now)
    world.run(5)
    assert here.state is there.state is State.ESTABLISHED
    assert world.carried <= 8
    here.send(b"ping")
    there.send(b"pong!")
    world.run(1)
    assert (here.readable, there.readable) == (5, 4)


def parse(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


@pytest.mark.rfc("9293", "MUST-11")
def test_a_reset_in_syn_received_after_an_active_open_is_a_refusal() -> None:
    peer = syn_sent()
    peer.send("S", seq=0)
    peer.expect("SA")
    peer.send("R", seq=1)
    assert peer.conn.error is CloseReason.REFUSED
    peer.expect_nothing()


@pytest.mark.rfc("9293", "MUST-22")
@pytest.mark.rfc("9293", "3.8.1")
@pytest.mark.rfc("9293", "MUST-20")
@pytest.mark.rfc("9293", "MUST-23")
def test_an_unanswered_syn_is_repeated_for_three_minutes() -> None:
    peer = syn_sent()
    start = peer.now
    gaps = gaps_until_closed(peer, "S", seq=0, mss=1460)
    assert gaps[:6] == pytest.approx([1, 2, 4, 8, 16, 32])
    assert max(gaps) <= 60
    assert peer.now - start >= 180
    assert peer.conn.error is CloseReason.TIMEOUT
    peer.expect_nothing()


def test_a_four_tuple_is_opened_once() -> None:
    peer = syn_sent()
    with pytest.raises(LocalError):
        peer.connect()
    peer = Peer(accept=False)
    peer.send("S", seq=0)
    with pytest.raises(LocalError):
        peer.connect()


# passive


@pytest.mark.rfc("9293", "3.5 figure 6")
def test_a_syn_is_a_request_and_nothing_else() -> None:
    peer = Peer(accept=False)
    peer.send("S", seq=0, mss=1000)
    for _ in range(3):
        peer.send("S", seq=0, mss=1000)
    peer.expect_nothing()
    (request,) = peer.requests
    assert (request.src, request.src_port) == (PEER, PEER_PORT)
    assert (request.dst, request.dst_port) == (STACK, STACK_PORT)
    assert not peer.stack.connections, "no connection before somebody accepts"
    peer.connection = peer.stack.accept(request, peer.now)
    peer.pump()
    peer.expect("SA", seq=0, ack=1, mss=1460)
    peer.send("A", seq=1, ack=1)
    assert peer.conn.established
    with pytest.raises(LocalError):
        peer.stack.reset(request, peer.now)


def test_the_latest_syn_of_a_request_counts() -> None:
    """A guest that starts anew with another ISN is answered with that."""
    peer = Peer(accept=False)
    peer.send("S", seq=0)
    peer.iss = (peer.iss + 77_000) % MOD
    peer.send("S", seq=0, mss=777)
    peer.connection = peer.stack.accept(peer.requests[0], peer.now)
    peer.pump()
    peer.expect("SA", seq=0, ack=1)
    peer.send("A", seq=1, ack=1)
    peer.write(ramp(2000))
    peer.expect("A", seq=1, length=777)


@pytest.mark.rfc("9293", "3.10.7.1")
def test_reset_of_a_request_is_a_refusal_of_its_syn() -> None:
    peer = Peer(accept=False)
    peer.stack_iss = 0
    peer.send("S", seq=0)
    peer.stack.reset(peer.requests[0], peer.now)
    peer.pump()
    peer.expect("RA", seq=0, ack=1)
    assert not peer.stack.requests


def test_unreachable_and_discard_of_a_request() -> None:
    peer = Peer(accept=False)
    peer.send("S", seq=0)
    peer.stack.unreachable(peer.requests[0], IcmpErrorKind.HOST_UNREACHABLE, peer.now)
    peer.pump()
    (error,) = peer.icmp
    assert error[20:22] == b"\x03\x01"
    quoted = error[28:]
    assert quoted[12:20] == PEER + STACK
    assert quoted[20:24] == PEER_PORT.to_bytes(2, "big") + STACK_PORT.to_bytes(2, "big")
    peer.send("S", seq=0)
    peer.stack.discard(peer.requests[1])
    peer.send("S", seq=0)
    assert len(peer.requests) == 3, "after discard the SYN is a new request"
    peer.expect_nothing()


@pytest.mark.rfc("9293", "MUST-11")
def test_a_reset_in_syn_received_returns_to_listen() -> None:
    peer = syn_received()
    peer.send("R", seq=1)
    peer.expect_nothing()
    assert not peer.stack.connections
    peer.send("S", seq=0)
    peer.expect("SA", seq=0, ack=1)


@pytest.mark.rfc("9293", "3.10.7.4 SYN-RECEIVED ACK")
@pytest.mark.parametrize("ack", [0, 2, 100, -1])
def test_a_wrong_ack_in_syn_received_is_reset(ack: int) -> None:
    peer = syn_received()
    peer.send("A", seq=1, ack=ack, data=b"forged")
    peer.expect("R", seq=ack)
    peer.expect_nothing()
    assert peer.state is State.SYN_RECEIVED
    peer.send("A", seq=1, ack=1)
    assert peer.conn.established and not peer.conn.readable


def test_a_repeated_syn_is_answered_by_the_same_syn_ack() -> None:
    peer = syn_received()
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", seq=0, ack=1, mss=1460)
    peer.expect_nothing()


def test_syn_acks_are_repeated_and_given_up() -> None:
    peer = syn_received()
    start = peer.now
    gaps = gaps_until_closed(peer, "SA", seq=0, ack=1)
    assert gaps[:4] == pytest.approx([1, 2, 4, 8])
    assert peer.now - start >= 45
    assert peer.conn.error is CloseReason.TIMEOUT and not peer.stack.connections


def test_the_last_ack_of_the_handshake_may_carry_data_and_fin() -> None:
    peer = syn_received()
    peer.send("FA", seq=1, ack=1, data=b"all of it")
    peer.expect("A", seq=1, ack=11)
    assert peer.read() == b"all of it"
    assert peer.conn.receive_eof and peer.state is State.CLOSE_WAIT


@pytest.mark.rfc("9293", "3.10.7.4 first check")
def test_an_unacceptable_segment_in_syn_received_is_answered_by_an_ack() -> None:
    peer = syn_received()
    peer.send("A", seq=200_000, ack=1, data=b"x")
    peer.expect("A", seq=1, ack=1)
    assert peer.state is State.SYN_RECEIVED


@pytest.mark.rfc("9293", "3.10.7.1")
def test_segments_to_nobody_are_reset() -> None:
    peer = Peer()
    peer.stack_iss = 0
    peer.send("A", seq=100, ack=77, data=b"abc")
    peer.expect("R", seq=77)
    peer.send("SA", seq=100, ack=77)
    peer.expect("R", seq=77)
    peer.send("F", seq=100, data=b"abc")
    peer.expect("RA", seq=0, ack=104)
    peer.send("", seq=100, data=b"abc")
    peer.expect("RA", seq=0, ack=103)
    peer.send("SF", seq=100)
    peer.expect("RA", seq=0, ack=102)
    for flags in ("R", "RA", "RS"):
        peer.send(flags, seq=100, ack=77)
    peer.expect_nothing()
    assert not peer.stack.connections and not peer.requests


@pytest.mark.rfc("9293", "MUST-57")
def test_a_syn_to_many_is_ignored() -> None:
    for address in ("10.0.0.255", "255.255.255.255", "224.0.0.1"):
        peer = Peer()
        peer.send("S", seq=0, dst=parse(address))
        assert not peer.requests and not peer.sent_by_stack


@pytest.mark.rfc("9293", "MUST-63")
@pytest.mark.parametrize(
    "source", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "255.255.255.255", "224.0.0.1", "10.0.0.255"]
)
def test_a_syn_from_nobody_is_ignored(source: str) -> None:
    peer = Peer()
    peer.send("S", seq=0, src=parse(source))
    assert not peer.requests and not peer.sent_by_stack


@pytest.mark.rfc("4987", "3.2 memory")
def test_a_full_table_refuses_syns_and_counts() -> None:
    peer = Peer(limits=Limits(connections=3), accept=True)
    for port in range(1, 10):
        peer.send("S", seq=0, ports=(port, STACK_PORT))
    assert len(peer.stack.connections) == 3
    assert peer.drops()["tcp-connection-limit"] == 6


# initial sequence numbers


@pytest.mark.rfc("6528", "3")
@pytest.mark.rfc("9293", "MUST-8")
def test_isns_of_one_tuple_follow_a_clock_of_4_us() -> None:
    source = SequenceSource(bytes(range(32)))
    base = source.isn(STACK, 80, PEER, 4000, 0.0)
    for seconds in (0.000004, 0.001, 1.0, 3600.0, 17000.0):
        later = source.isn(STACK, 80, PEER, 4000, seconds)
        assert (later - base) % MOD == pytest.approx(seconds * 250_000, abs=1)


@pytest.mark.rfc("9293", "SHLD-1")
@pytest.mark.rfc("6528", "3")
@pytest.mark.rfc("9293", "MUST-9")
def test_isns_of_different_tuples_are_spread_evenly_and_need_the_secret() -> None:
    source = SequenceSource(bytes(range(32)))
    other = SequenceSource(bytes(range(1, 33)))
    buckets = [0] * 16
    gaps = set()
    last = 0
    for port in range(1024, 1024 + 8000):
        isn = source.isn(STACK, 80, PEER, port, 5.0)
        assert isn != other.isn(STACK, 80, PEER, port, 5.0)
        gaps.add((isn - last) % MOD)
        last = isn
        buckets[isn >> 28] += 1
    # Chi-square with 15 degrees of freedom: 44 is passed by chance once in ten thousand.
    assert sum((n - 500) ** 2 / 500 for n in buckets) < 44
    assert len(gaps) == 8000
    assert source.isn(STACK, 80, PEER, 9, 5.0) != source.isn(PEER, 80, STACK, 9, 5.0)
    with pytest.raises(ValueError, match="16"):
        SequenceSource(b"short")


@pytest.mark.rfc("7323", "5.4")
def test_timestamp_offsets_differ_between_connections() -> None:
    source = SequenceSource(random.Random(1).randbytes(32))
    offsets = {source.timestamp_offset(STACK, 80, PEER, port) for port in range(1000)}
    assert len(offsets) > 995


@pytest.mark.parametrize("active", [False, True])
def test_the_isn_is_where_the_test_put_it(active: bool) -> None:
    """The premise of every other test here: the stack starts where `isns` says."""
    peer = established(active=active, isns=(5, MOD - 3))
    assert peer.stack_iss == MOD - 3
