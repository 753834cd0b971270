"""The segment size rises again when the path takes more (RFC 4821, RFC 1191 6.3)."""

from __future__ import annotations

import itertools

import pytest

from tests.tcp.peer import Peer, established, ramp
from tests.tcp.world import Transfer, World
from tunstack.ip.header import TCP
from tunstack.stack import Stack
from tunstack.tcp.path_probe import NARROW, RAISE_AFTER, RAISE_AGAIN

HEADERS = {4: 40, 6: 60}
BASE = {4: 1024, 6: 1280}
BURST = 40_000
MINUTE = 60.0


class Narrow:
    """A flow of bursts over a path that takes packets up to `limit` bytes and says nothing of others."""

    def __init__(self, family: int = 4, *, timestamps: bool = True) -> None:
        self.world = World(lambda rng: [0.02], family=family)
        self.world.observers.append(self._see)
        self.world.fate_of = self._fate  # type: ignore[method-assign]
        self.limit = 1500
        self.lose: set[int] = set()
        """Large packets behind a probe, counted from it, that are lost with it."""
        self.sizes: list[tuple[float, int]] = []
        """When `a` sent packets with data, and their sizes."""
        self._after = 0
        self.connection = self.world.connect()
        self.connection.hot.timestamps = timestamps
        self.transfer = Transfer(self.world, self.connection, b"")
        self.transfer.feed = lambda: None  # type: ignore[method-assign]
        self.world.run(5, lambda: bool(self.world.accepted) and self.world.accepted[0].established)
        self._expected = b""

    def _see(self, stack: Stack, wire: bytes) -> None:
        if stack is self.world.a and len(wire) > 200:
            self.sizes.append((self.world.now, len(wire)))
        assert wire[9 if wire[0] >> 4 == 4 else 6] == TCP

    def _fate(self, wire: bytes) -> list[float]:
        if len(wire) > self.limit:
            self._after = 0
            return []
        self._after += len(wire) > 200
        return [] if len(wire) > 200 and self._after in self.lose else [0.02]

    def burst(self, size: int = BURST) -> list[int]:
        """Carry `size` bytes; the sizes of the packets that it took, in order."""
        before = len(self.sizes)
        assert self.connection.send(ramp(size, len(self._expected))) == size
        self._expected += ramp(size, len(self._expected))
        assert self.world.run(30, lambda: not self.connection.unacked)
        self.world.run(1)
        assert self.transfer.received == self._expected
        return [length for _, length in self.sizes[before:]]

    def wait(self, seconds: float) -> None:
        """Let time pass in silence."""
        self.world.run(seconds)

    def narrowed(self, limit: int) -> None:
        """The path takes no more than `limit` from now on, and the connection finds out."""
        self.limit = limit
        self.burst()
        assert self.sizes[-1][1] <= BASE[self.world.family]


@pytest.mark.rfc("1191", "6.3 increase")
@pytest.mark.rfc("4821", "7.6.1")
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("timestamps", [True, False])
def test_a_path_that_has_recovered_is_used_again(family: int, timestamps: bool) -> None:
    path = Narrow(family, timestamps=timestamps)
    assert max(path.burst()) == 1500
    path.narrowed(BASE[family])
    path.limit = 1500
    lowered = path.world.now
    while path.world.now < lowered + RAISE_AFTER - 20:
        assert max(path.burst()) == BASE[family], "not before ten minutes are over"
        path.wait(MINUTE)
    assert path.world.now >= lowered + 5 * MINUTE
    path.wait(2 * MINUTE)
    sizes = path.burst()
    assert sizes[0] == 1500, "the probe goes first"
    assert sizes[1:4] == [BASE[family]] * 3, "with its cover behind it"
    assert sizes[-2] == 1500, "and is believed when it is acknowledged"
    assert min(path.burst()[:-1]) == 1500
    assert path.connection.path_mss == 1500 - HEADERS[family]
    assert path.connection.sender.path.due == float("inf"), "there is no more to find"


@pytest.mark.rfc("4821", "7.6.2")
@pytest.mark.parametrize("timestamps", [True, False])
def test_a_path_that_has_not_costs_one_segment_and_no_congestion(timestamps: bool) -> None:
    path = Narrow(timestamps=timestamps)
    path.narrowed(1024)
    path.wait(RAISE_AFTER)
    sender, hot = path.connection.sender, path.connection.hot
    before = (sender.congestion.cwnd, sender.timeouts, hot.retransmits, sender.congestion.ssthresh)
    sizes = path.burst()
    assert sizes.count(1500) == 1
    assert max(size for size in sizes if size != 1500) == 1024
    assert (sender.timeouts, sender.congestion.ssthresh) == (before[1], before[3])
    assert sender.congestion.cwnd >= before[0]
    assert hot.retransmits == before[2] + 2, "the bytes of the probe, in two small segments"
    assert max(path.burst()) == 1024


@pytest.mark.rfc("1191", "6.3 increase")
@pytest.mark.rfc("4821", "7.6.1")
@pytest.mark.parametrize("limit", [1100, 1300, 1460, 1499])
def test_the_largest_size_that_works_is_found_in_time(limit: int) -> None:
    """A search by halves: log2(476 / 32) = 4 steps below the full size, and never two within the times."""
    path = Narrow()
    path.narrowed(limit)
    for _ in range(120):
        path.wait(MINUTE)
        path.burst()
    found = path.connection.path_mss + 40
    assert limit - NARROW < found <= limit
    assert path.connection.sender.timeouts <= 3, "those that found the black hole"
    probes: list[tuple[float, bool]] = []
    works = 1024
    for when, size in path.sizes:
        if size > works and when > 1000 + RAISE_AFTER:
            probes.append((when, size <= limit))
            if size <= limit:
                works = size
    assert len(probes) <= 16
    for (earlier, worked), (later, _) in itertools.pairwise(probes):
        assert later - earlier >= (RAISE_AGAIN if worked else RAISE_AFTER)


@pytest.mark.rfc("4821", "7.6.4")
def test_a_probe_that_is_lost_with_others_is_congestion_and_shows_nothing() -> None:
    path = Narrow()
    path.narrowed(1024)
    path.wait(RAISE_AFTER)
    path.lose = {2}
    sender = path.connection.sender
    before = sender.congestion.ssthresh, sender.congestion.cwnd
    path.burst()
    path.lose = set()
    assert sender.congestion.ssthresh < before[0] or sender.congestion.cwnd < before[1]
    path.wait(RAISE_AFTER)
    assert 1500 in path.burst(), "the same size is tried again"


@pytest.mark.rfc("4821", "7.6.4")
def test_the_bytes_of_a_lost_probe_prove_nothing_when_they_arrive_in_small_segments() -> None:
    """Everything behind the probe is lost as well, so that it takes a tail loss probe or a time-out."""
    path = Narrow()
    path.narrowed(1024)
    path.wait(RAISE_AFTER)
    path.lose = set(range(1, 60))
    assert path.connection.send(bytes(5000)) == 5000
    path.world.run(0.015)
    path.lose = set()
    assert path.world.run(30, lambda: not path.connection.unacked)
    assert [size for when, size in path.sizes if when > RAISE_AFTER + 1000].count(1500) == 1
    assert path.connection.path_mss == 1024 - 40


@pytest.mark.rfc("4821", "7.4")
def test_a_probe_wants_enough_behind_it() -> None:
    """Less than the probe and three segments to send: none, so that no loss is left to a time-out."""
    path = Narrow(timestamps=False)
    path.narrowed(1024)
    path.wait(RAISE_AFTER)
    assert max(path.burst(1460 + 3 * 984 - 1)) <= 1024
    assert max(path.burst(1460 + 3 * 984)) == 1500


def told_of_a_small_mtu(*, sack: bool) -> Peer:
    """A peer that has 6000 bytes, and an ICMP error said 1000 more than ten minutes ago."""
    peer = established(sack=sack)
    peer.write(ramp(6000))
    peer.send_icmp(3, 4, peer.take()[0], mtu=1000)
    peer.take()
    peer.send("A", 1, 6001)
    peer.advance(RAISE_AFTER + 1)
    return peer


@pytest.mark.rfc("4821", "7.4")
def test_without_sack_there_is_no_probe() -> None:
    peer = told_of_a_small_mtu(sack=False)
    peer.write(ramp(12_000, 6000))
    assert max(len(wire.raw) for wire in peer.take()) <= 1000


@pytest.mark.rfc("1191", "6.3 increase")
@pytest.mark.rfc("4821", "7.6.2")
def test_an_icmp_error_answers_a_probe_at_once() -> None:
    peer = told_of_a_small_mtu(sack=True)
    peer.write(ramp(12_000, 6000))
    cwnd = peer.conn.hot.cwnd
    probe, *others = peer.take()
    assert len(probe.raw) == 1500 and max(len(wire.raw) for wire in others) == 1000
    peer.send_icmp(3, 4, probe, mtu=1300)
    again = peer.take()
    assert [wire.seq for wire in again][:2] == [6001, 6961], "repeated in small segments"
    assert b"".join(wire.data for wire in again)[:1460] == ramp(1460, 6000)
    assert peer.conn.hot.cwnd >= cwnd
    peer.send("A", 1, 18_001)
    assert peer.conn.hot.mss == 960, "an ICMP error raises nothing, whatever it says"
