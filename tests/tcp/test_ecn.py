"""Explicit congestion notification (RFC 3168 section 6.1), between a stack and a scripted wire."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.tcp.peer import ramp
from tests.tcp.world import Transfer, World, perfect
from tunstack.link.shaping.codel import mark
from tunstack.packet import Packet
from tunstack.stack import Stack
from tunstack.tcp import header
from tunstack.tcp.ecn import Ecn, asks
from tunstack.tcp.header import ACK, CWR, ECE, FIN, SYN, Segment
from tunstack.tcp.seq import add

NOT_ECT, ECT_0, CE = 0, 2, 3


class Marking(World):
    """A perfect wire that sets CE where `mark` says so, on packets that allow it."""

    def __init__(
        self, *, a: bool = True, b: bool = True, mark: Callable[[int], bool] = lambda _: False
    ) -> None:
        super().__init__(perfect(0.01))
        self.a.ecn, self.b.ecn = a, b
        self.seen: list[tuple[Stack, int, Segment]] = []
        """Sender, ECN codepoint and segment of all that was sent."""
        self._mark = mark
        self._data = itertools.count()
        self.marked = 0
        self.observers.append(self._observe)

    def _observe(self, stack: Stack, wire: bytes) -> None:
        self.seen.append((stack, wire[1] & 3, header.parse(memoryview(wire)[20:])))

    def mangle(self, stack: Stack, wire: bytes) -> bytes:
        if wire[1] & 3 == ECT_0 and stack is self.a and self._mark(next(self._data)):
            marked = mark(Packet(wire))
            assert marked is not None
            self.marked += 1
            return marked.tobytes()
        return wire

    def transfer(self, size: int = 200_000) -> Transfer:
        data = ramp(size)
        transfer = Transfer(self, self.connect(), data)
        self.run(60, lambda: transfer.eof)
        assert transfer.received == data
        return transfer

    def data(self, stack: Stack) -> list[tuple[int, Segment]]:
        return [(codepoint, s) for sender, codepoint, s in self.seen if sender is stack and s.payload]


@pytest.mark.rfc("3168", "6.1.1")
@pytest.mark.parametrize(("a", "b"), [(True, True), (True, False), (False, True), (False, False)])
def test_ecn_is_on_if_both_sides_want_it(a: bool, b: bool) -> None:
    world = Marking(a=a, b=b)
    transfer = world.transfer()
    syn, syn_ack = (segment for _, _, segment in world.seen[:2])
    assert syn.flags & (SYN | ECE | CWR) == (SYN | ECE | CWR if a else SYN)
    assert syn_ack.flags & (SYN | ACK | ECE | CWR) == (SYN | ACK | ECE if a and b else SYN | ACK)
    assert transfer.sender.ecn.active == world.accepted[0].ecn.active == (a and b)
    wanted = ECT_0 if a and b else NOT_ECT
    assert {codepoint for codepoint, _ in world.data(world.a)} == {wanted}


@pytest.mark.rfc("3168", "6.1.4")
def test_neither_syn_nor_pure_ack_is_ecn_capable() -> None:
    world = Marking(mark=lambda n: n % 7 == 0)
    world.transfer()
    bare = [codepoint for _, codepoint, s in world.seen if not s.payload and not s.flags & FIN]
    assert len(bare) > 10
    assert set(bare) == {NOT_ECT}


@pytest.mark.rfc("3168", "6.1.1")
def test_a_repeated_syn_asks_for_no_ecn() -> None:
    world = Marking()
    fate = world.fate
    world.fate = lambda rng: [] if world.carried <= 1 else fate(rng)
    transfer = world.transfer(1000)
    syns = [s.flags & (ECE | CWR) for sender, _, s in world.seen if s.flags & SYN and sender is world.a]
    assert syns == [ECE | CWR, 0]
    assert not transfer.sender.ecn.active


@pytest.mark.rfc("3168", "6.1.1")
def test_after_a_syn_without_ecn_no_data_is_ecn_capable() -> None:
    """The answer agrees to the first SYN, which was only late; what the peer marks is still echoed."""
    for repeated in (False, True):
        ecn = Ecn(1, True)
        assert asks(ecn.syn_flags(SYN, first=True))
        if repeated:
            assert not asks(ecn.syn_flags(SYN, first=False))
        ecn.syn_ack_received(SYN | ACK | ECE)
        assert ecn.active
        assert ecn.marks is not repeated


@pytest.mark.rfc("3168", "6.1.3")
def test_a_mark_is_echoed_until_the_sender_answers() -> None:
    world = Marking(mark=lambda n: n == 20)
    world.transfer()
    assert world.marked == 1
    echoes = [bool(s.flags & ECE) for sender, _, s in world.seen if sender is world.b and not s.flags & SYN]
    first = echoes.index(True)
    answered = [i for i, (_, s) in enumerate(world.data(world.a)) if s.flags & CWR]
    assert len(answered) == 1
    assert not any(echoes[:first])
    last = len(echoes) - 1 - echoes[::-1].index(True)
    assert all(echoes[first : last + 1])
    assert last < len(echoes) - 1


@pytest.mark.rfc("3168", "6.1.2")
@pytest.mark.parametrize("iss", [0, 2**32 - 60, 2**31 - 60])
def test_news_is_what_acknowledges_more_than_was_sent_at_the_last_reduction(iss: int) -> None:
    ecn = Ecn(iss, True)
    for ack, sent, reduces in ((10, 100, True), (50, 120, False), (100, 130, False), (101, 200, True)):
        assert ecn.must_reduce(ACK | ECE, (iss + ack) % 2**32, (iss + sent) % 2**32) is reduces
    assert not ecn.must_reduce(ACK, (iss + 250) % 2**32, (iss + 300) % 2**32)


@pytest.mark.rfc("3168", "6.1.2")
def test_marks_within_one_window_cost_one_reduction() -> None:
    world = Marking(mark=lambda n: 30 <= n < 40)
    connection = world.connect()
    data = bytes(400_000)
    transfer = Transfer(world, connection, data)
    cuts = []
    before = connection.hot.cwnd
    until = world.now + 60
    while not transfer.eof and world.step(until):
        if connection.hot.cwnd < before:
            cuts.append((before, connection.hot.cwnd))
        before = connection.hot.cwnd
    assert world.marked == 10
    assert len(cuts) == 1
    assert cuts[0][1] >= 0.45 * cuts[0][0]
    assert connection.hot.retransmits == 0


@pytest.mark.rfc("3168", "6.1.2")
@pytest.mark.parametrize("gibibytes", [0, 1, 2, 3, 4, 5, 6, 7, 8])
def test_a_mark_counts_after_any_amount_of_data_without_one(gibibytes: int) -> None:
    ecn = Ecn(1000, True)
    ecn.accept(True)
    ack = 1000
    for _ in range(gibibytes):
        ack = add(ack, 1 << 30)
        assert not ecn.must_reduce(ACK, ack, add(ack, 5000))
    ack = add(ack, 100)
    assert ecn.must_reduce(ACK | ECE, ack, add(ack, 5000))
    for later in (100, 4900, 5000):
        assert not ecn.must_reduce(ACK | ECE, add(ack, later), add(ack, 9000)), "the same window of data"
    assert ecn.must_reduce(ACK | ECE, add(ack, 5001), add(ack, 9000))


@pytest.mark.rfc("3168", "6.1.5")
def test_a_retransmission_is_not_ecn_capable() -> None:
    world = Marking()
    fate = world.fate
    world.fate = lambda rng: [] if world.carried == 25 else fate(rng)
    transfer = world.transfer()
    assert transfer.sender.hot.retransmits >= 1
    seen: set[int] = set()
    repeated = 0
    for codepoint, segment in world.data(world.a):
        if segment.seq in seen:
            repeated += 1
            assert codepoint == NOT_ECT
        seen.add(segment.seq)
    assert repeated >= 1


@pytest.mark.rfc("3168", "6.1.6")
def test_a_window_probe_is_not_ecn_capable() -> None:
    world = Marking()
    connection = world.connect()
    world.run(1, lambda: connection.established)
    world.on_event = lambda event: None  # nobody reads: the window closes
    while connection.send(bytes(65536)):
        world.run(0.1)
    world.run(5)
    world.seen.clear()
    world.run(120)
    probes = world.data(world.a)
    assert probes
    assert {codepoint for codepoint, _ in probes} == {NOT_ECT}
