"""Where C stops opening connections by itself: single schedules, beside the Python stack.

The gateways and their guest are those of `test_fast_brief`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.nat.pair_device import GATEWAY_MAC
from tests.nat.test_fast import GUEST_MAC, LIMITS, MOD
from tests.nat.test_fast_brief import ADDRESSES, LOOPBACK, Pair, Slot, begin
from tunstack.errors import DropReason
from tunstack.ip import icmp, ipv4
from tunstack.ip.header import ICMP, TCP
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.link.devices.vnet_header import VNET_HEADER
from tunstack.nat.routes import Match, Route
from tunstack.native import fastpath
from tunstack.testing.packets import (
    ACK,
    CWR,
    ECE,
    NOP,
    PSH,
    RST,
    SACK_PERMITTED,
    SYN,
    TcpOption,
    mss,
    timestamps,
    window_scale,
)

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

OTHER_MAC = bytes.fromhex("020000000003")


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


@pytest.fixture(params=[4, 6])
def families(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


@contextlib.contextmanager
def pending(pair: Pair) -> Iterator[None]:
    """The listener's queue is full: the kernel drops SYNs, and dials stay under way."""
    pair.listener.listen(0)
    waiting = socket.socket(pair.listener.family)
    waiting.connect(pair.listener.getsockname())
    try:
        yield
    finally:
        waiting.close()
        pair.listener.listen(128)


def ask(pair: Pair) -> Slot:
    """A SYN whose dial is under way."""
    slot = Slot(next(pair._ports), MOD - 20_000)
    pair.slots[slot.port] = slot
    pair.give([pair.syn(slot)])
    slot.seq += 1
    return slot


def brief_count(pair: Pair) -> int:
    count: int = pair.sides[1].briefs.count
    return count


# opening


def test_a_door_is_opened_by_the_second_connection(families: Pair) -> None:
    briefs = families.sides[1].briefs
    assert briefs.door_count == 1 and families.sides[1].nat.counters.tcp_dials == 2
    begin(families)
    assert families.sides[1].nat.counters.tcp_dials == 3
    assert not families.sides[1].stack.requests


@pytest.mark.parametrize(
    "options",
    [
        (mss(1460), NOP, NOP, timestamps(5, 0), NOP, window_scale(7)),
        (mss(1460), SACK_PERMITTED, NOP, NOP, NOP, window_scale(7)),
        (mss(1460), SACK_PERMITTED, timestamps(5, 0)),
        (mss(1400), SACK_PERMITTED, timestamps(5, 0), NOP, window_scale(7)),
        (mss(1460), SACK_PERMITTED, timestamps(5, 0), NOP, window_scale(15)),
        (mss(1460), SACK_PERMITTED, timestamps(5, 0), NOP, TcpOption(kind=5, data=b"x")),
        (mss(1460), SACK_PERMITTED, timestamps(5, 0), SACK_PERMITTED, NOP, NOP),
        (mss(1460), SACK_PERMITTED, timestamps(5, 0), NOP, window_scale(7), NOP, NOP, NOP, NOP),
        (),
    ],
)
def test_a_syn_with_other_options_is_pythons(pair: Pair, options: tuple[TcpOption, ...]) -> None:
    slot = Slot(next(pair._ports), 1000)
    pair.give([pair.syn(slot, options=options)], accept=slot.port)
    assert brief_count(pair) == 0 and len(pair.sides[1].stack.connections) == 1


def test_options_in_another_order_are_the_same(pair: Pair) -> None:
    options = (NOP, window_scale(7), mss(1460), timestamps(pair.stamp(), 0), SACK_PERMITTED)
    pair.open(options=options)
    assert brief_count(pair) == 1
    pair.compare()


@pytest.mark.parametrize("flags", [SYN | ECE | CWR, SYN | PSH])
def test_a_syn_with_other_flags_is_pythons(pair: Pair, flags: int) -> None:
    slot = Slot(next(pair._ports), 1000)
    options = (mss(1460), SACK_PERMITTED, timestamps(pair.stamp(), 0), NOP, window_scale(7))
    pair.give([pair.frame(slot, flags, ack=0, options=options)], accept=slot.port)
    assert brief_count(pair) == 0


def test_a_syn_with_a_wrong_checksum_is_dropped(pair: Pair) -> None:
    frame = bytearray(pair.syn(Slot(next(pair._ports), 1000), trust=0))
    frame[-1] ^= 1
    pair.give([bytes(frame)])
    assert brief_count(pair) == 0
    assert pair.sides[1].stack.drops[DropReason.BAD_TCP_CHECKSUM] == 1


def test_a_syn_of_somebody_else_is_pythons(pair: Pair) -> None:
    before = pair.sides[1].nat.counters.tcp_dials
    pair.give([pair.syn(Slot(next(pair._ports), 1000), mac=OTHER_MAC)])
    assert brief_count(pair) == 0
    assert pair.sides[1].nat.counters.tcp_dials == before + 1


def test_a_connection_that_python_has_stays_pythons(pair: Pair) -> None:
    """Here one in TIME-WAIT, which a new SYN takes over."""
    slot = begin(pair)
    pair.end_host(slot, "half")
    pair.acknowledge(slot)
    pair.data(slot, 0, fin=True)
    assert [c.state.value for c in pair.sides[1].stack.connections.values()] == ["time-wait"]
    pair.now += 1
    again = Slot(slot.port, slot.seq + 100_000)
    pair.slots[slot.port] = again
    pair.give([pair.syn(again)], accept=slot.port)
    assert brief_count(pair) == 0
    pair.compare()


def test_no_more_are_opened_than_there_are_descriptors(pair: Pair) -> None:
    for side in pair.sides:
        side.nat._context.budget.limit = 3
    for _ in range(3):
        begin(pair)
    pair.give([pair.syn(Slot(next(pair._ports), 1000))])
    assert brief_count(pair) == 3 and pair.sides[1].nat.descriptors_used == 3
    assert pair.sides[1].stack.drops[DropReason.FLOW_LIMIT] == 1
    pair.compare()


def test_brief_connections_count_against_the_limit_of_all() -> None:
    pair = Pair(limits=LIMITS.__class__(connections=3))
    try:
        for _ in range(3):
            begin(pair)
        pair.give([pair.syn(Slot(next(pair._ports), 1000))])
        assert brief_count(pair) == 3
        assert pair.sides[1].stack.drops[DropReason.TCP_CONNECTION_LIMIT] == 1
    finally:
        pair.close()


# what closes the doors


def change_policy(pair: Pair) -> None:
    for side in pair.sides:
        side.nat.policy.forget()


def add_route(pair: Pair) -> None:
    match = Match(address=ADDRESSES[4][1], bits=32)
    for side in pair.sides:
        side.nat.add_route(Route(match=match, is_end=False))


def add_service(pair: Pair) -> None:
    class Deaf:
        def tcp_request(self, request: object, now: float) -> None:
            return

    for side in pair.sides:
        side.nat.services[TCP, ADDRESSES[4][0], 1] = Deaf()


def move_guest(pair: Pair) -> None:
    for side in pair.sides:
        side.stack.link.neighbour_heard(ADDRESSES[4][0], OTHER_MAC, pair.now, solicited=True, create=True)
    pair.wait(10)  # the former MAC does not answer


def shape(pair: Pair) -> None:
    fast = pair.sides[1].fast
    assert fast is not None
    fast.take_train_limit()


@pytest.mark.parametrize("change", [change_policy, add_route, add_service, move_guest, shape])
def test_whatever_may_change_a_decision_closes_the_door(pair: Pair, change: object) -> None:
    slot = begin(pair)
    change(pair)  # type: ignore[operator]
    pair.settle()
    assert pair.sides[1].briefs.door_count == 0
    assert brief_count(pair) == (change is not move_guest)  # what was decided before stays
    before = len(pair.sides[1].stack.connections) + brief_count(pair)
    another = Slot(next(pair._ports), 1000)
    mac = OTHER_MAC if change is move_guest else GUEST_MAC
    pair.give([pair.syn(another, mac=mac)], accept=another.port)
    assert len(pair.sides[1].stack.connections) + brief_count(pair) == before + 1
    assert slot.is_open
    pair.compare()


# dials


def test_a_dial_that_takes_its_time_is_answered_when_it_has_worked(families: Pair) -> None:
    with pending(families):
        slot = ask(families)
        assert brief_count(families) == 1 and not families.sides[1].stack.requests
        families.listener.accept()[0].close()
    for side in families.sides:  # the kernel sends its SYN again after a second
        side.hosts.pop(slot.port, None)
    deadline = time.monotonic() + 10
    answers = []
    for side in families.sides:
        while not (sent := side.sent()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
            side.now = families.now
            side.settle()
        answers.append(sent)
    assert answers[0] == answers[1] and answers[0][0][1].flags == SYN | ACK
    families.compare()


@pytest.mark.parametrize("what", ["again", "withdrawn", "old", "age", "adopted"])
def test_a_dial_under_way_is_adopted(pair: Pair, what: str) -> None:
    with pending(pair):
        slot = ask(pair)
        assert brief_count(pair) == 1
        if what == "again":
            pair.give([pair.syn(slot, seq=slot.seq - 1)])
        elif what == "withdrawn":
            pair.give([pair.frame(slot, RST, options=())])
        elif what == "old":
            pair.give([pair.frame(slot, ACK, ack=77)])
        elif what == "age":
            pair.wait(0.6)
        else:
            pair.compare()
        assert brief_count(pair) == 0
        assert len(pair.sides[1].stack.requests) == (what != "withdrawn")
        pair.compare()
        assert pair.sides[1].nat.descriptors_used == (what != "withdrawn")
        pair.wait(100)  # the destination stays silent
        assert pair.sides[1].nat.descriptors_used == 0


def test_a_destination_that_refuses_from_now_on(families: Pair) -> None:
    families.listener.close()
    slot = Slot(next(families._ports), 1000)
    families.slots[slot.port] = slot
    slot.is_open = True
    families.give([families.syn(slot)])
    assert not slot.is_open, "the guest was not told"
    assert brief_count(families) == 0
    families.compare()


def test_a_dial_that_fails_later_is_told_as_it_is(pair: Pair) -> None:
    with pending(pair):
        slot = ask(pair)
        slot.is_open = True
        for side in pair.sides:
            assert side.nat.descriptors_used == 1
        pair.listener.close()
        deadline = time.monotonic() + 10
        answers = []
        for side in pair.sides:  # RST is the answer to the next SYN of the kernel
            while not (sent := side.sent()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
                side.now = pair.now
                side.settle()
            answers.append(sent)
        pair.listener = socket.create_server((LOOPBACK[4], 0))
    assert answers[0] == answers[1] and answers[0][0][1].flags & RST
    assert pair.sides[1].fast is not None
    assert pair.returned[fastpath.lib.TS_SOCKET_ERROR] == 1
    pair.compare()


# adoption


def test_who_asks_for_a_connection_by_its_key_gets_it(pair: Pair) -> None:
    """A frame that is for a brief connection, and not from its MAC: C does not look at it."""
    slot = begin(pair)
    frame = pair.frame(slot, ACK | PSH, b"data", mac=OTHER_MAC)
    pair.give([frame])
    assert brief_count(pair) == 0 and len(pair.sides[1].stack.connections) == 1
    pair.compare()


def test_an_icmp_error_finds_its_connection(pair: Pair) -> None:
    slot = begin(pair)
    pair.write(slot, 5000)
    guest, gateway = ADDRESSES[4]
    seq = (slot.reached - 5000) % MOD
    segment = struct.pack("!HHI", pair.target, slot.port, seq)
    quote = ipv4.HeaderTemplate(gateway, guest, TCP, 64, 0).emit(1500, 0, ipv4.DONT_FRAGMENT) + segment
    message = icmp.emit_error(IcmpErrorKind.FRAGMENTATION_NEEDED, quote, mtu=1000)
    packet = ipv4.HeaderTemplate(guest, gateway, ICMP, 64, 0).emit(20 + len(message), 0, 0) + message
    frame = VNET_HEADER.pack(2, 0, 0, 0, 0, 0) + GATEWAY_MAC + GUEST_MAC + b"\x08\x00" + packet
    pair.give([frame])
    assert brief_count(pair) == 0
    pair.compare()


@pytest.mark.parametrize("size", [1, 1448])
def test_the_guest_finishes_before_the_socket_has_taken_everything(pair: Pair, size: int) -> None:
    slot = begin(pair)
    for _ in range(600):  # nobody reads at the host: more than its kernel takes
        frames = []
        for _ in range(10):
            frames.append(pair.frame(slot, ACK, bytes(1448)))
            slot.seq += 1448
        for side in pair.sides:
            for frame in frames:
                side.device.guest.send(frame)
            side.now = pair.now
            side.settle()
        sent = [side.sent() for side in pair.sides]
        assert sent[0] == sent[1]
        if pair.sides[1].stack.receive_account.used:
            break
    else:
        raise AssertionError("the kernel takes everything")
    frame = pair.frame(slot, ACK | 1, bytes(size))
    slot.seq += size + 1
    pair.give([frame])
    assert brief_count(pair) == 0


def test_statistics_count_brief_connections_too(pair: Pair) -> None:
    before = pair.sides[1].stack.tcp_statistics().connections
    slot = begin(pair)
    pair.data(slot, 10, fin=True)
    pair.end_host(slot, "close")
    pair.acknowledge(slot)
    begin(pair)
    assert pair.sides[1].stack.tcp_statistics().connections == before + 2
    pair.compare()


def test_the_gateway_takes_everything_back_with_the_device(pair: Pair) -> None:
    begin(pair)
    pair.open()
    fast = pair.sides[1].fast
    assert fast is not None
    fast.close(pair.now)
    assert brief_count(pair) == 0 and len(pair.sides[1].stack.connections) == 2
    pair.compare()
