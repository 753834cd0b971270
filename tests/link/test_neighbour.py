"""The neighbour cache: examples for each transition, then random histories against what must always hold."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.errors import DropCounters, DropReason
from tunstack.limits import Limits
from tunstack.link.neighbour import (
    MAX_SOLICITATIONS,
    REACHABLE_TIME,
    RETRANS_TIMER,
    STALE_TIME,
    NeighbourCache,
    NeighbourState,
    Solicitation,
)
from tunstack.packet import Packet

A, B, C = (bytes([10, 0, 2, n]) for n in (1, 2, 3))
MAC1, MAC2 = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2))


def make(**limits: int) -> tuple[NeighbourCache, DropCounters]:
    drops = DropCounters()
    return NeighbourCache(Limits(**limits), drops, lambda address, mac: mac + address), drops


def reachable(cache: NeighbourCache, address: bytes, mac: bytes, now: float) -> None:
    cache.resolve(Packet(b""), address, now)
    cache.update(address, mac, now, solicited=True, create=False)
    cache.poll_solicitations()
    assert cache.state(address) is NeighbourState.REACHABLE


def test_resolution_asks_everybody_and_releases_in_order() -> None:
    cache, _ = make()
    packets = [Packet(bytes([n])) for n in range(3)]
    assert [cache.resolve(packet, A, 0.0) for packet in packets] == [None] * 3
    assert cache.poll_solicitations() == [Solicitation(A, None)]
    assert list(cache.update(A, MAC1, 0.1, solicited=True, create=False)) == packets
    assert cache.headers == {A: MAC1 + A}
    assert cache.queued == 0


def test_waiting_packets_are_released_in_order_and_copied() -> None:
    cache, _ = make()
    buffer = bytearray(b"head")
    cache.resolve(Packet(memoryview(buffer), (memoryview(buffer)[:2],)), A, 0.0)
    cache.resolve(Packet(b"second"), A, 0.0)
    buffer[:] = b"xxxx"
    released = cache.update(A, MAC1, 0.1, solicited=True, create=False)
    assert [packet.tobytes() for packet in released] == [b"headhe", b"second"]


def test_silence_fails_after_three_questions_a_second_apart() -> None:
    cache, drops = make()
    packet = Packet(b"lost")
    cache.resolve(packet, A, 0.0)
    asked = [(0.0, cache.poll_solicitations())]
    while (due := cache.next_timeout()) is not None:
        cache.handle_timeout(due)
        asked.append((due, cache.poll_solicitations()))
    question = [Solicitation(A, None)]
    assert asked == [(0.0, question), (1.0, question), (2.0, question), (3.0, [])]
    assert cache.poll_failures() == [packet]
    assert cache.poll_failures() == []
    assert drops[DropReason.NEIGHBOUR_UNREACHABLE] == 1
    assert len(cache) == 0


def test_an_answer_lasts_then_is_stale_then_probed_by_unicast_on_use() -> None:
    cache, _ = make()
    reachable(cache, A, MAC1, 0.0)
    cache.handle_timeout(REACHABLE_TIME - 0.001)
    assert cache.state(A) is NeighbourState.REACHABLE
    cache.handle_timeout(REACHABLE_TIME)
    assert cache.state(A) is NeighbourState.STALE
    assert A not in cache.headers, "the fast path would never notice that it is stale"
    assert cache.poll_solicitations() == []
    assert cache.resolve(Packet(b""), A, REACHABLE_TIME + 1) == MAC1 + A, "a stale entry is used meanwhile"
    assert cache.state(A) is NeighbourState.PROBE
    assert cache.poll_solicitations() == [Solicitation(A, MAC1)]
    cache.update(A, MAC1, REACHABLE_TIME + 1.1, solicited=True, create=False)
    assert cache.state(A) is NeighbourState.REACHABLE


def test_who_sends_by_himself_uses_what_is_known_and_keeps_it_fresh() -> None:
    cache, _ = make()
    assert cache.use(A, 0.0) is None
    assert len(cache) == 0
    cache.resolve(Packet(b""), B, 0.0)
    assert cache.use(B, 0.0) is None
    cache.update(A, MAC1, 0.0, solicited=False, create=True)
    cache.poll_solicitations()
    assert cache.state(A) is NeighbourState.STALE
    assert cache.use(A, 1.0) == MAC1 + A
    assert cache.state(A) is NeighbourState.PROBE
    assert cache.poll_solicitations() == [Solicitation(A, MAC1)]


def test_a_probe_without_answer_ends_in_asking_everybody() -> None:
    cache, drops = make()
    cache.update(A, MAC1, 0.0, solicited=False, create=True)
    assert cache.resolve(Packet(b""), A, 10.0) is not None
    for n in range(1, MAX_SOLICITATIONS + 1):
        cache.handle_timeout(10.0 + n * RETRANS_TIMER)
    assert cache.poll_solicitations() == [Solicitation(A, MAC1)] * MAX_SOLICITATIONS
    assert cache.state(A) is None
    assert cache.headers == {}
    assert cache.resolve(Packet(b""), A, 13.0) is None
    assert cache.poll_solicitations() == [Solicitation(A, None)]
    assert drops.total == 0, "what was sent to the old MAC has not been dropped by us"


def test_a_stale_entry_that_nobody_uses_is_forgotten() -> None:
    cache, _ = make()
    cache.update(A, MAC1, 0.0, solicited=False, create=True)
    cache.handle_timeout(STALE_TIME - 0.001)
    assert cache.state(A) is NeighbourState.STALE
    cache.handle_timeout(STALE_TIME)
    assert cache.state(A) is None
    assert cache.next_timeout() is None


def test_nothing_but_a_message_for_us_creates_an_entry() -> None:
    cache, _ = make()
    for solicited in (False, True):
        assert cache.update(A, MAC1, 0.0, solicited=solicited, create=False) == ()
    assert len(cache) == 0
    cache.update(A, MAC1, 0.0, solicited=False, create=True)
    assert cache.state(A) is NeighbourState.STALE


def test_a_request_from_the_one_that_is_looked_for_releases_but_does_not_confirm() -> None:
    cache, _ = make()
    packet = Packet(b"waits")
    cache.resolve(packet, A, 0.0)
    assert list(cache.update(A, MAC1, 0.5, solicited=False, create=True)) == [packet]
    assert cache.state(A) is NeighbourState.PROBE
    cache.poll_solicitations()
    cache.handle_timeout(0.99)
    assert cache.poll_solicitations() == [], "not a second after the first question"
    cache.handle_timeout(1.0)
    assert cache.poll_solicitations() == [Solicitation(A, MAC1)]


def test_a_claim_does_not_displace_a_neighbour_that_answers() -> None:
    cache, _ = make()
    reachable(cache, A, MAC1, 0.0)
    cache.update(A, MAC2, 5.0, solicited=False, create=True)
    assert cache.headers[A] == MAC1 + A
    assert cache.poll_solicitations() == [Solicitation(A, MAC1)]
    cache.update(A, MAC2, 5.1, solicited=True, create=False)
    cache.update(A, MAC1, 5.2, solicited=True, create=False)
    cache.handle_timeout(9.0)
    assert cache.state(A) is NeighbourState.REACHABLE
    assert cache.mac(A) == MAC1


def test_a_claim_is_believed_when_the_old_mac_is_silent() -> None:
    cache, _ = make()
    reachable(cache, A, MAC1, 0.0)
    cache.update(A, MAC2, 5.0, solicited=False, create=False)
    cache.poll_solicitations()
    cache.handle_timeout(5.0 + RETRANS_TIMER)
    assert cache.headers[A] == MAC2 + A
    assert cache.poll_solicitations() == [Solicitation(A, MAC2)]
    cache.update(A, MAC2, 6.1, solicited=True, create=False)
    assert cache.state(A) is NeighbourState.REACHABLE


def test_a_stale_entry_takes_the_new_mac_at_once() -> None:
    cache, _ = make()
    cache.update(A, MAC1, 0.0, solicited=False, create=True)
    cache.update(A, MAC2, 1.0, solicited=False, create=False)
    assert cache.resolve(Packet(b""), A, 2.0) == MAC2 + A


def test_a_flood_of_requests_displaces_only_its_own_kind() -> None:
    cache, drops = make(neighbours=8)
    reachable(cache, A, MAC1, 0.0)
    cache.resolve(Packet(b"waits"), B, 0.0)
    for n in range(1000):
        cache.update(bytes([172, 16, n >> 8, n & 255]), MAC2, 0.1, solicited=False, create=True)
    assert len(cache) == 8
    assert cache.state(A) is NeighbourState.REACHABLE
    assert cache.state(B) is NeighbourState.INCOMPLETE
    assert cache.mac(bytes([172, 16, 999 >> 8, 999 & 255])) == MAC2, "the newest is there"
    assert drops.total == 0


def test_addresses_that_nobody_has_take_half_of_the_table_at_most() -> None:
    cache, drops = make(neighbours=8)
    for n in range(100):
        cache.resolve(Packet(b""), bytes([172, 16, 0, n]), 0.0)
    assert len(cache) == 4
    assert drops[DropReason.NEIGHBOUR_TABLE_FULL] == 96
    reachable_after = bytes([10, 0, 2, 9])
    cache.update(reachable_after, MAC1, 0.0, solicited=False, create=True)
    assert cache.resolve(Packet(b""), reachable_after, 0.0) is not None


def test_a_table_of_fresh_entries_refuses_the_newcomer() -> None:
    cache, drops = make(neighbours=2)
    reachable(cache, A, MAC1, 0.0)
    reachable(cache, B, MAC1, 0.0)
    cache.update(C, MAC2, 0.0, solicited=False, create=True)
    assert cache.resolve(Packet(b""), C, 0.0) is None
    assert cache.state(C) is None
    assert drops[DropReason.NEIGHBOUR_TABLE_FULL] == 2


@pytest.mark.parametrize(("per_neighbour", "total", "kept"), [(2, 9, [3, 4]), (9, 2, [3, 4])])
def test_the_newest_packets_wait(per_neighbour: int, total: int, kept: list[int]) -> None:
    cache, drops = make(neighbour_queue=per_neighbour, neighbour_queue_total=total)
    for n in range(5):
        cache.resolve(Packet(bytes([n])), A, 0.0)
    released = cache.update(A, MAC1, 0.0, solicited=True, create=False)
    assert [packet.head[0] for packet in released] == kept
    assert drops[DropReason.NEIGHBOUR_QUEUE_FULL] == 3


ADDRESSES = [bytes([10, 0, 2, n]) for n in range(7)] + [b"\xfd" + bytes(14) + b"\1"]
MACS = [MAC1, MAC2, b"\2\0\0\0\0\3"]

STEPS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from(ADDRESSES)),
    st.tuples(
        st.just("hear"), st.sampled_from(ADDRESSES), st.sampled_from(MACS), st.booleans(), st.booleans()
    ),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.25, 0.9, 1.0, 3.5, 29.0, 61.0])),
)


class History:
    """Drives a cache and keeps its own account of packets, questions and what was said."""

    def __init__(self) -> None:
        self.cache, self.drops = make(neighbours=4, neighbour_queue=2, neighbour_queue_total=2)
        self.now = 1000.0
        self.offered: list[tuple[bytes, Packet]] = []
        self.sent: dict[bytes, list[int]] = collections.defaultdict(list)
        self.failed: list[Packet] = []
        self.refused = 0
        self.asked: dict[bytes, float] = {}
        self.said: dict[bytes, set[bytes]] = collections.defaultdict(set)
        self.confirmed: dict[bytes, tuple[float, bytes]] = {}

    def fresh(self) -> dict[bytes, bytes | None]:
        kept = (NeighbourState.REACHABLE, NeighbourState.PROBE, NeighbourState.INCOMPLETE)
        return {a: self.cache.mac(a) for a in ADDRESSES if self.cache.state(a) in kept}

    def step(self, step: tuple[object, ...]) -> None:
        before = self.fresh()
        match step:
            case ("send", bytes(address)):
                self._send(address)
                touched = {address}
            case ("hear", bytes(address), bytes(mac), bool(solicited), bool(create)):
                self._hear(address, mac, solicited, create)
                touched = {address}
            case ("wait", float(seconds)):
                self._wait(seconds)
                touched = set(ADDRESSES)
            case _:
                raise AssertionError(step)
        after = self.fresh()
        for address in before.keys() - touched:
            assert after.get(address, b"gone") == before[address], (
                "a fresh entry was touched by another's message"
            )
        self._note_questions()
        self.check()

    def _send(self, address: bytes) -> None:
        packet = Packet(len(self.offered).to_bytes(4, "big"))
        self.offered.append((address, packet))
        before = self.drops[DropReason.NEIGHBOUR_TABLE_FULL]
        header = self.cache.headers.get(address) or self.cache.resolve(packet, address, self.now)
        self.refused += self.drops[DropReason.NEIGHBOUR_TABLE_FULL] - before
        if header is not None:
            self._went(address, packet, header)

    def _hear(self, address: bytes, mac: bytes, solicited: bool, create: bool) -> None:
        known = self.cache.state(address)
        self.said[address].add(mac)
        if solicited and known in (NeighbourState.INCOMPLETE, NeighbourState.PROBE):
            self.confirmed[address] = (self.now, mac)
        for packet in self.cache.update(address, mac, self.now, solicited=solicited, create=create):
            self._went(address, packet, self.cache.headers[address])
        if known is None and not create:
            assert self.cache.state(address) is None

    def _wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.cache.next_timeout()) is not None and due <= end:
            assert due >= self.now, "a timer in the past"
            self.now = due
            self.cache.handle_timeout(due)
            self._note_questions()
            self.failed += self.cache.poll_failures()
        self.now = end

    def _went(self, address: bytes, packet: Packet, header: bytes) -> None:
        assert header.endswith(address)
        assert header[:6] in self.said[address], "sent to a MAC that nobody named"
        self.sent[address].append(int.from_bytes(packet.head, "big"))

    def _note_questions(self) -> None:
        for address, mac in self.cache.poll_solicitations():
            assert self.now - self.asked.get(address, float("-inf")) >= RETRANS_TIMER
            assert mac is None or mac in self.said[address]
            self.asked[address] = self.now

    def check(self) -> None:
        cache, drops = self.cache, self.drops
        states = collections.Counter(cache.state(address) for address in ADDRESSES)
        assert len(cache) == sum(states.values()) - states[None] <= 4
        assert states[NeighbourState.INCOMPLETE] <= 2
        assert cache.queued <= 2
        usable = {a for a in ADDRESSES if cache.state(a) in (NeighbourState.REACHABLE, NeighbourState.PROBE)}
        assert cache.headers.keys() == usable
        for address in ADDRESSES:
            assert self.sent[address] == sorted(set(self.sent[address])), "out of order or twice"
            if cache.state(address) is NeighbourState.REACHABLE:
                when, mac = self.confirmed[address]
                assert self.now - when < REACHABLE_TIME or self.now == when + REACHABLE_TIME
                assert cache.headers[address] == mac + address
        lost = drops[DropReason.NEIGHBOUR_QUEUE_FULL]
        done = sum(map(len, self.sent.values())) + len(self.failed) + cache.queued + lost + self.refused
        assert done == len(self.offered), "a packet was lost or doubled"
        assert drops[DropReason.NEIGHBOUR_UNREACHABLE] == len(self.failed)


@settings(max_examples=200)
@given(st.lists(STEPS, max_size=60))
def test_what_holds_in_every_history(steps: list[tuple[object, ...]]) -> None:
    history = History()
    for step in steps:
        history.step(step)
    history._wait(3600.0)
    assert len(history.cache) == 0, "without traffic everything is forgotten"
    assert history.cache.queued == 0
    assert history.cache.next_timeout() is None
